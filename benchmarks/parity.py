"""Compare wan_core with reference vectors, file by file and tensor by tensor.

``python3 -m benchmarks.parity --goldens DIR [--json] [--allow-uncovered]``

DIR holds safetensors files with the metadata keys ``config`` (JSON), ``source`` and ``note``; tensors are named
``sd.*`` (weights, official names), ``in.*``, ``out.*`` (expected) and ``inter.*`` (for debugging, not judged). A file's
kind is the first part of its name and what its config says. Everything runs in float32 on the CPU.

Exit status: 0 when every expected tensor was judged and is within tolerance; 1 on any miss, or any file or tensor that
cannot be judged. Kinds that wan_core does not have yet stand in :data:`UNCOVERED`; they are printed, and are a failure
unless ``--allow-uncovered`` is given.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from .parity_golden import Expected, Golden, UnknownFileError
from .parity_kinds import JUDGES

UNCOVERED: dict[str, str] = {
    "dit s2v": "S2V",
    "quant": "GGUF and int8 storage",
}
"""Kinds not built yet."""


@dataclass(frozen=True)
class Row:
    """The verdict on one expected tensor (or on a whole file where it has no tensors to judge)."""

    file: str
    kind: str
    tensor: str
    max_abs_error: float | None
    tolerance: float | None
    verdict: str
    """pass, miss, uncovered or cannot judge."""
    why: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.parity", description=__doc__.split("\n")[0])
    parser.add_argument("--goldens", type=Path, required=True, metavar="DIR", help="folder of golden files")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--allow-uncovered", action="store_true", help="kinds not built yet are no failure")
    parser.add_argument("--summary", action="store_true", help="one row a file, its worst tensor")
    args = parser.parse_args()
    files = sorted(args.goldens.glob("*.safetensors")) if args.goldens.is_dir() else []
    if not files:
        parser.error(f"{args.goldens} is no folder with .safetensors files")
    rows = [row for file in files for row in judge_file(file)]
    bad = {"miss", "cannot judge"} | (set() if args.allow_uncovered else {"uncovered"})
    failed = [row for row in rows if row.verdict in bad]
    if args.json:
        print(json.dumps({"passed": not failed, "uncovered_kinds": UNCOVERED, "rows": [asdict(row) for row in rows]}))
    else:
        _print(_worst(rows) if args.summary else rows, rows, failed, args.allow_uncovered)
    return 1 if failed else 0


def judge_file(path: Path) -> list[Row]:
    """Every expected tensor of one file with its verdict."""
    try:
        golden = Golden(path)
    except UnknownFileError as error:
        return [Row(path.name, "?", "-", None, None, "cannot judge", str(error))]
    kind = golden.kind
    if kind in UNCOVERED:
        return [Row(path.name, kind, "-", None, None, "uncovered", UNCOVERED[kind])]
    if kind not in JUDGES:
        return [Row(path.name, kind, "-", None, None, "cannot judge", f"unknown kind; known: {', '.join(JUDGES)}")]
    if not golden.expected:
        return [Row(path.name, kind, "-", None, None, "cannot judge", "no out.* tensors")]
    try:
        with torch.no_grad():
            results = JUDGES[kind](golden)
    except Exception as error:  # noqa: BLE001  a file that breaks the runner is a failed file, not the end of the run
        return [Row(path.name, kind, "-", None, None, "cannot judge", f"{type(error).__name__}: {error}")]
    return [_judge(path.name, kind, name, golden.tensor(name), results.get(name)) for name in golden.expected]


def _judge(file: str, kind: str, name: str, want: Tensor, got: Expected | None) -> Row:
    if got is None:
        return Row(file, kind, name, None, None, "cannot judge", "wan_core has no value for this tensor")
    if got.value.shape != want.shape:
        why = f"shape {list(got.value.shape)}, expected {list(want.shape)}"
        return Row(file, kind, name, None, got.tolerance, "miss", why)
    error = (got.value.double() - want.double()).abs()
    if got.where is not None:
        error = error[got.where.expand_as(error)]
    worst = error.max().item() if error.numel() else 0.0
    return Row(file, kind, name, worst, got.tolerance, "pass" if worst <= got.tolerance else "miss")


def _worst(rows: list[Row]) -> list[Row]:
    """One row a file: what failed, else its largest error relative to the tolerance."""

    def badness(row: Row) -> tuple[bool, float]:
        return row.verdict != "pass", (row.max_abs_error or 0) / (row.tolerance or 1)

    files = dict.fromkeys(row.file for row in rows)
    return [max((row for row in rows if row.file == file), key=badness) for file in files]


def _print(shown: list[Row], rows: list[Row], failed: list[Row], allow_uncovered: bool) -> None:
    width = max(len(f"{row.file} {row.tensor}") for row in shown)
    for row in shown:
        figures = "" if row.max_abs_error is None else f"{row.max_abs_error:.2e} <= {row.tolerance:.0e}"
        print(f"{row.file + ' ' + row.tensor:<{width}}  {figures:<20} {row.verdict} {row.why}".rstrip())
    counts = Counter(row.verdict for row in rows)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    print(f"not built yet: {', '.join(UNCOVERED.values())}" + ("" if allow_uncovered else " (needs --allow-uncovered)"))
    print("FAILED" if failed else "PASSED")


if __name__ == "__main__":
    sys.exit(main())
