"""What is said of LoRA files, right ones and wrong ones: ``python3 -m benchmarks.lora_report``.

Makes the files of the table in ``tests/wan_core/weights/test_lora.py`` (wrong base, wrong side, SDXL, mixed, halves,
zeros ...) and damaged ones, puts each on a model and prints what a user is told, with whether that is the verdict that
it should be. Fails if any is not.
"""

import sys
import tempfile
from pathlib import Path

import torch

from tests.wan_core.weights.test_lora import BROKEN, OURS, RIGHT, WRONG, Row, opened, shapes_of
from wan_core.errors import WanError
from wan_core.weights.lora import describe, fit, open_lora


def verdict(row: Row, folder: Path) -> tuple[str, bool]:
    """What is said, and whether it is what the table expects: the counts by reason, or the refusal and its words."""
    try:
        found = fit(opened(row.tensors, folder), shapes_of(row.model), row.side, "the model")
    except WanError as error:
        return str(error), row.error is not None and isinstance(error, row.error) and all(
            w in str(error) for w in row.words
        )
    ignored = {reason: len(names) for reason, names in found.ignored.items()}
    return describe(found), row.error is None and (found.applied, ignored) == (row.applied, row.ignored)


def damaged(name: str, folder: Path) -> tuple[str, bool]:
    """A file that is cut or overwritten has to be refused when it is opened."""
    opened(OURS, folder)
    path = folder / "a.safetensors"
    change, word = BROKEN[name]
    path.write_bytes(change(path.read_bytes()))
    try:
        open_lora(path)
    except WanError as error:
        return str(error), word in str(error)
    return "opened", False


def main() -> int:
    torch.manual_seed(0)
    rows = [("right", row.id, verdict, row) for row in RIGHT] + [("wrong", row.id, verdict, row) for row in WRONG]
    rows += [("wrong", name, damaged, name) for name in BROKEN]
    good = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, (kind, name, judge, what) in enumerate(rows, start=1):
            said, is_right = judge(what, Path(folder))
            good += is_right
            print(f"{number:3} [{kind}] {name}: {'as expected' if is_right else 'NOT AS EXPECTED'}\n      {said}")
    wrong = sum(kind == "wrong" for kind, *_ in rows)
    print(f"{len(rows)} files, {wrong} of them wrong on purpose; {good} verdicts as expected")
    return 0 if good == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
