"""Schedules: which noise levels a run visits, and which timestep the model is told at each.

Rectified flow, ``x_sigma = (1 - sigma) x0 + sigma noise`` (Esser et al. 2024, arXiv:2403.03206): sigma goes from 1
(noise) to 0 (clean). The time shift is ``k s / (1 + (k - 1) s)`` (same paper, section 5.3.2).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

TRAIN_STEPS = 1000
"""Timesteps the models were trained on: ``timestep = 1000 sigma``; also the largest table that can be asked for."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a schedule, as a denoiser sees it."""

    index: int
    """Counted from the start of the whole run, also where only a slice of it is run."""
    sigma: float
    sigma_next: float
    timestep: float
    """What the model is told, 0..1000: not always ``1000 sigma`` (the official tables truncate it)."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps of a run. ``sigmas`` float32 ``[n + 1]`` on the CPU, strictly descending in [0, 1]; ``timesteps``
    float32 ``[n]``; ``first`` is the index of the first step in the whole run.

    A step is known by its index, never looked up by its value: truncated timesteps can be equal.
    """

    sigmas: Tensor
    timesteps: Tensor
    first: int = 0

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def steps(self) -> tuple[Step, ...]:
        sigmas = self.sigmas.tolist()
        return tuple(
            Step(index=self.first + i, sigma=sigma, sigma_next=sigma_next, timestep=timestep)
            for i, (sigma, sigma_next, timestep) in enumerate(zip(sigmas, sigmas[1:], self.timesteps.tolist()))
        )

    def slice(self, start: int, end: int) -> "Schedule":
        """Steps ``start`` up to but not including ``end``, counted from this schedule's beginning; indices are kept."""
        if not 0 <= start < end <= len(self):
            raise InputError(
                f"steps {start} to {end} are not part of a schedule of {len(self)} steps. Use a start from 0 to "
                f"{len(self) - 1} and an end after it, at most {len(self)}."
            )
        return Schedule(
            sigmas=self.sigmas[start : end + 1], timesteps=self.timesteps[start:end], first=self.first + start
        )

    def tail(self, steps: int) -> "Schedule":
        """The last ``steps`` steps as a run of their own, counted from 0."""
        last = self.slice(len(self) - steps, len(self))
        return Schedule(sigmas=last.sigmas, timesteps=last.timesteps)


