"""LoRA files: every tensor is applied or named with its reason, in right files and in wrong ones."""

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests import tiny
from wan_core.errors import MismatchError, ModelFileError
from wan_core.stages.load import dit_shapes
from wan_core.weights import lora
from wan_core.weights.lora import describe, fit, open_lora
from wan_core.weights.lora_math import merged

PATH = Path(__file__).parents[2] / "goldens" / "lora_formats.safetensors"
GOLDEN = load_file(PATH)
with safe_open(PATH, "pt") as file:
    STRENGTH = json.loads(file.metadata()["config"])["strength"]
BASE = {name.removeprefix("base."): t for name, t in GOLDEN.items() if name.startswith("base.")}
Q = "blocks.0.self_attn.q"
NEXT, WIDE = "diffusion_model.blocks.1.self_attn.q", "diffusion_model.blocks.1.ffn.0"
CPU = torch.device("cpu")


def golden(form: str, what: str) -> dict[str, torch.Tensor]:
    start = f"{what}.{form}."
    return {name.removeprefix(start): tensor for name, tensor in GOLDEN.items() if name.startswith(start)}


def opened(tensors, folder, name="a.safetensors"):
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
    return open_lora(folder / name)


def shapes_of(model: str):
    return dit_shapes(tiny.variant(model).dit)


def complete(found) -> bool:
    """Applied and ignored together are every tensor of the file, each once."""
    used = {name for change in found.changes for name in change.names.values()}
    names = [*used, *(name for ignored in found.ignored.values() for name in ignored)]
    return sorted(names) == sorted(found.file.checkpoint.header) and found.total == len(names)


def test_every_recorded_dialect_is_tried_here():
    assert {name.split(".")[1] for name in GOLDEN if name.startswith("lora.")} == set(STRENGTH)


@pytest.mark.parametrize("form", STRENGTH)
def test_recorded_files_give_the_recorded_weights_and_change_nothing_else(form, tmp_path):
    file = opened(golden(form, "lora"), tmp_path)
    found = fit(file, {name: tuple(t.shape) for name, t in BASE.items()}, None, "the model")
    assert complete(found) and not found.ignored
    assert f"applied {found.total} of {found.total} tensors" in describe(found)
    worn, wanted = found.worn(STRENGTH[form]), golden(form, "out")
    assert set(worn) == set(wanted)
    for name, changes in worn.items():
        torch.testing.assert_close(merged(BASE[name], changes), wanted[name], atol=1e-5, rtol=0)


# --- files made right and wrong --------------------------------------------------------------------------------------


def pair(module: str, out: int = 48, into: int = 48, ends=(".lora_B.weight", ".lora_A.weight"), rank: int = 2):
    return {module + ends[0]: torch.randn(out, rank), module + ends[1]: torch.randn(rank, into)}


def kohya(module: str, **more):
    tensors = pair(module, ends=(".lora_up.weight", ".lora_down.weight"), **more)
    return {**tensors, f"{module}.alpha": torch.tensor(1.0)}


def cast(tensors, dtype):
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def only(tensors, ending: str):
    return {name: tensor for name, tensor in tensors.items() if name.endswith(ending)}


OURS = pair(f"diffusion_model.{Q}")
CLIP = {
    **pair("diffusion_model.blocks.0.cross_attn.k_img"), **pair("diffusion_model.blocks.2.cross_attn.v_img"),
    "diffusion_model.blocks.0.cross_attn.norm_k_img.diff": torch.randn(48),
    "diffusion_model.img_emb.proj.1.diff_b": torch.randn(32),
}  # fmt: skip
HIGH, LOW = pair("transformer.blocks.0.attn1.to_q"), pair("transformer_2.blocks.0.attn1.to_q")
LOHA = {f"hada_w{n}_{part}": (48, 2) if part == "a" else (2, 48) for n in "12" for part in "ab"}
SDXL = {
    **kohya("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k"),
    **kohya("lora_te1_text_model_encoder_layers_0_mlp_fc1"),
}
FLUX = {
    **pair("transformer.single_transformer_blocks.0.attn.to_q"), **pair("transformer.transformer_blocks.0.attn.to_k"),
}  # fmt: skip
SMALL, IMAGE = "t2v-1.3b", "i2v-14b-480p"
INT = "it is stored as torch.int8"
NO_UP, NO_DOWN = "its upper half (lora_up) is missing", "its lower half (lora_down) is missing"
REST, TWICE = "the rest of it is missing", "another name means the same tensor"
SHAPE, RESIZED = lora.OTHER_SHAPE, "it changes the size of the tensor, which is not supported"


