"""Two experts as one denoiser: the high-noise model first, then the low-noise one.

The choice is made inside the denoiser, so a solver's history does not see it. Always by name (``high=``, ``low=``):
well-known code bases disagree about the order of such pairs.
"""

from torch import Tensor

from .sigmas import Schedule, Step
from .solvers import Denoise


def by_boundary(*, high: Denoise, low: Denoise, boundary: float) -> Denoise:
    """The high-noise expert while the timestep is at or above ``1000 boundary`` (Wan-Video/Wan2.2
    ``wan/text2video.py``: the scheduler's own timestep decides, truncated where it truncates)."""
    return _choose(high, low, boundary=boundary)


def by_step(*, high: Denoise, low: Denoise, switch_step: int) -> Denoise:
    """The high-noise expert for the steps of the run before ``switch_step``."""
    return _choose(high, low, switch_step=switch_step)


def expert_names(
    schedule: Schedule, *, boundary: float | None = None, switch_step: int | None = None
) -> tuple[str, ...]:
    """``"high"`` or ``"low"`` for each step of ``schedule``; empty where neither rule is given (one model)."""
    if boundary is None and switch_step is None:
        return ()
    return tuple("high" if _is_high(step, boundary, switch_step) else "low" for step in schedule.steps)


def _choose(high: Denoise, low: Denoise, boundary: float | None = None, switch_step: int | None = None) -> Denoise:
    def denoise(x: Tensor, step: Step) -> Tensor:
        return (high if _is_high(step, boundary, switch_step) else low)(x, step)

    return denoise


def _is_high(step: Step, boundary: float | None, switch_step: int | None) -> bool:
    return step.index < switch_step if boundary is None else step.timestep >= boundary * 1000
