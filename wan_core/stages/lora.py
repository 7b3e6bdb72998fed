"""LoRA files on a model."""

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from ..errors import InputError, MismatchError
from ..runtime.ports import Notify
from ..sampling.loras import AddedLora, Strength
from ..weights.header import regular_file_size
from ..weights.lora import Fit, LoraFile, bars, block_sizes, describe, fit, open_lora
from .file_names import named_experts
from .load import ModelHandle, dit_shapes

OPEN_FILES = 4


def add_lora(
    model: ModelHandle,
    path: Path | None,
    low_noise_path: Path | None = None,
    *,
    strength: Strength,
    strength_low: Strength,
    blocks: str = "",
    strict: bool = False,
    notify: Notify,
) -> ModelHandle:
    """The model with one more LoRA, which is read here; nothing of the model is read or changed.

    Args:
        path: the LoRA of a single model, or of the high-noise expert; None: that expert stays as it is.
        low_noise_path: the LoRA of the low-noise expert of a pair.
        strength, strength_low: how strong it is in each step.
        blocks: which transformer blocks it may change, ``0-9, 20``; empty: everything.
        strict: a tensor of the file that is not used is an error.
        notify: told what was applied and what was not, and why.

    Raises:
        ModelFileError: a file is no LoRA of a Wan transformer, or damaged.
        MismatchError: nothing of it applies or changes anything, or with ``strict`` not everything applies.
        InputError: ``blocks`` cannot be read.
    """
    wanted = parse_blocks(blocks, model.variant.dit.num_layers)
    pair = model.low is not None
    if low_noise_path is not None and not pair:
        notify(f"{model.name} has no low-noise expert: {low_noise_path.name} is not used.")
        low_noise_path = None
    high = None if path is None else _fitted(path, model, "high" if pair else None, wanted, strict, notify)
    low = None if low_noise_path is None else _fitted(low_noise_path, model, "low", wanted, strict, notify)
    added = AddedLora(high=high, low=low, strength_high=strength, strength_low=strength_low)
    return replace(model, loras=(*model.loras, added))


def _fitted(
    path: Path, model: ModelHandle, side: str | None, blocks: frozenset[int] | None, strict: bool, notify: Notify
) -> Fit:
    file = _open(path, regular_file_size(path), path.stat().st_mtime_ns)
    weights = model.low if side == "low" else model.high
    shapes = dit_shapes(model.variant.dit)
    found = fit(file, shapes, side, weights.name)
    if strict and found.ignored:
        raise MismatchError(f"{describe(found)} 'strict' asks for every tensor to be used.")
    kept = found if blocks is None else found.only(blocks)
    if not kept.changes:
        raise MismatchError(
            f"{file.name} changes nothing in the chosen blocks. Choose others, or leave 'blocks' empty."
        )
    picture = bars(block_sizes(kept, shapes))
    notify((f"{side}-noise expert: " if side else "") + f"{describe(kept)} Change per block: {picture}")
    _check_side(file, side, notify)
    return kept


@lru_cache(maxsize=OPEN_FILES)
def _open(path: Path, size: int, mtime_ns: int) -> LoraFile:
    """A file that has not changed is opened once, so that a change of strength reads nothing again."""
    return open_lora(path)


def _check_side(file: LoraFile, side: str | None, notify: Notify) -> None:
    """Both experts have the same shapes, so only names can tell a LoRA on the wrong one."""
    says = named_experts(file.checkpoint.path)
    if side is not None and len(says) == 1 and side not in says:
        notify(f"{file.name} is by its name a LoRA of the {says.pop()}-noise expert, and is on the {side}-noise one.")


def parse_blocks(text: str, count: int, empty: str = "all") -> frozenset[int] | None:
    """``0-9, 20`` -> the numbers; None for an empty text, which means ``empty``."""
    if not text.strip():
        return None
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,3})(?:\s*-\s*(\d{1,3}))?", part.strip())
        first, last = (int(match.group(1)), int(match.group(2) or match.group(1))) if match else (1, 0)
        if not first <= last < count:
            raise InputError(
                f"blocks {text[:60]!r} cannot be read at {part.strip()[:20]!r}. Write numbers and ranges from 0 to "
                f"{count - 1} (the model has {count} blocks), such as '0-9, 20'; leave it empty for {empty}."
            )
        found.update(range(first, last + 1))
    return frozenset(found)
