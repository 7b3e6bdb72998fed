"""Key tables against three public oracles: the recorded name maps, diffusers' and transformers' own models."""

import json
from pathlib import Path

import pytest
import torch

from wan_core.errors import ModelFileError
from wan_core.weights.keymaps import NAMINGS, OPS, Rule, to_naming, to_official

KEYS = Path(__file__).parents[2] / "goldens" / "keys"
INVENTORIES = {
    "t2v_1_3B": "dit",
    "t2v_14B": "dit",
    "i2v_14B_wan21": "dit",
    "flf2v_14B": "dit",
    "i2v_A14B_expert": "dit",
    "ti2v_5B": "dit",
    "umt5_xxl_encoder": "umt5",
    "vae_2_1": "vae",
    "vae_2_2": "vae",
    "clip_vit_h_visual": "clip_vision",
}
CASES = [(name, naming) for name, kind in INVENTORIES.items() for k, naming in NAMINGS if k == kind]


def inventory(name: str) -> dict[str, torch.Tensor]:
    return {
        key: torch.empty(shape, device="meta") for key, shape in json.loads((KEYS / f"{name}.json").read_text()).items()
    }


def shapes(tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize(("name", "naming"), CASES)
def test_every_name_goes_there_and_back(name, naming):
    ours = inventory(name)
    theirs = to_naming(ours, INVENTORIES[name], naming, prefix="")
    back, unknown = to_official(theirs, INVENTORIES[name], naming)
    assert not unknown
    assert {
        ours: OPS[s.op].shape(tuple(tuple(theirs[n].shape) for n in s.names)) for ours, s in back.items()
    } == shapes(ours)


@pytest.mark.parametrize("name", ["flf2v_14B", "vae_2_1", "vae_2_2"])
def test_diffusers_names_are_the_recorded_ones(name):
    oracle = json.loads((KEYS / f"{name}.official_to_diffusers.json").read_text())
    found, unknown = to_official(oracle.values(), INVENTORIES[name], "diffusers")
    assert not unknown
    assert {ours: source.names for ours, source in found.items()} == {a: (b,) for a, b in oracle.items()}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("t2v_1_3B", {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}),
        ("t2v_14B", {}),
        ("i2v_A14B_expert", {"in_channels": 36}),
        ("ti2v_5B", {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48,
                     "out_channels": 48}),
        ("i2v_14B_wan21", {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}),
        ("flf2v_14B", {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120, "pos_embed_seq_len": 514}),
    ],
)  # fmt: skip
def test_diffusers_own_transformer_has_exactly_these_names_and_shapes(name, options):
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        model = WanTransformer3DModel(**options)
    assert shapes(model.state_dict()) == shapes(to_naming(inventory(name), "dit", "diffusers"))


VAE_22 = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "patch_size": 2,
}  # fmt: skip


@pytest.mark.parametrize(("name", "options"), [("vae_2_1", {}), ("vae_2_2", VAE_22)])
def test_diffusers_own_vae_has_exactly_these_names_and_shapes(name, options):
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        model = AutoencoderKLWan(**options)
    assert shapes(model.state_dict()) == shapes(to_naming(inventory(name), "vae", "diffusers"))


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_vae_with_other_block_counts_follows_diffusers_too(blocks):
    from diffusers import AutoencoderKLWan

    for options in ({}, VAE_22):
        with torch.device("meta"):
            model = AutoencoderKLWan(**{**options, "base_dim": 4, "num_res_blocks": blocks})
        theirs = model.state_dict()
        found, unknown = to_official(theirs, "vae", "diffusers")
        assert not unknown
        ours = {name: theirs[source.names[0]] for name, source in found.items()}
        assert shapes(to_naming(ours, "vae", "diffusers")) == shapes(theirs)


def test_transformers_own_umt5_has_exactly_these_names_and_shapes():
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        model = UMT5EncoderModel(
            UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
        )
    theirs = shapes(model.state_dict())
    assert theirs.pop("encoder.embed_tokens.weight") == theirs["shared.weight"]
    assert theirs == shapes(to_naming(inventory("umt5_xxl_encoder"), "umt5", "hf"))


def test_transformers_own_clip_vision_has_exactly_these_names_and_shapes():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14,
        projection_dim=1024,
    )  # fmt: skip
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(config)
    assert shapes(model.state_dict()) == shapes(to_naming(inventory("clip_vit_h_visual"), "clip_vision", "hf"))


