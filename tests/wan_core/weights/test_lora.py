"""LoRA files: every tensor is applied or named with its reason, in right files and in wrong ones."""

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.lora_rows import BROKEN, HIGH, LOW, NEXT, OURS, RIGHT, SMALL, WRONG, Q, pair
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


@pytest.mark.parametrize(
    ("module", "shapes", "ignored"),
    [
        (NEXT, {"up": (48, 2), "down": (2, 48), "bias": (47,)}, {lora.OTHER_SHAPE: 1}),
        (NEXT, {"up": (40, 2), "down": (2, 48), "bias": (48,)}, {lora.OTHER_SHAPE: 1}),
        (NEXT.replace("s.1.", "s.7."), {"up": (48, 2), "down": (2, 48), "bias": (48,)}, {lora.NOT_THERE: 3}),
        ("diffusion_model.patch_embedding", {"up": (48, 2), "down": (2, 9), "bias": (47,)},
         {lora.OTHER_INPUTS: 1, lora.OTHER_SHAPE: 2}),
    ],
)  # fmt: skip
def test_a_tensor_that_two_changes_share_is_counted_once(module, shapes, ignored, tmp_path):
    """The bias of PEFT's upper half is scaled by that half's rank, so both changes name it."""
    ends = {"up": "lora_B.weight", "down": "lora_A.weight", "bias": "lora_B.bias"}
    more = {f"{module}.{ends[role]}": torch.randn(shape) for role, shape in shapes.items()}
    found = fit(opened({**OURS, **more}, tmp_path), shapes_of(SMALL), None, "m")
    assert complete(found)
    assert {reason: len(names) for reason, names in found.ignored.items()} == ignored


def test_blocks_that_are_left_out_count_a_shared_tensor_once(tmp_path):
    more = pair(NEXT) | {f"{NEXT}.lora_B.bias": torch.randn(48)}
    found = fit(opened({**OURS, **more}, tmp_path), shapes_of(SMALL), None, "m").only(frozenset({0}))
    assert complete(found) and found.applied == 2 and len(found.ignored[lora.OUTSIDE]) == 3


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


@pytest.mark.parametrize("row", BROKEN, ids=lambda row: row.id)
def test_a_damaged_file_is_refused_in_a_sentence(row, tmp_path):
    save_file(row.tensors, tmp_path / "a.safetensors")
    path = tmp_path / "b.safetensors"
    path.write_bytes(row.damage((tmp_path / "a.safetensors").read_bytes()))
    with pytest.raises(ModelFileError, match=row.words[0]) as caught:
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
