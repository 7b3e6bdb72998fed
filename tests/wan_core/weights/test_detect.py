"""Every base model is recognised from its header alone, in every naming and under every prefix; the rest is named."""

import json
import time
from pathlib import Path

import pytest
import torch

from wan_core.configs import ClipVisionConfig, DitConfig, Umt5Config, VaeConfig
from wan_core.errors import ModelFileError
from wan_core.models.dit import WanDiT
from wan_core.variants import VARIANTS
from wan_core.weights.detect import detect, storage
from wan_core.weights.header import TensorInfo
from wan_core.weights.keymaps import HOME_PREFIX, NAMINGS, PREFIXES, to_naming
from wan_core.weights.load import plan_load

KEYS = Path(__file__).parents[2] / "goldens" / "keys"
ROWS = {row.name: row for row in VARIANTS}
DITS = {
    "t2v_1_3B": ("t2v-1.3b",),
    "t2v_14B": ("t2v-14b", "t2v-a14b"),
    "i2v_14B_wan21": ("i2v-14b-480p", "i2v-14b-720p", "fun-inp-14b"),
    "flf2v_14B": ("flf2v-14b",),
    "i2v_A14B_expert": ("i2v-a14b", "fun-inp-a14b"),
    "ti2v_5B": ("ti2v-5b",),
    "vace_1_3B": ("vace-1.3b",),
    "vace_14B": ("vace-14b", "vace-a14b"),
}
# Fun models: the inventory that they are built on, input channels, CLIP branch, reference and camera convolutions.
FUN = {
    "fun-inp-1.3b": ("t2v_1_3B", 36, True, None, None),
    "fun-control-1.3b": ("t2v_1_3B", 48, True, None, None),
    "fun-control-v1.1-1.3b": ("t2v_1_3B", 48, True, 16, None),
    "fun-camera-1.3b": ("t2v_1_3B", 32, True, None, 8),
    "fun-control-14b": ("i2v_14B_wan21", 48, False, None, None),
    "fun-control-v1.1-14b": ("i2v_14B_wan21", 48, False, 16, None),
    "fun-camera-14b": ("i2v_14B_wan21", 32, False, None, 8),
    "fun-control-a14b": ("i2v_A14B_expert", 52, False, 16, None),
    "fun-camera-a14b": ("i2v_A14B_expert", 36, False, None, 8),
    "fun-inp-5b": ("ti2v_5B", 100, False, None, None),
    "fun-control-5b": ("ti2v_5B", 148, False, 48, None),
    "fun-camera-5b": ("ti2v_5B", 100, False, None, 16),
}
NANO = {"nano-t2v", "nano-i2v"}  # the pack's own; tests/benchmarks/test_nano.py loads the files
OTHERS = {
    "umt5_xxl_encoder": ("umt5", Umt5Config()),
    "clip_vit_h_visual": ("clip_vision", ClipVisionConfig()),
    "vae_2_1": ("vae", VaeConfig()),
    "vae_2_2": ("vae", VaeConfig(dim=160, dec_dim=256, z_dim=48, patch=2, shortcuts=True)),
}
KINDS = {**dict.fromkeys(DITS, "dit"), **{name: kind for name, (kind, _) in OTHERS.items()}}
CASES = [(name, naming) for name, kind in KINDS.items() for k, naming in NAMINGS if k == kind]


def inventory(name: str) -> dict[str, torch.Tensor]:
    return {
        key: torch.empty(shape, device="meta") for key, shape in json.loads((KEYS / f"{name}.json").read_text()).items()
    }


def info(shape=(2, 2), dtype=torch.bfloat16) -> TensorInfo:
    return TensorInfo(dtype=dtype, shape=tuple(shape), nbytes=int(torch.Size(shape).numel()) * dtype.itemsize)


def header_of(tensors, dtype=torch.bfloat16) -> dict[str, TensorInfo]:
    return {name: info(tensor.shape, dtype) for name, tensor in tensors.items()}