def named(module: str, parts) -> dict[str, torch.Tensor]:
    return {f"{module}.{role}": torch.randn(shape) for role, shape in parts.items()}


@dataclass
class Row:
    """A file, and what must be said of it: how many tensors apply and how many do not by reason, or the refusal."""

    id: str
    tensors: dict
    applied: int = 0
    ignored: dict = field(default_factory=dict)
    error: type | None = None
    words: tuple = ()
    model: str = SMALL
    side: str | None = None


def taken(id, tensors, applied, ignored=None, **more):
    return Row(id, tensors, applied, ignored or {}, **more)


def refused(id, tensors, error, *words, **more):
    return Row(id, tensors, error=error, words=words, **more)


RIGHT = [
    taken("kohya", kohya("lora_unet_blocks_0_self_attn_q"), 3),
    taken("fun", kohya("lora_unet__blocks_2_ffn_0", out=64), 3),
    taken("peft", OURS, 2),
    taken("peft with adapter name",
          pair(f"base_model.model.{Q}", ends=(".lora_B.default.weight", ".lora_A.default.weight")), 2),
    taken("diffusers", HIGH, 2),
    taken("diffsynth", pair("pipe.dit.blocks.1.ffn.2", into=64), 2),
    taken("no prefix", pair("head.head", out=64), 2),
    taken("lycoris loha", named("lycoris_blocks_0_self_attn_q", LOHA), 4),
    taken("dora", {**OURS, f"diffusion_model.{Q}.dora_scale": torch.randn(48, 1)}, 3),
    taken("magnitude", {**OURS, f"diffusion_model.{Q}.lora_magnitude_vector": torch.randn(48)}, 3),
    taken("bias of up", {**OURS, f"diffusion_model.{Q}.lora_B.bias": torch.randn(48)}, 3),
    taken("lokr", named("lora_unet_blocks_0_self_attn_q", {
        "lokr_w1": (4, 4), "lokr_w2_a": (12, 2), "lokr_w2_b": (2, 12)}), 3),
    taken("lokr with a core on the convolution", named("lora_unet_patch_embedding", {
        "lokr_w1": (4, 4), "lokr_w2_a": (2, 12), "lokr_w2_b": (2, 4), "lokr_t2": (2, 2, 1, 2, 2)}), 4),
    taken("convolution", named("diffusion_model.patch_embedding", {
        "lora_B.weight": (48, 2, 1, 1, 1), "lora_A.weight": (2, 16, 1, 2, 2)}), 2),
    taken("differences of all kinds", {
        "diffusion_model.blocks.0.norm3.diff": torch.randn(48),
        "diffusion_model.blocks.0.norm3.diff_b": torch.randn(48),
        "diffusion_model.blocks.0.diff_m": torch.randn(1, 6, 48), "diffusion_model.head.diff_m": torch.randn(1, 2, 48),
        "diffusion_model.blocks.0.self_attn.norm_q.w_norm": torch.randn(48),
        "diffusion_model.time_projection.1.set_weight": torch.randn(288, 48)}, 6),
    taken("two dialects", {
        **kohya("lora_unet_blocks_0_self_attn_q"), **pair("diffusion_model.blocks.1.ffn.2", into=64)}, 5),
    taken("one module in two dialects", {
        **only(OURS, "B.weight"), **only(kohya("lora_unet_blocks_0_self_attn_q"), "down.weight")}, 2),
    taken("bf16", cast(OURS, torch.bfloat16), 2),
    taken("fp16", cast(OURS, torch.float16), 2),
    taken("fp8", cast(OURS, torch.float8_e4m3fn), 2),
    taken("alpha as a whole number", {**OURS, f"diffusion_model.{Q}.alpha": torch.tensor(4)}, 3),
    taken("clip keys on their model", CLIP, 6, model=IMAGE),
    taken("clip keys elsewhere", {**OURS, **CLIP}, 2, {lora.NO_CLIP: 6}),
    taken("no side on high", OURS, 2, model="t2v-a14b", side="high"),
    taken("no side on low", OURS, 2, model="t2v-a14b", side="low"),
    taken("both sides on a single model", {**HIGH, **LOW}, 2, {lora.OTHER_SIDE: 2}),
    taken("both sides on high", {**HIGH, **LOW}, 2, {lora.OTHER_SIDE: 2}, model="t2v-a14b", side="high"),
    taken("both sides on low", {**HIGH, **LOW}, 2, {lora.OTHER_SIDE: 2}, model="t2v-a14b", side="low"),
    taken("low alone on low", LOW, 2, model="t2v-a14b", side="low"),
]  # fmt: skip
WRONG = [
    taken("upper halves gone", {**OURS, **only(pair(NEXT), "A.weight")}, 2, {NO_UP: 1}),
    taken("lower halves gone", {**OURS, **only(pair(NEXT), "B.weight")}, 2, {NO_DOWN: 1}),
    taken("alpha alone", {**OURS, f"{WIDE}.alpha": torch.tensor(1.0)}, 2, {REST: 1}),
    taken("part of a loha", {**OURS, "lora_unet_blocks_1_self_attn_q.hada_w1_a": torch.randn(48, 2)}, 2, {REST: 1}),
    taken("half a lokr", {
        **OURS, **named("lora_unet_blocks_1_self_attn_q", {"lokr_w1": (4, 4), "lokr_w2_a": (12, 2)})}, 2, {REST: 2}),
    taken("whole numbers", {**OURS, **cast(pair(NEXT), torch.int8)}, 2, {INT: 2}),
    taken("blocks beyond the model", {**OURS, **pair("diffusion_model.blocks.3.self_attn.q")}, 2, {lora.NOT_THERE: 2}),
    taken("other names between", {**OURS, "logit_scale": torch.ones(1)}, 2, {lora.NOT_WAN: 1}),
    taken("the same under two names", {**OURS, **kohya("lora_unet_blocks_0_self_attn_q")}, 3, {TWICE: 2}),
    taken("the same in two namings", {**HIGH, **pair(f"transformer.{Q}")}, 2, {TWICE: 2}),
    taken("36 channels on 16", {**OURS, **named("diffusion_model.patch_embedding", {
        "lora_B.weight": (48, 2, 1, 1, 1), "lora_A.weight": (2, 36, 1, 2, 2)})}, 2, {lora.OTHER_INPUTS: 2}),
    taken("16 channels on 36", {**OURS, "diffusion_model.patch_embedding.diff": torch.randn(48, 16, 1, 2, 2)}, 2,
          {lora.OTHER_INPUTS: 1}, model="i2v-a14b", side="high"),
    taken("reshaped", {**OURS, "diffusion_model.patch_embedding.reshape_weight": torch.tensor([48, 36, 1, 2, 2]),
                       **named("diffusion_model.patch_embedding", {
                           "lora_up.weight": (48, 2), "lora_down.weight": (2, 144)})},
          2, {RESIZED: 3}),
    taken("one tensor of another width", {**OURS, **pair(WIDE, out=72)}, 2, {SHAPE: 2}),
    taken("transposed", {**OURS, **pair(WIDE, out=48, into=64)}, 2, {SHAPE: 2}),
    taken("a transposed difference", {**OURS, f"{WIDE}.diff": torch.randn(48, 64)}, 2,
          {SHAPE: 1}),
    taken("ranks that differ", {**OURS, f"{WIDE}.lora_up.weight": torch.randn(64, 3),
                                f"{WIDE}.lora_down.weight": torch.randn(2, 48)}, 2, {SHAPE: 2}),
    taken("halves without dimensions", {**OURS, f"{WIDE}.lora_up.weight": torch.tensor(1.0),
                                        f"{WIDE}.lora_down.weight": torch.tensor(1.0)}, 2, {SHAPE: 2}),
    taken("alpha of two values", {**OURS, **pair(NEXT),
                                  f"{NEXT}.alpha": torch.ones(2)}, 2, {SHAPE: 3}),
    taken("dora of another length", {**OURS, **pair(NEXT),
                                     f"{NEXT}.dora_scale": torch.ones(47, 1)}, 2, {SHAPE: 3}),
    refused("only upper halves", only(OURS, "B.weight"), MismatchError, "none of its 1 tensors", NO_DOWN),
    refused("sdxl", SDXL, ModelFileError, "SDXL", "not of a Wan transformer", "Choose a Wan LoRA"),
    refused("flux", FLUX, ModelFileError, "Flux", "Choose a Wan LoRA"),
    refused("flux with its last layer", {**FLUX, **pair("transformer.proj_out", out=64, into=3072)}, MismatchError,
            "none of its 6 tensors", lora.NOT_WAN),
    refused("hunyuan", pair("diffusion_model.double_blocks.0.img_attn_qkv"), ModelFileError, "Hunyuan"),
    refused("sd3", pair("diffusion_model.joint_blocks.0.x_block.attn.qkv"), ModelFileError, "Stable Diffusion 3"),
    refused("ltx", pair("diffusion_model.transformer_blocks.0.attn1.to_q"), ModelFileError, "LTX"),
    refused("text encoder", pair("text_encoder.encoder.block.0.layer.0.SelfAttention.q"), ModelFileError,
            "text encoder"),
    refused("vace", pair("diffusion_model.vace_blocks.0.self_attn.q"), ModelFileError, "VACE"),
    refused("animate", pair("diffusion_model.face_adapter.fuser_blocks.0.linear1_q"), ModelFileError, "Animate"),
    refused("a model", {f"{Q}.weight": torch.randn(48, 48)}, ModelFileError, "holds no LoRA", f"{Q}.weight"),
    refused("no names at all", {"x": torch.randn(2)}, ModelFileError, "holds no LoRA", "begin with x"),
    refused("nothing but whole numbers", cast(OURS, torch.int8), ModelFileError, "holds no LoRA"),
    refused("another width", pair(f"diffusion_model.{Q}", 64, 64), MismatchError, "model 64 wide", "is 48 wide"),
    refused("1.3B", pair(f"diffusion_model.{Q}", 1536, 1536, rank=1), MismatchError, "made for a 1.3B;"),
    refused("5B", {f"diffusion_model.{Q}.diff": torch.zeros(3072, 1)}, MismatchError, "made for a 5B;"),
    refused("14B image", {**pair(f"diffusion_model.{Q}", 5120, 5120, rank=1), **CLIP}, MismatchError,
            "14B image-to-video or first-last-frame model of Wan 2.1", f"6 {lora.NO_CLIP}"),
    refused("only clip keys", CLIP, MismatchError, f"6 {lora.NO_CLIP}"),
    refused("all blocks beyond", pair("diffusion_model.blocks.30.self_attn.q"), MismatchError, lora.NOT_THERE),
    refused("low alone on a single model", LOW, MismatchError, lora.OTHER_SIDE),
    refused("low alone on high", LOW, MismatchError, lora.OTHER_SIDE, model="t2v-a14b", side="high"),
]  # fmt: skip