def shift_sigma(sigma, shift: float):
    """Spend more steps (``shift`` > 1) at high noise; works on floats, arrays and tensors."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def make_schedule(name: str, steps: int, shift: float, denoise: float = 1.0) -> Schedule:
    """A schedule by name.

    Args:
        name: a key of :data:`SCHEDULES`.
        steps: steps that will run, 1 to 1000.
        shift: time shift, above 0.
        denoise: in (0, 1]. Below 1 the last ``steps`` steps of a table of ``int(steps / denoise)`` are taken
            (``KSampler.set_steps`` in ComfyUI ``comfy/samplers.py``, which also takes 0.9999 and above for 1).
    """
    if name not in SCHEDULES:
        raise InputError(f"unknown schedule {name!r}. Use one of {', '.join(SCHEDULES)}.")
    if not 1 <= steps <= TRAIN_STEPS:
        raise InputError(f"steps must be from 1 to {TRAIN_STEPS}; got {steps}.")
    if not 0 < shift < float("inf"):
        raise InputError(f"shift must be above 0; got {shift}. Wan models use 3 to 16.")
    if not 0 < denoise <= 1:
        raise InputError(f"denoise must be above 0 and at most 1; got {denoise}.")
    whole = int(steps / denoise) if denoise <= 0.9999 else steps
    if whole > TRAIN_STEPS:
        raise InputError(
            f"{steps} steps at denoise {denoise:g} are the end of a table of {whole} steps, and the longest has "
            f"{TRAIN_STEPS}. Use at most {int(TRAIN_STEPS * denoise)} steps, or a larger denoise."
        )
    sigmas, timesteps = SCHEDULES[name](whole, shift)
    _check(sigmas, f"the {name} schedule with {whole} steps and shift {shift:g}", "Use fewer steps or another shift.")
    return Schedule(sigmas=sigmas, timesteps=timesteps).tail(steps)


def from_sigmas(sigmas: Tensor) -> Schedule:
    """A schedule from the values of a ComfyUI SIGMAS wire; ``timestep = 1000 sigma``, as native samplers have it."""
    sigmas = sigmas.detach().to("cpu", torch.float32)
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise InputError(
            f"sigmas must be a list of at least 2 values; got shape {list(sigmas.shape)}. Connect a scheduler node, "
            "and check that its denoise is above 0 and that a split leaves a step."
        )
    _check(sigmas, "the sigmas on the wire", "Use a scheduler node made for flow models, fed by a Wan model.")
    return Schedule(sigmas=sigmas, timesteps=sigmas[:-1] * TRAIN_STEPS)


def _check(sigmas: Tensor, what: str, advice: str) -> None:
    values = sigmas.tolist()
    for i, value in enumerate(values):
        if not 0 <= value <= 1:  # false for NaN too
            raise InputError(f"{what}: value {i} is {value}, and sigmas are from 0 to 1. {advice}")
        if i and not value < values[i - 1]:
            raise InputError(f"{what}: value {i} ({value}) is not below the one before it ({values[i - 1]}). {advice}")


def _unipc(steps: int, shift: float) -> tuple[Tensor, Tensor]:
    """The official table of UniPC: starts at 0.999 (Wan-Video/Wan2.2 ``wan/utils/fm_solvers_unipc.py``)."""
    largest = float(np.float32(1 - 1 / TRAIN_STEPS))
    return _official(np.linspace(largest, 0, steps + 1)[:-1], shift)


def _dpmpp(steps: int, shift: float) -> tuple[Tensor, Tensor]:
    """The official table of DPM++: starts at 1 (Wan-Video/Wan2.2 ``wan/utils/fm_solvers.py``)."""
    return _official(np.linspace(1, 0, steps + 1)[:-1], shift)


def _official(base: np.ndarray, shift: float) -> tuple[Tensor, Tensor]:
    """Computed in float64; the model is told whole timesteps, truncated."""
    sigmas = shift_sigma(base, shift)
    timesteps = (sigmas * TRAIN_STEPS).astype(np.int64)
    return _ending_at_0(torch.from_numpy(sigmas).float()), torch.from_numpy(timesteps).float()


def _simple(steps: int, shift: float) -> tuple[Tensor, Tensor]:
    """ComfyUI's "simple": every ``1000 / steps``-th of 1000 shifted sigmas, from 1 downwards.

    Float32 operation by operation as the host does it, scaling to timesteps and back included, so that the values
    are its own (``ModelSamplingDiscreteFlow`` in ``comfy/model_sampling.py``, ``simple_scheduler`` in
    ``comfy/samplers.py``).
    """
    table = torch.arange(1, TRAIN_STEPS + 1) / TRAIN_STEPS * TRAIN_STEPS / TRAIN_STEPS
    if shift != 1:
        table = shift_sigma(table, shift)
    stride = TRAIN_STEPS / steps
    sigmas = table[[-(1 + int(i * stride)) for i in range(steps)]]
    return _ending_at_0(sigmas), sigmas * TRAIN_STEPS


def _distill(steps: int, shift: float) -> tuple[Tensor, Tensor]:
    """The table of step-distilled models: timesteps 1000, 750, 500, 250 for 4 steps, before the shift
    (ModelTC/LightX2V ``lightx2v/models/schedulers/wan/step_distill/scheduler.py``)."""
    picked = [int(TRAIN_STEPS - i * (TRAIN_STEPS / steps)) for i in range(steps)]
    sigmas = shift_sigma(torch.tensor(picked) / TRAIN_STEPS, shift)
    return _ending_at_0(sigmas), sigmas * TRAIN_STEPS


def _diffusers(steps: int, shift: float) -> tuple[Tensor, Tensor]:
    """The table of diffusers' ``FlowMatchEulerDiscreteScheduler``, which shifts twice: the ends of the grid, then the
    grid (huggingface/diffusers ``schedulers/scheduling_flow_match_euler_discrete.py``)."""
    smallest = shift_sigma(torch.tensor(1.0) / TRAIN_STEPS, shift).item()
    base = np.linspace(TRAIN_STEPS, smallest * TRAIN_STEPS, steps) / TRAIN_STEPS
    sigmas = torch.from_numpy(shift_sigma(base, shift)).float()
    return _ending_at_0(sigmas), sigmas * TRAIN_STEPS


def _ending_at_0(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


SCHEDULES: dict[str, Callable[[int, float], tuple[Tensor, Tensor]]] = {
    "unipc": _unipc,
    "dpm++": _dpmpp,
    "simple": _simple,
    "distill": _distill,
    "diffusers": _diffusers,
}
"""Name -> ``(steps, shift) -> (sigmas [steps + 1], timesteps [steps])``, both float32."""