@pytest.mark.parametrize(("name", "naming"), CASES)
def test_a_base_model_is_recognised_in_every_naming_and_under_every_prefix(name, naming):
    kind = KINDS[name]
    for prefix in {*PREFIXES[kind], HOME_PREFIX.get((kind, naming), "")}:
        found = detect(header_of(to_naming(inventory(name), kind, naming, prefix)), {}, name)
        assert (found.kind, found.naming, found.prefix) == (kind, naming, prefix)
        if kind == "dit":
            assert tuple(row.name for row in found.variants) == DITS[name]
            assert found.config == ROWS[DITS[name][0]].dit
            assert all(row is ROWS[row.name] for row in found.variants)
        else:
            assert found.config == OTHERS[name][1]


def fun_shapes(base: str, in_dim: int, image: bool, ref: int | None, fold: int | None) -> dict[str, tuple[int, ...]]:
    """A Fun model's names and shapes, from the inventory that it is built on and what VideoX-Fun adds to it."""
    shapes = {name: tuple(tensor.shape) for name, tensor in inventory(base).items()}
    dim = shapes["patch_embedding.weight"][0]
    shapes["patch_embedding.weight"] = (dim, in_dim, 1, 2, 2)
    if image:
        for block in range(30):
            layer = f"blocks.{block}.cross_attn"
            shapes |= {f"{layer}.{one}_img.weight": (dim, dim) for one in "kv"}
            shapes |= {f"{layer}.{one}_img.bias": (dim,) for one in "kv"} | {f"{layer}.norm_k_img.weight": (dim,)}
        for number, size in (("0", (1280,)), ("1", (1280, 1280)), ("3", (dim, 1280)), ("4", (dim,))):
            shapes |= {f"img_emb.proj.{number}.weight": size, f"img_emb.proj.{number}.bias": size[:1]}
    if ref:
        shapes |= {"ref_conv.weight": (dim, ref, 2, 2), "ref_conv.bias": (dim,)}
    if fold:
        shapes["control_adapter.conv.weight"] = (dim, 24 * fold**2, 2, 2)
        shapes["control_adapter.conv.bias"] = (dim,)
        for conv in ("conv1", "conv2"):
            shapes[f"control_adapter.residual_blocks.0.{conv}.weight"] = (dim, dim, 3, 3)
            shapes[f"control_adapter.residual_blocks.0.{conv}.bias"] = (dim,)
    return shapes


@pytest.mark.parametrize("name", FUN)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_a_fun_model_is_recognised_and_every_tensor_has_its_place(name, prefix, dtype):
    """Official files, ComfyUI single files, and scaled fp8 (whose matrices alone are stored so)."""
    shapes = fun_shapes(*FUN[name])
    header = {prefix + one: info(shape, dtype if len(shape) == 2 else torch.bfloat16) for one, shape in shapes.items()}
    if dtype is torch.float8_e4m3fn:
        matrices = [one for one, shape in shapes.items() if len(shape) == 2 and one.startswith("blocks.")]
        header |= {f"{prefix}{one.removesuffix('weight')}scale_weight": info((), torch.float32) for one in matrices}
        header[f"{prefix}scaled_fp8"] = info((0,), dtype)
    found = detect(header, {}, name)
    assert [row.name for row in found.variants] == [name]
    assert found.config == ROWS[name].dit and found.variants[0] is ROWS[name]
    with torch.device("meta"):
        plan = plan_load(WanDiT(found.config), header, found)
    assert set(plan.weights) == set(shapes)


def test_every_row_of_the_variant_table_is_reached():
    assert {name for names in DITS.values() for name in names} | NANO | set(FUN) == set(ROWS)


def tiny(options=None, drop=(), **extra) -> dict[str, TensorInfo]:
    """Header of a small DiT."""
    shape = {"dim": 256, "ffn": 320, "layers": 2, "inner": 16, "out": 16, "text": 4096, "freq": 256} | (options or {})
    d, f = shape["dim"], shape["ffn"]
    names = {
        "patch_embedding.weight": (d, shape["inner"], 1, 2, 2),
        "text_embedding.0.weight": (d, shape["text"]),
        "time_embedding.0.weight": (d, shape["freq"]),
        "head.head.weight": (shape["out"] * 4, d),
    }
    for n in range(shape["layers"]):
        names |= {
            f"blocks.{n}.modulation": (1, 6, d),
            f"blocks.{n}.self_attn.norm_q.weight": (d,),
            f"blocks.{n}.ffn.0.weight": (f, d),
        }
    names |= extra
    return {name: info(shape) for name, shape in names.items() if name not in drop}


