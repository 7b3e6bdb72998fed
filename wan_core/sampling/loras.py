"""LoRAs over the steps of a run: which changes each expert wears at which strength."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..errors import InputError
from ..weights.lora import Fit
from ..weights.lora_math import Worn

MAX_STRENGTH = 100.0
MAX_PIECES = 100
ROUNDING = 1e-6
"""7% of 100 steps is step 7, though 0.07 * 100 is a little more."""
GRAMMAR = "a number, or STEP: STRENGTH pieces such as '0: 1, 4: 0.5' or '0%: 1, 50%: 0'"
_PIECE = re.compile(r"(\d{1,6}|\d{1,3}(?:\.\d{1,6})?%)\s*:\s*([+-]?\d{1,4}(?:\.\d{1,9})?|[+-]?\.\d{1,9})")


@dataclass(frozen=True, kw_only=True)
class Strength:
    """A strength for each step: ``pieces`` of (first step, is it a share of all steps, strength), in order."""

    pieces: tuple[tuple[float, bool, float], ...]

    def at(self, step: int, steps: int) -> float:
        """The strength of step ``step`` (from 0) of ``steps``; 0 before the first piece."""
        value = 0.0
        for begin, is_share, strength in self.pieces:
            if step >= (begin * steps - ROUNDING if is_share else begin):
                value = strength
        return value

    @property
    def is_constant(self) -> bool:
        """Whether it is the same in every step."""
        return len(self.pieces) == 1 and self.pieces[0][0] == 0

    def scaled(self, factor: float) -> "Strength":
        """Every strength times ``factor``; within the same limits."""
        return Strength(pieces=tuple((begin, share, _checked(value * factor)) for begin, share, value in self.pieces))


def constant(value: float) -> Strength:
    """The same strength in every step."""
    return Strength(pieces=((0, False, _checked(float(value))),))


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a text over steps is about: its name and grammar for sentences, and what judges each value."""

    name: str
    grammar: str
    checked: Callable[[float], float]


def _checked(value: float) -> float:
    if not abs(value) <= MAX_STRENGTH:  # true for NaN too
        raise InputError(f"a LoRA's strength must be from -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}; got {value}.")
    return value


STRENGTH = Course(name="strength over steps", grammar=GRAMMAR, checked=_checked)


def parse_strength(text: str, course: Course = STRENGTH) -> Strength:
    """Read a strength (or something else, see ``course``) over steps.

    Args:
        text: ``STEP: STRENGTH`` pieces with commas between them. A step counts from 0 or is a percentage of all steps;
            from it on the strength holds, until the next piece. One number alone holds for all steps.

    Raises:
        InputError: it is something else, or the steps do not rise.
    """
    text = text.strip()
    if ":" not in text:
        return Strength(pieces=((0, False, course.checked(_number(text, course))),))
    parts = text.split(",")
    if len(parts) > MAX_PIECES:
        raise InputError(f"a {course.name} has at most {MAX_PIECES} pieces; got {len(parts)}.")
    pieces: list[tuple[float, bool, float]] = []
    for part in parts:
        match = _PIECE.fullmatch(part.strip())
        if match is None:
            raise InputError(f"{part.strip()[:60]!r} is no piece of a {course.name}. Write {course.grammar}.")
        begin, is_share = match.group(1), match.group(1).endswith("%")
        first = float(begin.rstrip("%")) / (100 if is_share else 1)
        pieces.append((first, is_share, course.checked(float(match.group(2)))))
    if len({is_share for _, is_share, _ in pieces}) > 1:
        raise InputError(
            f"a {course.name} counts all its steps the same way; got {text[:60]!r}. Write {course.grammar}."
        )
    if any(a[0] >= b[0] for a, b in pairwise(pieces)) or pieces[-1][0] > (1 if pieces[0][1] else 1e6):
        raise InputError(f"the steps of a {course.name} must rise (percentages to 100%); got {text[:60]!r}.")
    return Strength(pieces=tuple(pieces))


def _number(text: str, course: Course) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{text[:60]!r} is no {course.name}. Write {course.grammar}.") from None


@dataclass(frozen=True, kw_only=True)
class AddedLora:
    """A LoRA on a model: how it fits each expert (None: not on that one), and how strong it is there."""

    high: Fit | None
    low: Fit | None
    strength_high: Strength
    strength_low: Strength


def changes_at(loras: Sequence[AddedLora], side: str, step: int, steps: int) -> Mapping[str, tuple[Worn, ...]]:
    """What the expert ``side`` (``high`` or ``low``) wears in a step. Several LoRAs are added in the order of their
    files' names, so the order in which they were connected changes no bit."""
    worn: dict[str, tuple[Worn, ...]] = {}
    active = []
    for lora in loras:
        found = lora.high if side == "high" else lora.low
        strength = (lora.strength_high if side == "high" else lora.strength_low).at(step, steps)
        if found is not None and strength:
            active.append((str(found.file.checkpoint.path), strength, found))
    for _, strength, found in sorted(active, key=lambda one: one[:2]):
        for target, changes in found.worn(strength).items():
            worn[target] = (*worn.get(target, ()), *changes)
    return worn
