"""LoRA files right and wrong, and what users are told of each.

``python3 -m benchmarks.lora_report [--only TEXT]`` makes the files of tests/lora_rows.py (other bases, other families,
the wrong side of a pair, cut files, mixed dialects, missing halves, zeros, values that are not finite ...), puts each
on a small model as its node does, and prints what is said. It fails if a verdict is not the expected one.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests import tiny
from tests.lora_rows import BROKEN, ON_A_MODEL, RIGHT, WRONG, Row
from wan_core.errors import WanError
from wan_core.sampling.loras import constant
from wan_core.stages.lora import add_lora
from wan_core.weights.lora import HARMLESS

ON_PURPOSE = [*WRONG, *BROKEN, *ON_A_MODEL]
ROWS = [*RIGHT, *ON_PURPOSE]
model = lru_cache(tiny.model)


@dataclass(frozen=True, kw_only=True)
class Report:
    """``outcome``: ``accepted`` or the kind of error; ``said``: every notice, or the message; ``problems``: what is not
    as expected."""

    row: Row
    outcome: str
    said: str
    problems: tuple[str, ...]


def write(row: Row, folder: Path) -> Path:
    """The file of a row."""
    path = folder / row.file
    save_file({name: tensor.contiguous() for name, tensor in row.tensors.items()}, path)
    if row.damage:
        path.write_bytes(row.damage(path.read_bytes()))
    return path


def report(row: Row, folder: Path) -> Report:
    """Put the file on its model; nothing of the model is read."""
    path, told, full = write(row, folder), [], constant(1.0)
    high, low = (None, path) if row.side == "low" else (path, None)
    outcome = "accepted"
    try:
        add_lora(model(row.model), high, low, strength=full, strength_low=full, notify=told.append)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is judged
        outcome, told = type(error).__name__, [str(error)]
        if not isinstance(error, WanError):
            told.append("(no error that a user should see)")
    said = " ".join(told)
    return Report(row=row, outcome=outcome, said=said, problems=tuple(_problems(row, outcome, said)))


def _problems(row: Row, outcome: str, said: str) -> list[str]:
    expected = row.error.__name__ if row.error else "accepted"
    wanted = [*row.words, row.file]
    if row.error is None and row.applied:
        wanted.append(f"applied {row.applied:,} of {len(row.tensors):,} tensors")
    wanted += [
        f"{count:,} {'ignored' if reason in HARMLESS else 'not applied'}: {reason}"
        for reason, count in row.ignored.items()
    ]
    found = [f"{word!r} is not said" for word in wanted if word not in said]
    if outcome != expected:
        found.insert(0, f"{outcome}, expected {expected}")
    if row.error is not None and not said.endswith("."):
        found.append("no whole sentence")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="files whose name holds this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    wrong, rows = 0, [row for row in ROWS if args.only in row.id]
    for row in rows:
        with tempfile.TemporaryDirectory() as folder:
            found = report(row, Path(folder))
        wrong += bool(found.problems)
        place = f"{row.model}, {row.side}" if row.side else row.model
        kind = "wrong on purpose" if row in ON_PURPOSE else "right"
        print(f"{row.id} ({kind}) on {place}\n    {found.outcome}: {found.said}")
        print("".join(f"    NOT AS EXPECTED: {problem}\n" for problem in found.problems), end="")
    on_purpose = sum(row in ON_PURPOSE for row in rows)
    print(json.dumps({"files": len(rows), "wrong_on_purpose": on_purpose, "as_expected": len(rows) - wrong}))
    return 1 if wrong or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