def test_an_unknown_size_takes_all_rows_with_its_features_and_says_so():
    found = detect(tiny(), {})
    assert [row.name for row in found.variants] == ["t2v-1.3b", "t2v-14b", "t2v-a14b"]
    assert all(row.dit == found.config and row.title.endswith("(custom size)") for row in found.variants)
    assert found.config.num_heads == 2
    assert [row.name for row in detect(tiny({"inner": 48, "out": 48}), {}).variants] == ["ti2v-5b"]
    assert [row.name for row in detect(tiny({"inner": 36}), {}).variants] == ["i2v-a14b", "fun-inp-a14b"]
    image = {"img_emb.proj.0.weight": (64,)}
    found = detect(tiny({"inner": 36}, **image), {})
    names = ["i2v-14b-480p", "i2v-14b-720p", "fun-inp-1.3b", "fun-inp-14b"]
    assert [row.name for row in found.variants] == names and found.config.img_dim == 64
    found = detect(tiny({"inner": 36}, **image, **{"img_emb.emb_pos": (1, 514, 64)}), {})
    assert [row.name for row in found.variants] == ["flf2v-14b"] and found.config.img_tokens == 514


def test_heads_come_from_the_metadata_where_the_width_does_not_tell():
    header = tiny({"dim": 48, "text": 24, "freq": 32})
    with pytest.raises(ModelFileError, match="number of attention heads cannot be told"):
        detect(header, {})
    for text in ('{"transformer": {"num_heads": 2}}', '{"num_heads": 2, "text_dim": 24, "window_size": [-1, -1]}'):
        config = detect(header, {"config": text}).config
        assert config == DitConfig(
            dim=48, ffn_dim=320, num_heads=2, num_layers=2, in_dim=16, out_dim=16, text_dim=24, freq_dim=32
        )
    with pytest.raises(ModelFileError, match="heads"):
        detect(header, {"config": '{"transformer": {"num_heads": 5}}'})


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"transformer": 3}', "[" * 100_000, '{"num_heads": "2"}'])
def test_damaged_metadata_is_as_good_as_none(text):
    assert detect(tiny(), {"config": text}).config.num_heads == 2


def test_metadata_that_contradicts_the_tensors_is_refused():
    with pytest.raises(ModelFileError, match="metadata says text_dim 512, the tensors say 4096"):
        detect(tiny(), {"config": '{"transformer": {"text_dim": 512}}'})


def test_a_vae_of_any_latent_width_is_recognised():
    from wan_core.models.vae import WanVAE

    for config in (
        VaeConfig(dim=8, dec_dim=8, z_dim=4),
        VaeConfig(dim=8, dec_dim=12, z_dim=6, num_res_blocks=1, patch=2, shortcuts=True),
        VaeConfig(dim=8, dec_dim=8, z_dim=4, num_res_blocks=1, temporal_downsample=(True, False, True)),
    ):
        with torch.device("meta"):
            state = WanVAE(config).state_dict()
        for naming in ("official", "diffusers"):
            assert detect(header_of(to_naming(state, "vae", naming)), {}).config == config


def test_an_all_in_one_checkpoint_gives_the_part_that_is_asked_for():
    header = {f"model.diffusion_model.{name}": one for name, one in tiny().items()}
    header |= {f"vae.{name}": one for name, one in header_of(inventory("vae_2_1")).items()}
    text = to_naming(inventory("umt5_xxl_encoder"), "umt5", "hf", "text_encoders.umt5xxl.transformer.")
    header |= header_of(text)
    assert detect(header, {}).kind == "dit"
    assert [detect(header, {}, kind=kind).kind for kind in ("dit", "vae", "umt5")] == ["dit", "vae", "umt5"]
    assert detect(header, {}, kind="umt5").prefix == "text_encoders.umt5xxl.transformer."


