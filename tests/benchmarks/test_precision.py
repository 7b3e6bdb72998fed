"""No stage loses more in fewer bits than docs/precision.md says."""

import pytest
import torch

from benchmarks import precision
from benchmarks.precision_files import QUANTISED, SHAPES, STORED, random_weights, store
from tests.conftest import ROOT
from wan_core.weights.precision import ISLANDS, REQUESTS

ROOM = 1.5
"""How many times the published error a change, or another machine's arithmetic, may give."""
COMPUTED = {"sampling": ("fp32", "bf16")}
"""Sampling in fp16 is slow on a CPU; one forward of the same model is judged in it."""


def published() -> dict[tuple[str, str, str], str]:
    """(stage, file, compute type) -> cell of the tiny columns, without its emphasis."""
    lines = (ROOT / "docs" / "precision.md").read_text(encoding="utf8").splitlines()
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    head = next(row for row in rows if "tiny fp32" in row)
    columns = {computed: head.index(f"tiny {computed}") for computed in REQUESTS}
    return {
        (row[0], row[1], computed): row[column]
        for row in rows
        if row[0] in precision.STAGES and len(row) == len(head)
        for computed, column in columns.items()
    }


def losses(rows: list[precision.Row]) -> list[str]:
    """A sentence for every row that is worse than its published limit."""
    limits, found = published(), []
    for row in rows:
        cell = limits[row.stage, row.stored, row.computed]
        what = f"{row.stage} from a {row.stored} file, computed in {row.computed},"
        if row.rms_error is None:
            found += [] if cell == "refused" else [f"{what} is refused; docs/precision.md says {cell}."]
        elif cell == "refused":
            found.append(f"{what} is no longer refused, as docs/precision.md says.")
        elif not row.rms_error <= ROOM * float(cell.split()[0]) + 1e-6:  # true for NaN too
            found.append(
                f"{what} is {row.rms_error:.1e} off; docs/precision.md says {cell}. Find what lost the precision, or "
                "publish the new table with its reason (python3 -m benchmarks.precision)."
            )
    return found


@pytest.mark.parametrize("stage", precision.STAGES)
def test_a_stage_is_as_exact_as_published(stage, tmp_path):
    rows = list(precision.measure("tiny", [stage], precision.CPU, tmp_path, COMPUTED.get(stage, tuple(REQUESTS))))
    assert {row.stored for row in rows} == set(STORED)
    assert not losses(rows)
    sizes = {row.reference_rms for row in rows if row.reference_rms is not None}
    assert all(0.1 < size < 10 for size in sizes), f"the signal has an rms of {sizes}; errors mean little there"


@pytest.mark.parametrize("island", ["head.*", "patch_embedding.*", "time_embedding.*"])
def test_a_part_that_is_no_longer_kept_in_fp32_is_seen(island, tmp_path, monkeypatch):
    monkeypatch.setitem(ISLANDS, "dit", tuple(name for name in ISLANDS["dit"] if name != island))
    assert losses(list(precision.measure("tiny", ["velocity"], precision.CPU, tmp_path, ["bf16"])))


def test_every_cell_of_the_tiny_shapes_is_published():
    assert set(published()) == {(stage, file, to) for stage in precision.STAGES for file in STORED for to in REQUESTS}


def test_errors_are_relative_to_the_size_of_the_reference():
    reference = torch.full((4,), 2.0)
    found = precision.compare(torch.tensor([2.0, 2.0, 2.0, 2.4]), reference, frames=True)
    assert found["rms_error"] == pytest.approx(0.1, rel=1e-5)
    assert found["largest_error"] == pytest.approx(0.2, rel=1e-5)
    assert found["psnr_db"] == pytest.approx(20, abs=1e-3)
    assert precision.compare(reference, reference, frames=True)["psnr_db"] is None


@pytest.mark.parametrize("kind", SHAPES["tiny"])
def test_fp8_files_hold_most_of_their_weights_in_fp8(kind):
    weights = random_weights("tiny", kind)
    for stored in ("fp8_e4m3fn", "fp8_scaled"):
        tensors = store(weights, kind, stored)
        quantised = [
            name for name, tensor in tensors.items() if tensor.dtype == torch.float8_e4m3fn and name in weights
        ]
        assert quantised and all(QUANTISED[kind].search(name) for name in quantised)
        assert stored == "fp8_e4m3fn" or all(
            f"{name.removesuffix('weight')}scale_weight" in tensors for name in quantised
        )
        assert set(weights) <= set(tensors)


def test_what_this_device_cannot_show_is_named():
    lines = precision.not_measured(precision.CPU)
    assert any("vae" in line and "on a gpu" in line for line in lines)
    assert all("on a cpu" not in line for line in lines)
