"""What file names say, where shapes cannot tell: which of several models a file is, and which expert of a pair."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import MismatchError
from ..runtime.ports import Notify
from ..variants import WanVariant

_EXPERT = {
    "high": re.compile(r"(?<![a-z])high(?![a-z])|high.?noise"),
    "low": re.compile(r"(?<![a-z])low(?![a-z])|low.?noise"),
}


def named_experts(path: Path) -> set[str]:
    """The sides that a file's name speaks of: ``high``, ``low``, both or none."""
    return {side for side, pattern in _EXPERT.items() if pattern.search(path.name.lower())}


def is_lone_expert(path: Path, rows: tuple[WanVariant, ...], variant: str) -> bool:
    """Whether a file that could also be a single model is meant as one expert of a pair: by its name, or as asked."""
    pairs = [row.name for row in rows if row.experts == 2]
    return bool(pairs) and (variant in pairs or (variant == "auto" and bool(named_experts(path))))


def choose_row(rows: list[WanVariant], variant: str, path: Path) -> WanVariant:
    """The asked row; else the one of whose name most parts (fun, inp, i2v, 480p ...) stand in the file name; else the
    first."""
    if variant != "auto":
        for row in rows:
            if row.name == variant:
                return row
        raise MismatchError(f"{path.name} cannot be '{variant}'. It can be: {', '.join(row.name for row in rows)}.")
    return max(rows, key=lambda row: _parts_in_name(row, path))


def _parts_in_name(row: WanVariant, path: Path) -> int:
    """How many parts of a row's name stand in a file's."""
    return sum(part in path.name.lower() for part in row.name.split("-"))


def check_pair_names(high: Path, low: Path, rows: Sequence[WanVariant], notify: Notify) -> None:
    """Experts have the same shapes, and those of some models too, so only the names can tell a mistake; a name can be
    wrong, so it is only said."""
    if high == low:
        raise MismatchError(
            f"{high.name} is chosen as the high-noise and as the low-noise file. Choose the other expert, or 'none'."
        )
    says_high, says_low = (named_experts(path) for path in (high, low))
    if says_high == {"low"} and says_low == {"high"}:
        notify(f"The names say that the experts are swapped: high-noise is {high.name}, low-noise is {low.name}.")
    elif len(says_high) == 1 and says_high == says_low:
        notify(f"The names say that both are the {says_high.pop()}-noise expert: {high.name} and {low.name}.")
    models = [_meant(rows, path) for path in (high, low)]
    if None not in models and models[0] != models[1]:
        notify(
            f"The names say that the experts are of two models: {high.name} of {models[0]}, {low.name} of {models[1]}. "
            "Choose both files of one model."
        )


def _meant(rows: Sequence[WanVariant], path: Path) -> str | None:
    """The title of the one row that a file's name speaks of most."""
    counts = {row.title: _parts_in_name(row, path) for row in rows}
    best = [title for title, count in counts.items() if count == max(counts.values())]
    return best[0] if len(best) == 1 else None