@pytest.mark.parametrize(
    ("name", "title"),
    [("s2v_14B", "S2V"), ("animate_14B", "Animate")],
)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_wan_models_that_are_not_built_yet_are_refused_by_name(name, title, prefix):
    header = {prefix + key: one for key, one in header_of(inventory(name)).items()}
    with pytest.raises(ModelFileError, match=rf"{title}.*not supported yet"):
        detect(header, {}, name)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_vace_blocks_by_themselves_are_told_where_they_belong(prefix):
    header = {prefix + key: one for key, one in header_of(inventory("vace_14B")).items() if "vace" in key}
    with pytest.raises(ModelFileError, match=r"VACE module.*T2V model of its size.*module_name"):
        detect(header, {}, "module")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (tiny({"inner": 32}, **{"control_adapter.conv.weight": (8, 8, 2, 2)}), "camera adapter takes 8 channels"),
        (tiny({"inner": 52}, **{"ref_conv.weight": (8, 24, 2, 2)}), "takes 52 .* with a reference branch"),
        (tiny({"inner": 52}), "takes 52 and gives 16 channels, without an image branch.* Fun Control"),
        (tiny({"inner": 40}, **{"img_emb.proj.0.weight": (64,)}), "takes 40 .* with an image branch"),
        (tiny({"inner": 5, "out": 7}), "takes 5 and gives 7 channels"),
        (tiny(**{"patch_embedding_pose.weight": (8, 8, 1, 2, 2)}), "SCAIL"),
        (tiny(drop=("patch_embedding.weight",)), "'patch_embedding.weight' is missing"),
        (tiny(drop=("head.head.weight",)), "'head.head.weight' is missing"),
        (tiny(**{"blocks.99999.modulation": (1, 6, 2)}), "100000 parts 'blocks.N'"),
        ({"diffusion_model.blocks.0.self_attn.q.lora_A.weight": info()}, "a LoRA"),
        ({"lora_unet__blocks_0_self_attn_q.lora_up.weight": info()}, "a LoRA"),
        ({"transformer.blocks.0.attn1.to_q.lora_B.weight": info()}, "a LoRA"),
        ({"diffusion_model.blocks.0.ffn.0.diff_b": info()}, "a LoRA"),
        ({"model.diffusion_model.input_blocks.0.0.weight": info()}, "Stable Diffusion"),
        ({"conditioner.embedders.1.model.ln_final.weight": info()}, "SDXL"),
        ({"double_blocks.0.img_attn.qkv.weight": info()}, "Flux"),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": info()}, "CLIP text encoder"),
        ({"encoder.block.0.layer.0.SelfAttention.q.weight": info()}, "not umT5"),
        ({"encoder.down.0.block.0.conv1.weight": info()}, "VAE of another model"),
        ({"model.layers.0.self_attn.q_proj.weight": info()}, "language model"),
        ({"blocks.3.self_attn.q.weight": info()}, "part of a Wan model"),
        ({"wav2vec2.encoder.layers.0.x": info()}, "wav2vec2"),
        ({"something.else": info()}, "no Wan model.*something.else"),
    ],
)
def test_everything_else_is_called_by_its_name(header, words):
    with pytest.raises(ModelFileError, match=rf"file\.safetensors.*{words}"):
        detect(header, {}, "file.safetensors")


def test_t5_is_told_from_umt5():
    header = header_of(to_naming(inventory("umt5_xxl_encoder"), "umt5", "hf"))
    for n in range(1, 24):
        del header[f"encoder.block.{n}.layer.0.SelfAttention.relative_attention_bias.weight"]
    with pytest.raises(ModelFileError, match=r"T5 text encoder .*not umT5"):
        detect(header, {}, "t5xxl_fp16.safetensors")


def test_other_clip_towers_are_refused_by_name():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=14)
    with torch.device("meta"):
        large = CLIPVisionModelWithProjection(config)
    with pytest.raises(ModelFileError, match=r"CLIP ViT-L .*clip_vision_h"):
        detect(header_of(large.state_dict()), {})


def test_heads_of_a_small_clip_come_from_the_metadata():
    header = {
        name: info(shape)
        for name, shape in {
            "visual.cls_embedding": (1, 1, 32), "visual.pos_embedding": (1, 5, 32),
            "visual.patch_embedding.weight": (32, 3, 14, 14), "visual.transformer.0.attn.to_qkv.weight": (96, 32),
            "visual.transformer.1.mlp.0.weight": (64, 32), "visual.transformer.0.mlp.0.weight": (64, 32),
        }.items()
    }  # fmt: skip
    found = detect(header, {"config": '{"num_heads": 4}'}).config
    assert (found.num_heads, found.image_size, found.patch_size, found.num_layers, found.mlp_dim) == (4, 28, 14, 2, 64)
    assert detect(header, {}).config.num_heads == 2


