"""Extras of guidance on a model: each function gives back the model with one of them; the last of a kind counts.

See ``sampling/guidance_options.py`` for what they are and where they come from.
"""

from collections.abc import Sequence
from dataclasses import replace

from ..errors import InputError
from ..models.nag import Nag
from ..runtime.ports import Notify
from ..sampling.guidance import check_scale, passes
from ..sampling.guidance_options import GuidanceOptions, SkipBlocks, StepGuidance, ZeroStar, parse_guidance
from .load import ModelHandle
from .lora import parse_blocks

MAX_SCALE = 100.0
MAX_ZERO_STEPS = 1000


def guidance_over_steps(model: ModelHandle, text: str) -> ModelHandle:
    """A guidance for each step, in place of the sampler's; empty: the sampler's again."""
    return _with(model, over_steps=parse_guidance(text) if text.strip() else None)


def cfg_zero_star(model: ModelHandle, rescale: bool, zero_steps: int) -> ModelHandle:
    """CFG-Zero*; without either of its parts, as if it were not there."""
    if not 0 <= zero_steps <= MAX_ZERO_STEPS:
        raise InputError(f"zero_steps must be from 0 to {MAX_ZERO_STEPS}; got {zero_steps}. 1 is usual.")
    return _with(model, zero_star=ZeroStar(rescale=rescale, zero_steps=zero_steps) if rescale or zero_steps else None)


def skip_blocks(model: ModelHandle, blocks: str, start: float, end: float, scale: float) -> ModelHandle:
    """Guidance away from the model without some of its blocks.

    Args:
        blocks: ``9, 10`` or ``8-10``, from 0; empty: none, which changes nothing.
        start, end: shares of the run's steps.
        scale: 0: in the negative pass; above: in a pass more, this strong.
    """
    count = model.variant.dit.num_layers
    _check("start", start, 0, 1)
    _check("end", end, 0, 1)
    _check("scale", scale, 0, MAX_SCALE)
    if start >= end:
        raise InputError(f"start {start:g} and end {end:g} leave no step. Use a start below the end, as 0.1 and 1.")
    found = parse_blocks(blocks, count, empty="none") or frozenset()
    if len(found) == count:
        raise InputError(f"blocks {blocks.strip()!r} are all {count} blocks of {model.name}. Skip one to three.")
    made = SkipBlocks(blocks=found, start=start, end=end, scale=scale)
    return _with(model, skip=made if found else None)


def nag(model: ModelHandle, scale: float, tau: float, alpha: float) -> ModelHandle:
    """Normalised attention guidance; at scale 1 or alpha 0, as if it were not there."""
    _check("scale", scale, 1, MAX_SCALE)
    _check("tau", tau, 0.01, MAX_SCALE)
    _check("alpha", alpha, 0, 1)
    made = Nag(scale=scale, tau=tau, alpha=alpha)
    return _with(model, nag=None if made.is_neutral else made)


def _with(model: ModelHandle, **changes) -> ModelHandle:
    return replace(model, guidance=replace(model.guidance, **changes))


def _check(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # true for NaN too
        raise InputError(f"{name} must be from {least:g} to {most:g}; got {value}.")


def described(options: GuidanceOptions) -> str:
    """All extras as one text for a node."""
    return " ".join(options.describe()) or "Plain guidance, as the sampler is set."


def check_guidance(options: GuidanceOptions, steps: Sequence[StepGuidance], has_negative: bool, notify: Notify) -> None:
    """The steps of a run before it begins: what cannot be done is refused, what has no effect is said.

    Raises:
        InputError: a scale is out of range, there is no negative side where one is needed, or every step stands still.
    """
    for now in steps:
        check_scale(now.scale, has_negative)
    if all(now.still for now in steps):
        raise InputError(
            f"CFG-Zero* lets the first {options.zero_star.zero_steps} steps stand still, and this run has no other. "
            "Use fewer zero_steps (1 is usual), or more steps."
        )
    if options.nag is not None and not has_negative:
        raise InputError("NAG guides away from the negative prompt, and there is none. Connect one, or remove NAG.")
    moving = [now for now in steps if not now.still]
    guides = [now for now in moving if passes(now.scale) > 1]
    skips = [now for now in moving if now.skip_extra] + [now for now in guides if now.skip_negative]
    if options.skip is not None and not skips:
        notify(
            "The skipped blocks have no effect: no step between their start and end makes a negative pass. Raise the "
            "guidance, or give skip-layer guidance a scale above 0."
        )
    if options.zero_star is not None and options.zero_star.rescale and not guides:
        notify("The rescaling of CFG-Zero* has no effect at guidance 1. Raise the guidance, or switch rescale off.")
