"""Solvers of the flow ODE from noise to video, each as its paper has it.

With ``alpha = 1 - sigma`` and ``lambda = log(alpha / sigma)``, every solver moves ``x`` from ``sigma`` to
``sigma_next`` by the model's estimate of the clean latent, ``x0 = x - sigma v``. At sigma 1 lambda is minus infinity,
at sigma 0 plus infinity. The formulas below hold at both ends as limits: ``expm1(-inf)`` is -1, and a difference over
an infinite step counts nothing, so a first step from exactly 1 is of order 1 and leaves no trace in the second.

The coefficients are Python floats, so nothing waits for the device; ``x`` is float32.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from .sigmas import Schedule, Step

Denoise = Callable[[Tensor, Step], Tensor]
"""``(x, step) -> velocity``, which is ``noise - x0``; ``x`` float32 ``[B, C, T, h, w]`` at ``step.sigma``."""

Noise = Callable[[Tensor], Tensor]
"""``(x) -> `` fresh Gaussian noise like ``x``, another at every call."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step leaves behind: ``x`` at ``step.sigma_next``, and the clean latent ``x0`` it believes in."""

    step: Step
    done: int
    total: int
    x: Tensor
    x0: Tensor

    @property
    def index(self) -> int:
        return self.step.index


class Solver(Protocol):
    """Runs a schedule; see :func:`solve`, of which this is the form without its first argument."""

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        schedule: Schedule,
        *,
        on_step: Callable[[StepResult], None] | None = None,
        noise: Noise | None = None,
    ) -> Tensor: ...


Update = Callable[[Tensor, Tensor, Step], Tensor]
"""One run of a solver: ``(x, x0, step) -> x`` at ``step.sigma_next``, called once for each step in order. It keeps
whatever it must remember from step to step."""


def solve(
    method: Callable[[Noise | None], Update],
    denoise: Denoise,
    x: Tensor,
    schedule: Schedule,
    *,
    on_step: Callable[[StepResult], None] | None = None,
    noise: Noise | None = None,
) -> Tensor:
    """The one sampling loop.

    Args:
        method: a solver below.
        x: float32, at the first sigma of ``schedule``.
        on_step: called after each step (previews, progress, finite check).
        noise: drawn from by solvers that add noise on the way.

    Returns:
        ``x`` at the last sigma of ``schedule``, float32.
    """
    update = method(noise)
    for done, step in enumerate(schedule.steps, 1):
        x0 = x - step.sigma * denoise(x, step).float()
        x = update(x, x0, step)
        if on_step is not None:
            on_step(StepResult(step=step, done=done, total=len(schedule), x=x, x0=x0))
    return x


def euler(noise: Noise | None = None) -> Update:
    """Euler's method: ``x + (sigma_next - sigma) v``, written as the interpolation it is between ``x`` and ``x0``."""
    return lambda x, x0, step: x0 + step.sigma_next / step.sigma * (x - x0)


def lcm(noise: Noise | None = None) -> Update:
    """Multistep consistency sampling: to ``x0`` in one go, then fresh noise up to the next sigma.

    Luo et al. 2023, Latent Consistency Models, arXiv:2310.04378, algorithm 3.
    """
    if noise is None:
        raise ValueError("the lcm solver needs a noise function")

    def update(x: Tensor, x0: Tensor, step: Step) -> Tensor:
        if step.sigma_next == 0:
            return x0
        return (1 - step.sigma_next) * x0 + step.sigma_next * noise(x0)

    return update


def dpmpp_2m(noise: Noise | None = None) -> Update:
    """DPM-Solver++(2M), midpoint form; order 1 at the first step and at the one to sigma 0.

    Lu et al. 2022, DPM-Solver++, arXiv:2211.01095, algorithm 2; settings: Wan-Video/Wan2.2 ``wan/utils/fm_solvers.py``.
    """
    past: tuple[Tensor, float] | None = None

    def update(x: Tensor, x0: Tensor, step: Step) -> Tensor:
        nonlocal past
        h = _lambda(step.sigma_next) - _lambda(step.sigma)
        d = x0
        if past is not None and step.sigma_next > 0:
            x0_before, h_before = past
            d = x0 + 0.5 * h / h_before * (x0 - x0_before)
        past = x0, h
        return step.sigma_next / step.sigma * x - (1 - step.sigma_next) * math.expm1(-h) * d

    return update