def test_shapes_that_cannot_be_joined_are_named():
    header = header_of(to_naming(inventory("clip_vit_h_visual"), "clip_vision", "hf"))
    header["vision_model.encoder.layers.0.self_attn.k_proj.weight"] = info((7, 9))
    with pytest.raises(ModelFileError, match=r"to_qkv.weight' cannot be made of"):
        detect(header, {})


E4, E5 = torch.float8_e4m3fn, torch.float8_e5m2


@pytest.mark.parametrize(
    ("extra", "metadata", "expected"),
    [
        ({"w.weight": info((64, 64), torch.float16)}, {}, ("plain", torch.float16)),
        ({"w.weight": info((64, 64), E4)}, {}, ("fp8", E4)),
        ({"w.weight": info((64, 64), E5), "w.scale_weight": info((), torch.float32)}, {}, ("scaled-fp8-legacy", E5)),
        ({"w.weight": info((64, 64), E4), "scaled_fp8": info((2,), E4)}, {}, ("scaled-fp8-legacy", E4)),
        ({"w.weight": info((64, 64), E4), "w.weight_scale": info((), torch.float32)}, {}, ("scaled-fp8-new", E4)),
        ({"w.weight": info((64, 64), E4), "w.comfy_quant": info((9,), torch.uint8)}, {}, ("scaled-fp8-new", E4)),
        (
            {"w.weight": info((64, 64), E4)},
            {"_quantization_metadata": '{"format_version": "1.0", "layers": {"w": {"format": "float8_e4m3fn"}}}'},
            ("scaled-fp8-new", E4),
        ),
    ],
)
def test_the_storage_of_a_file_is_told_from_its_header(extra, metadata, expected):
    found = storage({"small.bias": info((4,), torch.float32), **extra}, metadata)
    assert (found.name, found.dtype) == expected


def layers(form: str) -> dict[str, str]:
    return {"_quantization_metadata": json.dumps({"layers": {"w": form}})}


@pytest.mark.parametrize(
    ("extra", "metadata", "words"),
    [
        ({"w.weight": info(dtype=torch.int8)}, {}, "int8_tensorwise"),
        ({"w.weight": info(dtype=torch.uint8)}, {}, "nvfp4"),
        ({"w.weight_scale_2": info((), torch.float32)}, {}, "nvfp4"),
        ({"w.weight": info(dtype=E4), "w.weight_scale": info(dtype=torch.uint8)}, {}, "mxfp8"),
        ({"w.weight_s_rel": info()}, {}, "asym_w4a8_int8"),
        ({"w.weight.absmax": info()}, {}, "bitsandbytes 4-bit"),
        ({"w.SCB": info()}, {}, "bitsandbytes int8"),
        ({"w.qweight": info(dtype=torch.int32)}, {}, "GPTQ"),
        ({}, layers({"format": "mxfp8"}), "mxfp8"),
        ({}, layers({"format": "convrot_w4a4"}), "convrot_w4a4"),
        ({}, layers({"format": "float8_e4m3fn", "convrot": True}), "convrot"),
        ({}, layers({}), "None"),
        ({}, layers("x"), "None"),
        ({}, {"_quantization_metadata": "[]"}, "not an object"),
        ({}, {"_quantization_metadata": "{}"}, "no 'layers'"),
    ],
)
def test_a_quantisation_that_is_not_known_is_refused_by_name(extra, metadata, words):
    header = {**tiny(), **extra}
    with pytest.raises(ModelFileError, match=words):
        storage(header, metadata)
    with pytest.raises(ModelFileError, match=rf"file.*{words}"):
        detect(header, metadata, "file")


def test_a_header_of_twenty_thousand_names_is_judged_in_a_moment():
    for pattern, marker in (
        ("blocks.{}.odd.weight", "odd"),
        ("decoder.up_blocks.{}.odd", "decoder.mid_block.resnets.0.norm1.gamma"),
    ):
        header = dict.fromkeys([*(pattern.format(n) for n in range(20_000)), marker], info())
        begin = time.process_time()
        with pytest.raises(ModelFileError):
            detect(header, {})
        assert time.process_time() - begin < 2
