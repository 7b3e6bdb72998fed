"""Noise: what a run starts from, and what is left where it stops early. All as native ComfyUI samplers have it, so
that equal seeds mean equal noise and either sampler can go on with the other's latent."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from .solvers import Noise

SEEDS = 2**64


def initial_noise(shape: Sequence[int], seed: int, batch_index: Sequence[int] | None = None) -> Tensor:
    """Gaussian noise of ``shape``, float32, from a CPU generator of its own: the global one is not touched.

    Args:
        shape: ``[B, C, T, h, w]``.
        seed: 0 to 2^64 - 1.
        batch_index: for each of the B items, which noise of the seed's series it gets (the LATENT key of ComfyUI's
            latent batch nodes); equal numbers get equal noise. Source: ComfyUI ``comfy/sample.py``.
    """
    generator = _generator(seed, "cpu")
    if batch_index is None:
        return torch.randn(tuple(shape), generator=generator)
    if len(batch_index) != shape[0] or min(batch_index) < 0:
        raise InputError(
            f"batch_index must name one noise, from 0 up, for each of the {shape[0]} latents; got {list(batch_index)}."
        )
    series = [torch.randn((1, *shape[1:]), generator=generator) for _ in range(max(batch_index) + 1)]
    return torch.cat([series[i] for i in batch_index])


def step_noise(seed: int, device: torch.device | str) -> Noise:
    """Fresh noise at each call, for solvers that add some on the way; ``device`` is where ``x`` is.

    As ``default_noise_sampler`` in ComfyUI ``comfy/k_diffusion/sampling.py``: a generator on the device; on the CPU its
    seed is one higher, else the first draw would be the initial noise again.
    """
    on_cpu = torch.device(device).type == "cpu"
    generator = _generator((seed + on_cpu) % SEEDS, device)
    return lambda x: torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)


def noisy_start(latent: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """``latent`` brought to ``sigma``: ``sigma noise + (1 - sigma) latent``; at sigma 1 the noise alone."""
    return sigma * noise + (1 - sigma) * latent


def leave_off(x: Tensor, sigma: float) -> Tensor:
    """``x`` at ``sigma`` as the wire carries it: divided by ``1 - sigma`` (``CONST.inverse_noise_scaling`` in ComfyUI
    ``comfy/model_sampling.py``), which leaves a finished latent as it is."""
    if not sigma < 1:
        raise InputError("a latent cannot be handed on at sigma 1, where it is noise alone. Run at least one step.")
    return x / (1 - sigma)


def take_up(latent: Tensor, sigma: float) -> Tensor:
    """The inverse of :func:`leave_off`: ``(1 - sigma) latent`` (``CONST.noise_scaling`` with no noise). At sigma 1 it
    is zero, as it is in native samplers: nothing of a latent is left there."""
    return (1 - sigma) * latent


def _generator(seed: int, device: torch.device | str) -> torch.Generator:
    if not 0 <= seed < SEEDS:
        raise InputError(f"seed must be from 0 to 2^64 - 1; got {seed}.")
    return torch.Generator(device).manual_seed(seed)