def test_the_table_is_as_long_as_it_should_be():
    assert len(RIGHT) + len(WRONG) >= 30 and len(WRONG) >= 12
    assert len({row.id for row in (*RIGHT, *WRONG)}) == len(RIGHT) + len(WRONG)


@pytest.mark.parametrize("row", [row for row in (*RIGHT, *WRONG) if row.error is None], ids=lambda row: row.id)
def test_every_tensor_is_applied_or_has_its_reason(row, tmp_path):
    shapes = shapes_of(row.model)
    found = fit(opened(row.tensors, tmp_path), shapes, row.side, "the model")
    assert complete(found)
    assert {reason: len(names) for reason, names in found.ignored.items()} == row.ignored
    assert (found.applied, found.total) == (row.applied, len(row.tensors))
    assert ("not applied" in lora.describe(found)) == (row in WRONG)
    said = describe(found)
    assert f"applied {row.applied} of {len(row.tensors)}" in said
    assert all(
        f"{count} {'ignored' if reason in lora.HARMLESS else 'not applied'}: {reason}" in said
        for reason, count in row.ignored.items()
    )
    for target, changes in found.worn(1.0).items():
        made = merged(torch.zeros(shapes[target]) + 0.1, changes)
        assert made.shape == shapes[target] and (made - 0.1).abs().max() > 1e-3


