"""Extras of guidance, each off unless asked for, and what they make of each step.

- guidance over the steps: a scale for each step;
- CFG-Zero* (Fan et al. 2025, arXiv:2503.18886);
- skipped blocks: skip-layer guidance, as Stability AI's SD3.5 code and Wan2GP have it, and spatiotemporal skip guidance
  (Hyung et al. 2024, arXiv:2411.18664);
- NAG (Chen et al. 2025, arXiv:2505.21179), whose arithmetic is in ``models/nag.py``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import InputError
from ..models.nag import Nag
from .guidance import combined, guided, passes
from .loras import Course, Strength, parse_strength
from .sigmas import Step
from .solvers import Denoise

Condition = TypeVar("Condition")
MAX_GUIDANCE = 100.0
TINY = 1e-8
"""Added to a squared length that is divided by, as in the authors' code."""


@dataclass(frozen=True, kw_only=True)
class ZeroStar:
    """CFG-Zero*. ``rescale``: the negative side is scaled until it is as near to the positive as it can be, for each
    sample; ``zero_steps``: the first steps of the run, in which nothing moves and no prediction is made."""

    rescale: bool = True
    zero_steps: int = 1


@dataclass(frozen=True, kw_only=True)
class SkipBlocks:
    """A worse prediction to be guided away from: one without some of the transformer's blocks.

    ``scale`` 0: the negative side is predicted so, at no cost. Above 0: a pass more predicts the positive side so, and
    ``scale (positive - skipped)`` is added to what guidance gives. ``start`` and ``end``: shares of the run's steps.
    """

    blocks: frozenset[int]
    start: float = 0.0
    end: float = 1.0
    scale: float = 0.0

    def acts(self, index: int, steps: int) -> bool:
        """Whether step ``index`` (from 0) of ``steps`` lies between ``start`` (with it) and ``end`` (without it)."""
        return bool(self.blocks) and self.start <= index / steps < self.end


@dataclass(frozen=True, kw_only=True)
class StepGuidance:
    """What one step does: its scale, whether it stands still, and the blocks that its passes leave out."""

    scale: float
    still: bool = False
    skip_negative: frozenset[int] = frozenset()
    skip_extra: frozenset[int] = frozenset()
    """Not empty: a pass more, whose difference counts ``skip_scale`` times."""
    skip_scale: float = 0.0

    @property
    def passes(self) -> int:
        """Predictions: 0 to 3."""
        return 0 if self.still else passes(self.scale) + bool(self.skip_extra)


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    """Extras of a model. None: plain guidance at the sampler's scale, to the bit."""

    over_steps: Strength | None = None
    zero_star: ZeroStar | None = None
    skip: SkipBlocks | None = None
    nag: Nag | None = None

    def at(self, index: int, steps: int, scale: float) -> StepGuidance:
        """Step ``index`` (from 0) of a run of ``steps``, where the sampler is set to ``scale``."""
        scale = scale if self.over_steps is None else self.over_steps.at(index, steps)
        still = self.zero_star is not None and index < self.zero_star.zero_steps
        blocks = self.skip.blocks if self.skip is not None and self.skip.acts(index, steps) else frozenset()
        extra = bool(blocks) and self.skip.scale > 0
        return StepGuidance(
            scale=scale,
            still=still,
            skip_negative=frozenset() if extra else blocks,
            skip_extra=blocks if extra else frozenset(),
            skip_scale=self.skip.scale if extra else 0.0,
        )

    def describe(self) -> list[str]:
        """A sentence for each extra."""
        told = []
        if self.over_steps is not None:
            told.append(f"Guidance over the steps: {_course(self.over_steps)}; the sampler's guidance is not used.")
        if self.zero_star is not None:
            parts = ["the negative side is rescaled"] if self.zero_star.rescale else []
            count = self.zero_star.zero_steps
            parts += [f"the first {count} step{'s' if count > 1 else ''} of the run stand still"] if count else []
            told.append(f"CFG-Zero*: {', '.join(parts) or 'nothing is set, it changes nothing'}.")
        if self.skip is not None and self.skip.blocks:
            way = f"in a pass more, scale {self.skip.scale:g}" if self.skip.scale else "in the negative pass"
            blocks = ", ".join(map(str, sorted(self.skip.blocks)))
            when = f"from {self.skip.start:.0%} to {self.skip.end:.0%} of the steps"
            told.append(f"Skipped blocks {blocks} {way}, {when}.")
        if self.nag is not None:
            told.append(
                f"NAG: scale {self.nag.scale:g}, tau {self.nag.tau:g}, alpha {self.nag.alpha:g}"
                + (" (changes nothing)." if self.nag.is_neutral else ".")
            )
        return told