def test_open_clip_names_are_those_that_the_host_converts():
    names = to_naming(inventory("clip_vit_h_visual"), "clip_vision", "open_clip")
    block = {name.removeprefix("visual.transformer.resblocks.3.") for name in names if ".resblocks.3." in name}
    assert block == {
        "ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias", "attn.in_proj_weight", "attn.in_proj_bias",
        "attn.out_proj.weight", "attn.out_proj.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight",
        "mlp.c_proj.bias",
    }  # fmt: skip
    assert {name for name in names if ".resblocks." not in name} == {
        "visual.class_embedding", "visual.positional_embedding", "visual.proj", "visual.conv1.weight",
        "visual.ln_pre.weight", "visual.ln_pre.bias", "visual.ln_post.weight", "visual.ln_post.bias",
    }  # fmt: skip
    assert names["visual.class_embedding"].shape == (1280,)
    assert names["visual.positional_embedding"].shape == (257, 1280)


def test_ops_are_inverse_to_the_bit_and_their_shapes_are_true():
    shape = {"rename": (2, 3), "concat": (6, 3), "transpose": (2, 3), "unsqueeze": (1, 4, 3), "unsqueeze2": (1, 1, 5)}
    assert shape.keys() == OPS.keys()
    for name, op in OPS.items():
        ours = torch.randn(shape[name])
        parts = op.split(ours)
        assert torch.equal(op.join(parts), ours)
        assert op.shape(tuple(tuple(part.shape) for part in parts)) == tuple(ours.shape)


def test_query_key_and_value_are_joined_in_this_order():
    parts = {p: torch.full((2, 2), float(i)) for i, p in enumerate("qkv")}
    names = [f"vision_model.encoder.layers.7.self_attn.{p}_proj.weight" for p in ("v", "q", "k")]
    found, unknown = to_official(names, "clip_vision", "hf")
    source = found["transformer.7.attn.to_qkv.weight"]
    joined = OPS[source.op].join(tuple(parts[name.split(".")[-2][0]] for name in source.names))
    assert joined[:, 0].tolist() == [0, 0, 1, 1, 2, 2] and not unknown


def test_an_incomplete_set_of_parts_is_left_over():
    names = [f"vision_model.encoder.layers.7.self_attn.{p}_proj.weight" for p in ("v", "q")]
    assert to_official(names, "clip_vision", "hf") == ({}, sorted(names))


def test_the_second_name_of_the_token_table_steps_back_but_serves_alone():
    both = ["encoder.embed_tokens.weight", "shared.weight"]
    found, unknown = to_official(both, "umt5", "hf")
    assert found["token_embedding.weight"].names == ("shared.weight",) and unknown == both[:1]
    found, unknown = to_official(both[:1], "umt5", "hf")
    assert found["token_embedding.weight"].names == ("encoder.embed_tokens.weight",) and not unknown


def test_names_that_only_look_right_are_left_over():
    odd = ["blocks.00.norm2.weight", "blocks.-1.norm2.weight", "blocks.1.norm2.weight.x", "xblocks.1.norm2.weight"]
    assert to_official(odd, "dit", "diffusers") == ({}, odd)


def test_a_name_without_a_counterpart_is_an_error_when_writing():
    with pytest.raises(ModelFileError, match="no name in the hf naming"):
        to_naming({"blocks.0.unheard_of": torch.ones(1)}, "umt5", "hf")


def test_no_two_rules_of_a_table_share_a_side():
    for (kind, naming), table in NAMINGS.items():
        rules: tuple[Rule, ...] = table if isinstance(table, tuple) else table(inventory("vae_2_2"))
        theirs = [name for rule in rules for name in rule.theirs]
        assert len(theirs) == len(set(theirs)), (kind, naming)
        ours = [rule.ours for rule in rules if not rule.alias]
        assert len(ours) == len(set(ours)), (kind, naming)


def test_a_file_cannot_blow_up_the_table():
    names = [f"decoder.up_blocks.{i}.resnets.0.conv1.weight" for i in range(5000)]
    with pytest.raises(ModelFileError, match="5000 levels"):
        to_official(names, "vae", "diffusers")