@pytest.mark.parametrize("row", [row for row in WRONG if row.error], ids=lambda row: row.id)
def test_a_file_of_which_nothing_applies_is_refused_by_what_it_is(row, tmp_path):
    with pytest.raises(row.error) as caught:
        fit(opened(row.tensors, tmp_path), shapes_of(row.model), row.side, "the model")
    said = str(caught.value)
    assert "a.safetensors" in said and "Choose" in said
    assert all(word in said for word in row.words), said
    if row.error is MismatchError:
        causes = said.split("applies to the model", 1)[1]
        assert sum(int(n) for n in re.findall(r"(?:\(|; )(\d+) ", causes.split("). ")[0])) == len(row.tensors), said


def test_each_expert_takes_the_tensors_of_its_own_prefix(tmp_path):
    file, shapes = opened({**HIGH, **LOW}, tmp_path), shapes_of("t2v-a14b")
    for side, tensors in (("high", HIGH), ("low", LOW)):
        (changes,) = fit(file, shapes, side, "the model").worn(1.0).values()
        up, down = tensors.values()
        torch.testing.assert_close(merged(torch.zeros(48, 48), changes), up @ down, atol=1e-5, rtol=0)


def test_alpha_counts_as_a_whole_number_too(tmp_path):
    whole = opened({**OURS, f"diffusion_model.{Q}.alpha": torch.tensor(4)}, tmp_path)
    (changes,) = fit(whole, shapes_of(SMALL), None, "the model").worn(1.0).values()
    up, down = OURS.values()
    torch.testing.assert_close(merged(torch.zeros(48, 48), changes), 2 * up @ down, atol=1e-5, rtol=0)


