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
    if passes(scale) == 1:
        return lambda x, step: predict(x, step, [cond])[0]
    if not 0 <= scale < math.inf:
        raise InputError(f"guidance must be 0 or more; got {scale}. Wan models use 1 to 6.")
    if uncond is None:
        raise InputError(f"guidance {scale:g} needs a negative prompt. Connect one, or set guidance to 1.")

    def denoise(x: Tensor, step: Step) -> Tensor:
        with_prompt, without = predict(x, step, [cond, uncond])
        return without + scale * (with_prompt - without)

    return denoise


def separately(predict: Callable[[Tensor, Step, Condition], Tensor]):
    """A prediction of one condition, for :func:`guided`."""
    return lambda x, step, conditions: [predict(x, step, condition) for condition in conditions]
