"""Files become networks: strictly, in every naming and storage, with every tensor accounted for."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from wan_core.configs import ClipVisionConfig, DitConfig, Umt5Config, VaeConfig
from wan_core.errors import ModelFileError
from wan_core.models.clip_vision import ClipVision
from wan_core.models.umt5 import Umt5Encoder
from wan_core.models.vace import build_dit
from wan_core.models.vae import WanVAE
from wan_core.runtime.linear import StoredLinear
from wan_core.weights.checkpoint import open_checkpoint
from wan_core.weights.detect import detect, storage
from wan_core.weights.formats import StoredWeight, decode, layer_format_json
from wan_core.weights.header import TensorInfo
from wan_core.weights.keymaps import NAMINGS, to_naming
from wan_core.weights.load import load_module, plan_load, read_raw
from wan_core.weights.precision import policy

GOLDENS = Path(__file__).parents[2] / "goldens"
CLASSES = {"dit": build_dit, "umt5": Umt5Encoder, "clip_vision": ClipVision, "vae": WanVAE}
INVENTORIES = {
    "t2v_1_3B": "dit", "t2v_14B": "dit", "i2v_14B_wan21": "dit", "flf2v_14B": "dit", "i2v_A14B_expert": "dit",
    "ti2v_5B": "dit", "vace_1_3B": "dit", "vace_14B": "dit", "umt5_xxl_encoder": "umt5", "vae_2_1": "vae",
    "vae_2_2": "vae", "clip_vit_h_visual": "clip_vision",
}  # fmt: skip
TINY = {
    "t2v": ("dit", DitConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=2, in_dim=16, out_dim=16, text_dim=24)),
    "flf2v": ("dit", DitConfig(dim=48, ffn_dim=64, num_heads=2, num_layers=1, in_dim=36, out_dim=16, text_dim=24,
                               freq_dim=32, img_dim=20, img_tokens=514)),
    "vace": ("dit", DitConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=4, in_dim=16, out_dim=16, text_dim=24,
                              vace_layers=(0, 2), vace_in_dim=96)),
    "umt5": ("umt5", Umt5Config(vocab=50, dim=16, dim_attn=16, dim_ffn=24, num_heads=2, num_layers=2)),
    "clip": ("clip_vision", ClipVisionConfig(image_size=28, dim=32, mlp_dim=48, out_dim=8, num_heads=4, num_layers=2)),
    "vae21": ("vae", VaeConfig(dim=4, dec_dim=4, z_dim=4)),
    "vae22": ("vae", VaeConfig(dim=4, dec_dim=8, z_dim=6, num_res_blocks=1, patch=2, shortcuts=True)),
}  # fmt: skip
METADATA = {
    "flf2v": {"config": '{"transformer": {"num_heads": 2}}'},
    "clip": {"config": '{"num_heads": 4}'},
}
NAMED = [(name, naming) for name, (kind, _) in TINY.items() for k, naming in NAMINGS if k == kind]


def on_meta(kind, config):
    with torch.device("meta"):
        return CLASSES[kind](config)


def state_of(name: str) -> dict[str, torch.Tensor]:
    """Random weights of a tiny model, under our names; a CLIP tower whole, as files have it."""
    kind, config = TINY[name]
    torch.manual_seed(1)
    shapes = {key: tensor.shape for key, tensor in on_meta(kind, config).state_dict().items()}
    if kind == "clip_vision":
        last = config.num_layers - 1
        shapes |= {
            key.replace("transformer.0.", f"transformer.{last}."): shape
            for key, shape in shapes.items()
            if "transformer.0." in key
        }
        shapes |= {
            "head": (config.dim, config.out_dim),
            "post_norm.weight": (config.dim,),
            "post_norm.bias": (config.dim,),
        }
    return {key: torch.randn(shape) for key, shape in shapes.items()}


def load(path, metadata=None, request="fp32", device="cpu", bf16=True, **detect_options):
    checkpoint = open_checkpoint(path)
    found = detect(checkpoint.header, checkpoint.metadata | (metadata or {}), checkpoint.path.name, **detect_options)
    stored = storage(checkpoint.header, checkpoint.metadata)
    module = on_meta(found.kind, found.config)
    report = load_module(module, checkpoint, found, policy(found.kind, stored.dtype, device, bf16, request))
    assert report.total == len(checkpoint.header)
    return module, report


@pytest.mark.parametrize(
    ("name", "naming"), [(name, naming) for name, kind in INVENTORIES.items() for k, naming in NAMINGS if k == kind]
)
def test_every_base_inventory_maps_strictly_in_every_naming(name, naming):
    kind = INVENTORIES[name]
    shapes = json.loads((GOLDENS / "keys" / f"{name}.json").read_text())
    theirs = to_naming({key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, kind, naming)
    header = {key: TensorInfo(dtype=t.dtype, shape=tuple(t.shape), nbytes=t.nbytes) for key, t in theirs.items()}
    found = detect(header, {}, name)
    module = on_meta(kind, found.config)
    plan = plan_load(module, header, found)
    assert set(plan.weights) == set(module.state_dict())
    used = [part for source in plan.weights.values() for part in source.names]
    assert sorted(used + [one for one, _ in plan.ignored]) == sorted(header)
    reasons = {reason for _, reason in plan.ignored}
    assert reasons == ({"only the last layer but one is used"} if kind == "clip_vision" else set())


@pytest.mark.parametrize(("name", "naming"), NAMED)
def test_a_tiny_file_arrives_to_the_bit_in_every_naming(name, naming, tmp_path):
    kind, config = TINY[name]
    state = state_of(name)
    save_file(to_naming(state, kind, naming), tmp_path / "m.safetensors", METADATA.get(name))
    module, report = load(tmp_path / "m.safetensors")
    assert module.config == config
    loaded = module.state_dict()
    assert set(loaded) == set(state) - {n for n in state if n.startswith(("head", "post_norm", "transformer.1."))
                                        and kind == "clip_vision"}  # fmt: skip
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.items())
    assert len(report.ignored) == (0 if kind != "clip_vision" else len(to_naming(state, kind, naming)) - report.used)


def test_a_prefixed_a_sharded_and_a_pickled_file_arrive_to_the_bit(tmp_path):
    state = state_of("t2v")
    save_file({f"model.diffusion_model.{key}": t for key, t in state.items()}, tmp_path / "prefixed.safetensors")
    torch.save(state, tmp_path / "official.pth")
    theirs = to_naming(state, "dit", "diffusers")
    parts = {f"d-0000{i + 1}-of-00002.safetensors": sorted(theirs)[i::2] for i in range(2)}
    (tmp_path / "set").mkdir()
    for part, names in parts.items():
        save_file({key: theirs[key] for key in names}, tmp_path / "set" / part)
    weight_map = {key: part for part, names in parts.items() for key in names}
    (tmp_path / "set" / "d.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for entry in ("prefixed.safetensors", "official.pth", "set"):
        loaded = load(tmp_path / entry)[0].state_dict()
        assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_loaded_transformer_gives_the_recorded_output(tmp_path):
    path = GOLDENS / "dit_t2v_hd128.safetensors"
    with safe_open(path, framework="pt") as file:
        golden = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        config = json.loads(file.metadata()["config"])
    state = {key.removeprefix("sd."): tensor for key, tensor in golden.items() if key.startswith("sd.")}
    save_file(
        state, tmp_path / "m.safetensors", {"config": json.dumps({"transformer": {"num_heads": config["num_heads"]}})}
    )
    inputs = [golden["in.x.0"][None], golden["in.t"], golden["in.context.0"][None]]
    exact = load(tmp_path / "m.safetensors")[0](*inputs)[0]
    torch.testing.assert_close(exact, golden["out.0"], atol=1e-4, rtol=0)
    low = load(tmp_path / "m.safetensors", request="bf16")[0](*inputs)[0]
    assert 0 < (low - golden["out.0"]).abs().max() < 0.3


def test_one_missing_tensor_is_named(tmp_path):
    state = state_of("t2v")
    del state["blocks.1.ffn.2.bias"]
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(
        ModelFileError, match=r"m\.safetensors: 1 tensors of the Wan model are missing \(blocks\.1\.ffn\.2\.bias\)"
    ):
        load(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "extra",
    [
        "blocks.0.self_attn.bonus",
        "blocks.0.forward",
        "training",
        "vae.decoder.x",
        "textual.x",
        "blocks.0.ffn.0.scale_weights",
    ],
)
def test_one_tensor_too_many_is_named(extra, tmp_path):
    save_file({**state_of("t2v"), extra: torch.ones(2)}, tmp_path / "m.safetensors")
    with pytest.raises(ModelFileError, match=rf"1 tensors have no place in the Wan model \({extra}\)"):
        load(tmp_path / "m.safetensors")


def test_one_wrong_shape_is_named_with_both_shapes(tmp_path):
    state = {**state_of("t2v"), "blocks.0.self_attn.q.weight": torch.ones(128, 64)}
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(ModelFileError, match=r"blocks\.0\.self_attn\.q\.weight is \[128, 64\], not \[128, 128\]"):
        load(tmp_path / "m.safetensors")


def test_a_refused_file_leaves_the_module_untouched_and_reads_nothing(tmp_path, monkeypatch):
    save_file({**state_of("t2v"), "odd": torch.ones(2)}, tmp_path / "m.safetensors")
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    found = detect(checkpoint.header, {})
    module = on_meta("dit", found.config)
    monkeypatch.setattr(checkpoint, "get", lambda name: pytest.fail("a weight was read"))
    with pytest.raises(ModelFileError):
        load_module(module, checkpoint, found, policy("dit", torch.float32, "cpu", True))
    assert all(tensor.is_meta for tensor in module.parameters())
    assert type(module.blocks[0].ffn[0]) is torch.nn.Linear


def test_what_is_not_needed_is_listed_with_its_reason(tmp_path):
    clip = to_naming(state_of("clip"), "clip_vision", "official")
    extra = {"textual.token_embedding.weight": torch.ones(4, 4), "log_scale": torch.ones(1)}
    save_file({**clip, **extra}, tmp_path / "clip.safetensors", METADATA["clip"])
    ignored = dict(load(tmp_path / "clip.safetensors")[1].ignored)
    assert ignored["log_scale"] == ignored["textual.token_embedding.weight"] == "the text half of CLIP is not used"
    assert ignored["visual.head"] == ignored["visual.transformer.1.mlp.0.bias"] == "only the last layer but one is used"

    dit = {**to_naming(state_of("t2v"), "dit", "diffusers"), "blocks.0.attn2.norm_added_q.weight": torch.ones(4)}
    save_file(dit, tmp_path / "dit.safetensors")
    assert dict(load(tmp_path / "dit.safetensors")[1].ignored) == {
        "blocks.0.attn2.norm_added_q.weight": "never used by the network"
    }

    marker = {**state_of("t2v"), "model_type.Wan2_1-FLF2V-14B-720P": torch.ones(1)}
    save_file(marker, tmp_path / "marker.safetensors")
    assert len(load(tmp_path / "marker.safetensors")[1].ignored) == 1


def test_an_all_in_one_checkpoint_gives_each_part_and_lists_the_others(tmp_path):
    dit, vae = state_of("t2v"), state_of("vae21")
    whole = {f"model.diffusion_model.{key}": t for key, t in dit.items()} | {f"vae.{key}": t for key, t in vae.items()}
    save_file(whole, tmp_path / "all.safetensors")
    module, report = load(tmp_path / "all.safetensors")
    assert report.used == len(dit) and len(report.ignored) == len(vae)
    module, report = load(tmp_path / "all.safetensors", kind="vae")
    assert isinstance(module, WanVAE) and report.used == len(vae)


def quantised(state, suffix: str, dtype=torch.float8_e4m3fn):
    """Matrices of the blocks as scaled fp8; the file and the weights that it stands for."""
    file, meant = {}, {}
    for name, tensor in state.items():
        if (
            name.endswith(".weight")
            and tensor.ndim == 2
            and ".norm" not in name
            and name.startswith(("blocks.", "vace_blocks.", "encoder.block"))
        ):
            scale = (tensor.abs().max() / 448).reshape(())
            file[name], file[name.removesuffix("weight") + suffix] = (tensor / scale).to(dtype), scale
            meant[name] = decode(StoredWeight(file[name], scale), torch.float32)
        else:
            file[name] = meant[name] = tensor
    return file, meant


def effective(module) -> dict[str, torch.Tensor]:
    """Every weight as the network computes with it."""
    owners = dict(module.named_modules())
    out = {}
    for name, tensor in module.state_dict().items():
        scale = getattr(owners[name.rpartition(".")[0]], "weight_scale", None) if name.endswith(".weight") else None
        out[name] = decode(StoredWeight(tensor, scale), torch.float32)
    return out


def test_plain_fp8_stays_fp8_and_is_used_as_its_numbers(tmp_path):
    state = {key: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for key, t in state_of("t2v").items()}
    save_file(state, tmp_path / "m.safetensors")
    module, _ = load(tmp_path / "m.safetensors")
    assert module.blocks[0].ffn[0].weight.dtype is torch.float8_e4m3fn
    assert all(torch.equal(found, state[key].float()) for key, found in effective(module).items())


@pytest.mark.parametrize("name", ["t2v", "vace"])
@pytest.mark.parametrize("naming", ["official", "diffusers"])
def test_scaled_fp8_of_the_first_generation_loads_in_every_naming(naming, name, tmp_path):
    file, meant = quantised(state_of(name), "scale_weight")
    file["blocks.0.ffn.0.scale_input"] = torch.tensor(1.0)
    theirs = {**to_naming(file, "dit", naming), "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    save_file(theirs, tmp_path / "m.safetensors")
    module, report = load(tmp_path / "m.safetensors")
    assert module.blocks[0].self_attn.q.weight.dtype is torch.float8_e4m3fn
    assert all(torch.equal(found, meant[key]) for key, found in effective(module).items())
    reasons = dict(report.ignored)
    assert len(reasons) == 2 and "activation" in reasons[to_name("blocks.0.ffn.0.scale_input", naming)]


def to_name(name: str, naming: str) -> str:
    return next(iter(to_naming({name: torch.ones(1)}, "dit", naming)))


def test_scaled_fp8_of_the_second_generation_loads_by_layer_entries_or_by_metadata(tmp_path):
    file, meant = quantised(state_of("t2v"), "weight_scale")
    layers = [name.removesuffix(".weight_scale") for name in file if name.endswith(".weight_scale")]
    file["blocks.0.ffn.0.input_scale"] = torch.tensor(0.5)
    entry = torch.tensor(list(layer_format_json("float8_e4m3fn")), dtype=torch.uint8)
    save_file({**file, **{f"{layer}.comfy_quant": entry.clone() for layer in layers}}, tmp_path / "tensors.safetensors")
    listed = {"format_version": "1.0", "layers": {layer: {"format": "float8_e4m3fn"} for layer in layers}}
    save_file(file, tmp_path / "metadata.safetensors", {"_quantization_metadata": json.dumps(listed)})
    for name in ("tensors", "metadata"):
        module, report = load(tmp_path / f"{name}.safetensors")
        assert all(torch.equal(found, meant[key]) for key, found in effective(module).items())
        assert [one for one, _ in report.ignored] == ["blocks.0.ffn.0.input_scale"]


def test_a_layer_entry_of_an_unknown_format_is_refused_by_name(tmp_path):
    file, _ = quantised(state_of("t2v"), "weight_scale")
    entry = torch.tensor(list(b'{"format": "mystery4"}'), dtype=torch.uint8)
    save_file({**file, "blocks.0.ffn.0.comfy_quant": entry}, tmp_path / "m.safetensors")
    with pytest.raises(ModelFileError, match="mystery4"):
        load(tmp_path / "m.safetensors")


def test_a_scale_that_is_not_finite_is_refused(tmp_path):
    file, _ = quantised(state_of("t2v"), "weight_scale")
    file["blocks.0.ffn.0.weight_scale"] = torch.tensor(float("nan"))
    save_file(file, tmp_path / "m.safetensors")
    with pytest.raises(ModelFileError, match="not finite"):
        load(tmp_path / "m.safetensors")


def test_the_hosts_umt5_file_loads_with_its_tokenizer_and_scales(tmp_path):
    hf = to_naming(state_of("umt5"), "umt5", "hf")
    file, meant = quantised(hf, "scale_weight")
    file |= {
        "encoder.embed_tokens.weight": hf["shared.weight"].clone(),
        "spiece_model": torch.arange(200, dtype=torch.uint8),
        "scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn),
    }
    save_file(file, tmp_path / "m.safetensors")
    module, report = load(tmp_path / "m.safetensors")
    expected = effective(module)
    assert torch.equal(expected["blocks.1.ffn.fc2.weight"], meant["encoder.block.1.layer.1.DenseReluDense.wo.weight"])
    table = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    assert torch.equal(expected["blocks.1.pos_embedding.embedding.weight"], meant[table])
    assert {name for name, _ in report.ignored} == {"encoder.embed_tokens.weight", "spiece_model", "scaled_fp8"}
    assert read_raw(open_checkpoint(tmp_path / "m.safetensors"), "spiece_model") == bytes(range(200))


def test_storage_is_kept_where_it_computes_and_islands_are_float32(tmp_path):
    save_file(
        {key: t.bfloat16() for key, t in state_of("flf2v").items()}, tmp_path / "m.safetensors", METADATA["flf2v"]
    )
    module, _ = load(tmp_path / "m.safetensors", request="auto", device="cuda")
    block = module.blocks[0]
    assert isinstance(block.ffn[0], StoredLinear) and block.ffn[0].weight.dtype is torch.bfloat16
    assert (block.ffn[0].compute_dtype, module.head.head.compute_dtype) == (torch.bfloat16, torch.float32)
    for name in (
        "patch_embedding.weight",
        "blocks.0.modulation",
        "blocks.0.self_attn.norm_q.weight",
        "img_emb.emb_pos",
    ):
        assert module.get_parameter(name).dtype is torch.float32


def test_weights_wider_than_they_compute_are_narrowed_once(tmp_path):
    save_file(state_of("t2v"), tmp_path / "m.safetensors")
    module, _ = load(tmp_path / "m.safetensors", request="bf16")
    assert module.blocks[0].ffn[0].weight.dtype is torch.bfloat16
    assert module.head.head.weight.dtype is torch.float32


def test_an_fp16_umt5_keeps_its_table_and_computes_in_something_else(tmp_path):
    save_file({key: t.half() for key, t in state_of("umt5").items()}, tmp_path / "m.safetensors")
    module, _ = load(tmp_path / "m.safetensors", request="auto", bf16=False)
    assert module.token_embedding.weight.dtype is torch.float16
    assert module.blocks[0].attn.q.compute_dtype is torch.float32
    assert module.norm.weight.dtype is torch.float32


def test_a_vae_is_converted_as_a_whole(tmp_path):
    save_file({key: t.bfloat16() for key, t in state_of("vae21").items()}, tmp_path / "m.safetensors")
    module, _ = load(tmp_path / "m.safetensors", request="auto")
    assert {(parameter.dtype, parameter.requires_grad) for parameter in module.parameters()} == {(torch.float32, False)}


def mutated(rng: random.Random, header: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """A header with tensors dropped, renamed, reshaped or retyped."""
    out = dict(header)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(sorted(out))
        info, kind = out.pop(name), rng.randrange(5)
        shape = list(info.shape)
        if kind == 1:
            name = rng.choice(
                [f"{name}.x", name.replace("0", "1"), name.replace("weight", "scale_weight"), name[3:], "x." + name]
            )
        elif kind == 2:
            shape = [rng.choice([0, 1, 2, 3, side, side * 2, 2**31]) for side in shape]
        elif kind == 3:
            shape = rng.choice([[], shape[1:], [1, *shape]])
        dtype = rng.choice([torch.int8, torch.uint8, torch.int64, torch.float8_e5m2]) if kind == 4 else info.dtype
        if kind:
            out[name] = TensorInfo(dtype=dtype, shape=tuple(shape), nbytes=info.nbytes)
    return out


def test_a_changed_header_is_accepted_whole_or_refused_with_our_error():
    rng, verdicts = random.Random(5), {True: 0, False: 0}
    for name, naming in NAMED:
        theirs = to_naming(state_of(name), TINY[name][0], naming)
        header = {key: TensorInfo(dtype=t.dtype, shape=tuple(t.shape), nbytes=t.nbytes) for key, t in theirs.items()}
        for _ in range(12):
            changed = mutated(rng, header)
            try:
                found = detect(changed, METADATA.get(name, {}), name)
                module = on_meta(found.kind, found.config)
                plan = plan_load(module, changed, found)
            except ModelFileError:
                verdicts[False] += 1
                continue
            verdicts[True] += 1
            assert set(plan.weights) == set(module.state_dict())
    assert verdicts[False] > 70 and verdicts[True] > 0