def test_a_rank_of_nothing_changes_nothing(tmp_path):
    file = opened({**pair(f"diffusion_model.{Q}", rank=0), f"diffusion_model.{Q}.alpha": torch.tensor(1.0)}, tmp_path)
    (changes,) = fit(file, shapes_of(SMALL), None, "the model").worn(1.0).values()
    assert torch.equal(merged(torch.ones(48, 48), changes), torch.ones(48, 48))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("where", list(OURS))
def test_values_that_are_not_finite_are_refused_when_they_are_read(value, dtype, where, tmp_path):
    tensors = {name: tensor.clone().to(dtype) for name, tensor in OURS.items()}
    tensors[where][1, 1] = value
    found = fit(opened(tensors, tmp_path), shapes_of(SMALL), None, "the model")
    with pytest.raises(ModelFileError, match="not finite") as caught:
        found.file.parts(found.changes[0], CPU)
    assert repr(where) in str(caught.value) and "a.safetensors" in str(caught.value)


def test_a_tensor_is_read_from_disk_once(tmp_path):
    file, read = opened(OURS, tmp_path), []
    get = file.checkpoint.get
    file.checkpoint.get = lambda name: read.append(name) or get(name)
    (change,) = fit(file, shapes_of(SMALL), None, "the model").changes
    first, second = file.parts(change, CPU), file.parts(change, CPU)
    assert sorted(read) == sorted(OURS)
    assert all(torch.equal(first[role], second[role]) for role in ("up", "down"))


