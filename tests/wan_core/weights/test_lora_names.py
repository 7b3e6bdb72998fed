"""Names in LoRA files: every ending in every dialect, both namings, and names of other models."""

import json
from pathlib import Path

import pytest

from wan_core.weights.keymaps import DIT_DIFFUSERS
from wan_core.weights.lora_names import DIALECTS, ENDINGS, official_module, read_name

KEYS = Path(__file__).parents[2] / "goldens" / "keys"
ROLES = {
    "down": [
        ".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", ".lora_A", "_lora.down.weight",
        ".lora.down.weight", ".lora_linear_layer.down.weight",
    ],
    "up": [
        ".lora_up.weight", ".lora_B.weight", ".lora_B.default.weight", ".lora_B", "_lora.up.weight",
        ".lora.up.weight", ".lora_linear_layer.up.weight",
    ],
    "mid": [".lora_mid.weight"],
    "alpha": [".alpha"],
    "dora": [".dora_scale"],
    "magnitude": [
        ".lora_magnitude_vector", ".lora_magnitude_vector.weight", ".lora_magnitude_vector.default.weight",
    ],
    "up_bias": [".lora_B.bias", ".lora_B.default.bias"],
    "diff": [".diff", ".w_norm"],
    "diff_b": [".diff_b", ".b_norm"],
    "diff_m": [".diff_m"],
    "set_weight": [".set_weight"],
    "reshape_weight": [".reshape_weight"],
    **{f"hada_{n}": [f".hada_{n}"] for n in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{n}": [f".lokr_{n}"] for n in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}  # fmt: skip
"""Written out a second time: role -> its endings."""
DOTTED = {
    "diffusion_model.": None, "model.diffusion_model.": None, "transformer.": None, "transformer_2.": "low",
    "base_model.model.": None, "pipe.dit.": None, "unet.": None, "": None,
}  # fmt: skip
UNDERSCORED = ("lora_unet_", "lora_unet__", "lora_transformer_", "lycoris_")
MODULES = {
    "blocks.0.self_attn.q": "blocks.0.attn1.to_q",
    "blocks.39.self_attn.o": "blocks.39.attn1.to_out.0",
    "blocks.7.self_attn.norm_k": "blocks.7.attn1.norm_k",
    "blocks.12.cross_attn.k": "blocks.12.attn2.to_k",
    "blocks.3.cross_attn.k_img": "blocks.3.attn2.add_k_proj",
    "blocks.3.cross_attn.norm_k_img": "blocks.3.attn2.norm_added_k",
    "blocks.21.ffn.0": "blocks.21.ffn.net.0.proj",
    "blocks.21.ffn.2": "blocks.21.ffn.net.2",
    "blocks.5.norm3": "blocks.5.norm2",
    "patch_embedding": "patch_embedding",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
}
ALL_ENDINGS = [(ending, role) for role, endings in ROLES.items() for ending in endings]


def written(prefix: str, module: str) -> str:
    return prefix + (module.replace(".", "_") if prefix in UNDERSCORED else module)


def test_the_tables_here_name_every_ending_and_every_dialect():
    assert dict(ALL_ENDINGS) == ENDINGS
    assert {dialect.prefix for dialect in DIALECTS} == {*DOTTED, *UNDERSCORED}


@pytest.mark.parametrize("prefix", [*DOTTED, *UNDERSCORED])
@pytest.mark.parametrize(("ending", "role"), ALL_ENDINGS)
def test_every_ending_in_every_dialect_and_naming_is_the_right_module_and_role(prefix, ending, role):
    for official, diffusers in MODULES.items():
        for module in (official, diffusers):
            part = read_name(written(prefix, module) + ending)
            assert part is not None, written(prefix, module) + ending
            assert (part.module, part.role) == (official, role)
            assert (part.dialect.prefix, part.dialect.side) == (prefix, DOTTED.get(prefix))


@pytest.mark.parametrize("prefix", [*DOTTED, *UNDERSCORED])
@pytest.mark.parametrize("owner", ["blocks.0", "blocks.31", "head"])
def test_a_modulation_difference_names_the_owner_of_the_modulation(prefix, owner):
    part = read_name(f"{written(prefix, owner)}.diff_m")
    assert (part.module, part.role) == (owner, "diff_m")


def linears(name: str) -> dict[str, str]:
    """Official module -> its diffusers name, for every module with a weight of a real model."""
    shapes = json.loads((KEYS / f"{name}.json").read_text())
    rules = {rule.ours.removesuffix(".*"): rule.theirs[0].removesuffix(".*") for rule in DIT_DIFFUSERS}
    found = {}
    for key in shapes:
        if key.endswith(".weight"):
            module = key.removesuffix(".weight")
            block, rest = module.split(".", 2)[1:] if module.startswith("blocks.") else ("", "")
            pattern = f"blocks.{{}}.{rest}" if rest else module
            found[module] = rules[pattern].replace("{}", block)
    return found


@pytest.mark.parametrize(("name", "count"), [("t2v_14B", 607), ("i2v_14B_wan21", 731)])
def test_every_module_of_a_real_model_is_found_in_every_dialect(name, count):
    modules = linears(name)
    assert len(modules) == count
    for dialect in DIALECTS:
        for official, diffusers in modules.items():
            for module in (official, diffusers):
                assert read_name(written(dialect.prefix, module) + ".lora_down.weight").module == official


@pytest.mark.parametrize("name", ["t2v_14B", "i2v_14B_wan21"])
@pytest.mark.parametrize("underscores", [False, True])
def test_no_two_modules_share_a_name(name, underscores):
    modules = linears(name)
    for naming in (modules.keys(), modules.values()):
        texts = [text.replace(".", "_") if underscores else text for text in naming]
        assert len({official_module(text, underscores) for text in texts}) == len(modules)


FOREIGN = {
    "SDXL": [
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k.lora_down.weight",
        "lora_unet_middle_block_1_proj_in.lora_up.weight",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_v.alpha",
        "unet.up_blocks.0.attentions.1.transformer_blocks.0.ff.net.2.lora_B.weight",
        "lora_unet_time_embed_0.lora_down.weight",
        "unet.time_embedding.linear_1.lora_A.weight",
    ],
    "Flux": [
        "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight",
        "lora_unet_single_blocks_37_linear1.alpha",
        "transformer.single_transformer_blocks.3.attn.to_q.lora_A.weight",
        "transformer.transformer_blocks.3.attn.add_k_proj.lora_B.weight",
        "diffusion_model.double_blocks.1.txt_mlp.0.lora_A.weight",
        "lora_transformer_single_transformer_blocks_0_proj_mlp.lora_up.weight",
    ],
    "text encoder": [
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
        "lora_te_text_model_encoder_layers_3_self_attn_q_proj.alpha",
        "text_encoder.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight",
    ],
    "no LoRA at all": [
        "blocks.0.self_attn.q.weight", "diffusion_model.blocks.0.self_attn.q.bias", "lora_down.weight", ".alpha",
        "alpha", "diffusion_model..lora_down.weight",
    ],
    "nearly ours": [
        "diffusion_model.blocks.0.self_attn.qkv.lora_A.weight", "diffusion_model.blocks.01.ffn.0.lora_A.weight",
        "diffusion_model.blocks.1000.ffn.0.lora_A.weight", "diffusion_model.blocks.-1.ffn.0.lora_A.weight",
        "diffusion_model.blocks.1\u0661.ffn.0.lora_A.weight", "diffusion_model.blocks.0.ffn.0.lora_C.weight",
        "diffusion_model.blocks.0.ffn.0.extra.lora_A.weight", "lora_unet_blocks.0.ffn.0.lora_down.weight",
        "lora_unet_blocks_0_ffn_0_lora_down.weight", "blocks_0_ffn_0.lora_down.weight",
        "diffusion_modelXblocks.0.ffn.0.lora_A.weight", "Diffusion_Model.blocks.0.ffn.0.lora_A.weight",
        "diffusion_model.vace_blocks.0.extra.lora_A.weight", "diffusion_model.blocks.0.ffn.0.lora_A.weight\n",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", [name for names in FOREIGN.values() for name in names])
def test_names_of_anything_else_are_none(name):
    assert read_name(name) is None