def unipc(noise: Noise | None = None) -> Update:
    """UniPC of order 2, B2(h), predicting x0; order 1 at the first step and at the one to sigma 0.

    Each estimate is used twice: to correct the step that led to it, at the order of that step, and to predict the next.
    Zhao et al. 2023, UniPC, arXiv:2302.04867, algorithms 1 and 2; settings: Wan-Video/Wan2.2
    ``wan/utils/fm_solvers_unipc.py``.
    """
    past: list[tuple[float, Tensor]] = []  # (sigma, x0), newest first: as many as the last step's order
    x_before: Tensor | None = None

    def update(x: Tensor, x0: Tensor, step: Step) -> Tensor:
        nonlocal past, x_before
        if x_before is not None:
            x = _correct(x_before, x0, step.sigma, past)
        x_before = x
        order = 2 if step.sigma_next > 0 else 1
        past = [(step.sigma, x0), *past][:order]
        return _predict(x, step.sigma_next, past)

    return update


SOLVERS: dict[str, Solver] = {
    "unipc": partial(solve, unipc),
    "dpm++": partial(solve, dpmpp_2m),
    "euler": partial(solve, euler),
    "lcm": partial(solve, lcm),
}

DEFAULT_SCHEDULE: dict[str, str] = {"unipc": "unipc", "dpm++": "dpm++", "euler": "simple", "lcm": "simple"}
"""Solver -> the key of ``SCHEDULES`` it is used with where nothing else is asked for."""


def _predict(x: Tensor, sigma_next: float, past: list[tuple[float, Tensor]]) -> Tensor:
    """UniP: from the newest sigma in ``past`` to ``sigma_next``; the order is the length of ``past``."""
    sigma, x0 = past[0]
    h = _lambda(sigma_next) - _lambda(sigma)
    d = x0
    if len(past) == 2:
        d = x0 + 0.5 * _slope(past, h)[1]
    return sigma_next / sigma * x - (1 - sigma_next) * math.expm1(-h) * d


def _correct(x_before: Tensor, x0_new: Tensor, sigma_new: float, past: list[tuple[float, Tensor]]) -> Tensor:
    """UniC: the step from the newest sigma in ``past`` to ``sigma_new`` once more, now that ``x0_new`` is known."""
    sigma, x0 = past[0]
    h = _lambda(sigma_new) - _lambda(sigma)
    b_h = math.expm1(-h)
    if len(past) == 1:
        d = 0.5 * (x0_new - x0)
    else:
        r, slope = _slope(past, h)
        phi = b_h / -h - 1
        b1, b2 = phi / b_h, 2 * (phi / -h - 0.5) / b_h
        rho = (b2 - b1) / (r - 1)  # the rows of the paper's 2x2 system: rho + rho_new = b1, r rho + rho_new = b2
        d = rho * slope + (b1 - rho) * (x0_new - x0)
    return sigma_new / sigma * x_before - (1 - sigma_new) * b_h * (x0 + d)


def _slope(past: list[tuple[float, Tensor]], h: float) -> tuple[float, Tensor]:
    """``r``, where the older estimate lies in units of the step ``h``, and the change of x0 per such a unit."""
    (sigma, x0), (sigma_older, x0_older) = past
    r = (_lambda(sigma_older) - _lambda(sigma)) / h
    return r, (x0_older - x0) / r


def _lambda(sigma: float) -> float:
    """Half the log of the signal-to-noise ratio, ``log((1 - sigma) / sigma)``."""
    if sigma in (0, 1):
        return math.inf if sigma == 0 else -math.inf
    return math.log1p(-sigma) - math.log(sigma)
