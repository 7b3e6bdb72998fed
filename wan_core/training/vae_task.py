"""Training a VAE of the Wan 2.1 structure: absolute and squared error of the pixels, and a little Kullback-Leibler."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.vae import WanVAE
from ..variants import LATENT_21
from .clips import Clips
from .phases import Phase, phase_at
from .rng import generator_of
from .state import whole_file, write_safetensors
from .vae_clip import decode_clip, encode_clip


@dataclass(frozen=True, kw_only=True)
class VaeSettings:
    """``kl`` weighs the Kullback-Leibler term; ``bf16`` computes under autocast."""

    phases: tuple[Phase, ...]
    kl: float = 1e-4
    bf16: bool = True
    seed: int = 0


class VaeTask:
    """Trains ``vae`` on ``clips``; two dozen of ``held`` measure."""

    def __init__(self, vae: WanVAE, clips: Clips, held: Clips, settings: VaeSettings):
        self.vae, self.clips, self.held, self.settings = vae, clips, held, settings

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.vae.named_parameters())

    def loss(self, step: int, part: int) -> Tensor:
        rng = np.random.default_rng((self.settings.seed, step, part))
        phase = phase_at(self.settings.phases, step)
        batch = [self._run_of(rng, phase.frames) for _ in range(phase.batch)]
        x = to_video(np.stack(batch)).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.settings.bf16):
            mean, log_variance = encode_clip(self.vae, x)
            noise = torch.randn(mean.shape, generator=generator_of(self.settings.seed, step, part))
            y = decode_clip(self.vae, mean + noise * (0.5 * log_variance).exp())
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return F.l1_loss(y, x) + 2 * F.mse_loss(y, x) + self.settings.kl * kl

    def _run_of(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """A run of frames from somewhere in a clip, forwards or backwards."""
        frames = self.clips[int(rng.integers(len(self.clips)))].frames
        start = int(rng.integers(len(frames) - count + 1))
        run = frames[start : start + count]
        return run[::-1] if rng.random() < 0.5 else run

    def export(self, weights: Mapping[str, Tensor], folder: Path) -> list[Path]:
        """``vae.safetensors`` in bf16, its latents brought to the statistics of Wan's own."""
        self.vae.load_state_dict(dict(weights))
        to_wan_statistics(self.vae, self.held)
        path = folder / "vae.safetensors"
        write_safetensors(path, {n: p.detach().bfloat16() for n, p in self.vae.named_parameters()}, {"format": "pt"})
        return [path]

    @torch.no_grad()
    def sample(self, weights: Mapping[str, Tensor], path: Path) -> str:
        """Unseen clips and what the VAE makes of them, one above the other; says how near they are."""
        from PIL import Image

        now = {name: parameter.detach().clone() for name, parameter in self.vae.named_parameters()}
        count = max(phase.frames for phase in self.settings.phases)
        picks = [self.held[i].frames for i in range(0, len(self.held), max(1, len(self.held) // 24))]
        x = to_video(np.stack(picks))
        try:
            self.vae.load_state_dict(dict(weights))
            one, whole = self._through(x[:, :, :1]), self._through(x[:, :, :count])
        finally:
            self.vae.load_state_dict(now)
        shown = torch.cat([x[:8, :, count - 1], whole[:8, :, -1]], dim=2)
        pixels = ((torch.cat(list(shown), dim=2) + 1) * 127.5).clamp(0, 255).byte()
        with whole_file(path.with_suffix(".png")) as part:
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(part, "PNG")
        return f"one frame {psnr(x[:, :, :1], one):.2f} dB, {count} frames {psnr(x[:, :, :count], whole):.2f} dB"

    def _through(self, x: Tensor) -> Tensor:
        return torch.cat([self.vae.decode(self.vae.encode(one[None])) for one in x]).clamp(-1, 1)


def to_video(frames_BTHW3: np.ndarray) -> Tensor:
    """uint8 ``[B, T, H, W, 3]`` -> float32 ``[B, 3, T, H, W]`` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames_BTHW3)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def psnr(x: Tensor, y: Tensor) -> float:
    """Mean over clips of the peak signal-to-noise ratio in dB, for values in [-1, 1]."""
    error = (x - y).square().flatten(1).mean(1).clamp_min(1e-10)
    return float((10 * torch.log10(4 / error)).mean())


@torch.no_grad()
def to_wan_statistics(vae: WanVAE, clips: Clips, count: int = 64) -> None:
    """Change the scale of the latents such that Wan's fixed means and deviations normalise them.

    Only the two pointwise convolutions around the latent change; what the VAE computes stays the same.
    """
    picks = range(0, len(clips), max(1, len(clips) // count))
    z = torch.cat([vae.encode(to_video(clips[i].frames[None])).float() for i in picks]).transpose(0, 1).flatten(1)
    wanted_mean, wanted_std = torch.tensor(LATENT_21.mean), torch.tensor(LATENT_21.std)
    scale = wanted_std / z.std(1)
    move = wanted_mean - z.mean(1) * scale
    size = vae.config.z_dim
    inner, outer = vae.conv1, vae.conv2
    # z' = scale z + move; what follows gets (z' - move) / scale.
    outer.bias -= outer.weight[:, :, 0, 0, 0] @ (move / scale)
    outer.weight /= scale.view(1, -1, 1, 1, 1)
    inner.weight[:size] *= scale.view(-1, 1, 1, 1, 1)
    inner.bias[:size] = inner.bias[:size] * scale + move
    inner.bias[size:] += 2 * scale.log()


@torch.no_grad()
def init_vae(vae: WanVAE, seed: int) -> None:
    """Values to train a VAE from: convolutions see mostly the present frame, and the latent has almost no noise."""
    generator = generator_of(seed, 0, 0)

    def normal(like: Tensor, std: float) -> Tensor:
        return torch.randn(like.shape, generator=generator) * std

    for name, p in vae.named_parameters():
        if name.endswith("gamma"):
            p.fill_(1)
        elif name.endswith("bias"):
            p.zero_()
        elif "time_conv" in name:
            p.copy_(normal(p, 0.1 / math.sqrt(p[0].numel())))
            p[:, :, -1, 0, 0] += torch.eye(p.shape[1]).repeat(p.shape[0] // p.shape[1], 1)
        elif p.ndim == 5 and p.shape[2] == 3:
            spatial = p[0, :, 0].numel()
            p.copy_(normal(p, 0.1 / math.sqrt(spatial)))
            p[:, :, -1] = normal(p[:, :, -1], math.sqrt(1.5 / spatial))
        else:
            p.copy_(normal(p, 1 / math.sqrt(p[0].numel())))
    vae.conv1.bias[vae.config.z_dim :] = -5
    vae.conv1.weight[vae.config.z_dim :] *= 0.1
    vae.decoder.head["2"].weight *= 0.3