PLAIN = GuidanceOptions()
"""No extras."""


def _course(course: Strength) -> str:
    return ", ".join(
        f"{begin * 100:g}%: {value:g}" if share else f"{begin:g}: {value:g}" for begin, share, value in course.pieces
    )


def parse_guidance(text: str) -> Strength:
    """Read a guidance over steps: one number, a list with one for each step (the last goes on), or the pieces of
    :func:`.loras.parse_strength`, the first of which begins at step 0.

    Raises:
        InputError: it is something else, or a scale is out of range.
    """
    if ":" not in text and "," in text:
        text = ", ".join(f"{step}: {part.strip()}" for step, part in enumerate(text.split(",")))
    course = parse_strength(text, GUIDANCE)
    if course.pieces[0][0] > 0:
        begin, share, _ = course.pieces[0]
        first = f"{begin * 100:g}%" if share else f"step {begin:g}"
        raise InputError(f"a guidance over steps must say what the first step has; this one begins at {first}.")
    return course


def _checked(value: float) -> float:
    if not 0 <= value <= MAX_GUIDANCE:  # true for NaN too
        raise InputError(f"guidance must be from 0 to {MAX_GUIDANCE:g}; got {value}. Wan models use 1 to 6.")
    return value


GUIDANCE = Course(
    name="guidance over steps",
    grammar="a number, a list such as '6, 5, 4', or STEP: GUIDANCE pieces such as '0: 6, 4: 3.5' or '0%: 5, 50%: 1'",
    checked=_checked,
)


def guided_by(
    predict: Callable[[Tensor, Step, Sequence[Condition]], Sequence[Tensor]],
    cond: Condition,
    uncond: Condition | None,
    at: Callable[[int], StepGuidance],
    skipping: Callable[[Condition, frozenset[int]], Condition],
    rescale: bool = False,
) -> Denoise:
    """A denoiser with extras; without any it is :func:`.guidance.guided`, to the bit.

    Args:
        predict: ``(x, step, conditions) -> a velocity for each``.
        at: what the step of an index does.
        skipping: a condition, to be predicted without some blocks.
        rescale: as :class:`ZeroStar` has it.
    """

    def denoise(x: Tensor, step: Step) -> Tensor:
        now = at(step.index)
        if now.still:
            return torch.zeros_like(x)
        if not (rescale or now.skip_negative or now.skip_extra):
            return guided(predict, cond, uncond, now.scale)(x, step)
        sides = [cond]
        if passes(now.scale) > 1:
            sides.append(skipping(uncond, now.skip_negative) if now.skip_negative else uncond)
        if now.skip_extra:
            sides.append(skipping(cond, now.skip_extra))
        made = predict(x, step, sides)
        out = made[0]
        if passes(now.scale) > 1:
            out = combined(out, nearest(made[1], to=out) if rescale else made[1], now.scale)
        if now.skip_extra:
            out = out + now.skip_scale * (made[0] - made[-1])
        return out

    return denoise


def nearest(negative: Tensor, to: Tensor) -> Tensor:
    """``s* negative`` with ``s* = <to, negative> / |negative|^2`` of each sample: the multiple that is nearest to
    ``to`` (CFG-Zero*, equation 11 and its code)."""
    flat, wanted = negative.flatten(1), to.flatten(1)
    scale = (wanted * flat).sum(1) / ((flat * flat).sum(1) + TINY)
    return negative * scale.view(-1, *[1] * (negative.ndim - 1))
