"""A run in phases: short clips first are cheap, and what is learned on them is kept."""

from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True, kw_only=True)
class Phase:
    """``steps`` steps with batches of ``batch`` clips of ``frames`` frames (4n+1)."""

    frames: int
    batch: int
    steps: int

    @classmethod
    def parse(cls, text: str) -> "Phase":
        """``FRAMESxBATCHxSTEPS``, for example ``1x16x3000``."""
        parts = text.split("x")
        if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise InputError(f"a phase is FRAMESxBATCHxSTEPS, for example 17x32x2000; got {text!r}.")
        frames, batch, steps = map(int, parts)
        if frames % 4 != 1:
            raise InputError(f"a phase's clips have 4n+1 frames (1, 5, 9, ...); got {frames} in {text!r}.")
        return cls(frames=frames, batch=batch, steps=steps)


def phase_at(phases: tuple[Phase, ...], step: int) -> Phase:
    """The phase that a step (from 0) belongs to; the last one goes on."""
    for phase in phases:
        if step < phase.steps:
            return phase
        step -= phase.steps
    return phases[-1]
