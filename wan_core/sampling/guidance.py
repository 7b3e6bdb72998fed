"""Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598)."""

import math
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from ..errors import InputError
from .sigmas import Step
from .solvers import Denoise

Condition = TypeVar("Condition")


def guided(
    predict: Callable[[Tensor, Step, Condition], Tensor], cond: Condition, uncond: Condition | None, scale: float
) -> Denoise:
    """``uncond + scale (cond - uncond)``; at scale 1 that is ``cond``, and no second pass is made.

    Args:
        predict: ``(x, step, condition) -> velocity``.
        scale: guidance, 0 and above. With two experts each has its own: guide them first, then choose.
    """
    if math.isclose(scale, 1.0):
        return lambda x, step: predict(x, step, cond)
    if not 0 <= scale < math.inf:
        raise InputError(f"guidance must be 0 or more; got {scale}. Wan models use 1 to 6.")
    if uncond is None:
        raise InputError(f"guidance {scale:g} needs a negative prompt. Connect one, or set guidance to 1.")

    def denoise(x: Tensor, step: Step) -> Tensor:
        with_prompt = predict(x, step, cond)
        without = predict(x, step, uncond)
        return without + scale * (with_prompt - without)

    return denoise
