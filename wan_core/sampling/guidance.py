"""Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598)."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from ..errors import InputError
from .sigmas import Step
from .solvers import Denoise

Condition = TypeVar("Condition")


def passes(scale: float) -> int:
    """Predictions that a step needs at a guidance: 2, or 1 at scale 1."""
    return 1 if math.isclose(scale, 1.0) else 2


def guided(
    predict: Callable[[Tensor, Step, Sequence[Condition]], Sequence[Tensor]],
    cond: Condition,
    uncond: Condition | None,
    scale: float,
) -> Denoise:
    """``uncond + scale (cond - uncond)``; at scale 1 that is ``cond``, and no second pass is made.

    Args:
        predict: ``(x, step, conditions) -> a velocity for each``.
        scale: guidance, 0 and above. With two experts each has its own: guide them first, then choose.
    """
    check_scale(scale, uncond is not None)
    if passes(scale) == 1:
        return lambda x, step: predict(x, step, [cond])[0]
    return lambda x, step: combined(*predict(x, step, [cond, uncond]), scale)


def combined(with_prompt: Tensor, without: Tensor, scale: float) -> Tensor:
    """The one formula of guidance."""
    return without + scale * (with_prompt - without)


def check_scale(scale: float, has_negative: bool) -> None:
    """Refuse what is no scale, and a scale that needs a side that is not there."""
    if passes(scale) == 1:
        return
    if not 0 <= scale < math.inf:
        raise InputError(f"guidance must be 0 or more; got {scale}. Wan models use 1 to 6.")
    if not has_negative:
        raise InputError(f"guidance {scale:g} needs a negative prompt. Connect one, or set guidance to 1.")


def separately(predict: Callable[[Tensor, Step, Condition], Tensor]):
    """A prediction of one condition, for :func:`guided`."""
    return lambda x, step, conditions: [predict(x, step, condition) for condition in conditions]