BROKEN = {
    "cut in the data": (lambda raw: raw[:-100], "cut"),
    "cut in the header": (lambda raw: raw[:40], "cut"),
    "empty": (lambda raw: b"", "empty"),
    "with bytes behind it": (lambda raw: raw + b"x", "trailing"),
    "a web page": (lambda raw: b"<!DOCTYPE html><html></html>", "web page"),
    "a pointer": (lambda raw: b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_damaged_file_is_refused_in_a_sentence(damage, tmp_path):
    change, word = BROKEN[damage]
    save_file(OURS, tmp_path / "a.safetensors")
    path = tmp_path / "b.safetensors"
    path.write_bytes(change((tmp_path / "a.safetensors").read_bytes()))
    with pytest.raises(ModelFileError, match=word) as caught:
        open_lora(path)
    assert "b.safetensors" in str(caught.value)


def test_only_some_blocks_are_kept_and_what_has_no_block_goes(tmp_path):
    tensors = {**OURS, **pair("diffusion_model.blocks.2.self_attn.q"), **pair("diffusion_model.head.head", out=64)}
    found = fit(opened(tensors, tmp_path), shapes_of(SMALL), None, "the model")
    assert set(found.only(frozenset({2, 1})).worn(1.0)) == {"blocks.2.self_attn.q.weight"}
    assert not found.only(frozenset()).worn(1.0)
    assert len(found.worn(1.0)) == 3


def test_a_weight_can_be_changed_in_several_ways_at_once(tmp_path):
    difference = torch.randn(48, 48)
    found = fit(opened({**OURS, f"diffusion_model.{Q}.diff": difference}, tmp_path), shapes_of(SMALL), None, "m")
    (changes,) = found.worn(0.5).values()
    up, down = OURS.values()
    wanted = 0.5 * (difference + up @ down)
    torch.testing.assert_close(merged(torch.zeros(48, 48), changes), wanted, atol=1e-5, rtol=0)


def real(name: str) -> dict[str, tuple[int, ...]]:
    found = json.loads((PATH.parent / "keys" / f"{name}.json").read_text())
    return {key: tuple(shape) for key, shape in found.items()}


@pytest.mark.parametrize(
    ("made_for", "used_on", "ignored"),
    [
        ("t2v_14B", "t2v_14B", {}),
        ("t2v_14B", "i2v_14B_wan21", {lora.OTHER_INPUTS: 2}),
        ("i2v_14B_wan21", "t2v_14B", {lora.NO_CLIP: 164, lora.OTHER_INPUTS: 2}),
    ],
)
def test_a_lora_of_every_layer_of_a_real_model(made_for, used_on, ignored, tmp_path):
    """Rank 1, so that a file for all layers stays small."""
    tensors: dict[str, torch.Tensor] = {}
    for key, shape in real(made_for).items():
        if key.endswith(".weight") and len(shape) > 1:
            module = f"diffusion_model.{key.removesuffix('.weight')}"
            tensors[f"{module}.lora_B.weight"] = torch.ones(shape[0], 1, *(1 for _ in shape[2:]), dtype=torch.float16)
            tensors[f"{module}.lora_A.weight"] = torch.ones(1, *shape[1:], dtype=torch.float16)
    found = fit(opened(tensors, tmp_path), real(used_on), None, "the model")
    assert complete(found)
    counts: dict[str, int] = defaultdict(int)
    for reason, names in found.ignored.items():
        counts[reason] += len(names)
    assert dict(counts) == ignored
    assert found.file.width == 5120
    assert found.file.has_clip == made_for.startswith("i2v")
