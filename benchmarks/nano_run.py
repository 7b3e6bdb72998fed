"""The nano family at work: prompts and first frames -> clips, along the runtime's ordinary path."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.nano_judge import judge
from scripts.nano.world import COLORS, FRAMES, SIZE, Scene
from wan_core.grid import grid_of
from wan_core.runtime.ports import Ports
from wan_core.stages.load import ModelHandle, TextEncoderHandle, VaeHandle, load_model, load_text_encoder, load_vae
from wan_core.stages.sample import Settings, StartLatent, sample
from wan_core.stages.sides import Condition
from wan_core.stages.text import encode_text
from wan_core.stages.vae import decode
from wan_core.training.show import COMPUTE, known_first_frame
from wan_core.training.vae_task import psnr as video_psnr
from wan_core.training.vae_task import to_video

MODELS = Path(__file__).parent.parent / "models"
PORTS = Ports(notify=lambda text: None)
BATCH = 24
STEPS, SHIFT, GUIDANCE = 20, 3.0, 3.0


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where the family lies."""

    t2v_high: Path = MODELS / "diffusion_models" / "wan_nano_t2v_high_noise.safetensors"
    t2v_low: Path | None = MODELS / "diffusion_models" / "wan_nano_t2v_low_noise.safetensors"
    i2v_high: Path = MODELS / "diffusion_models" / "wan_nano_i2v_high_noise.safetensors"
    i2v_low: Path | None = MODELS / "diffusion_models" / "wan_nano_i2v_low_noise.safetensors"
    text_encoder: Path = MODELS / "text_encoders" / "wan_nano_umt5.safetensors"
    vae: Path = MODELS / "vae" / "wan_nano_vae.safetensors"


@dataclass(frozen=True, kw_only=True)
class Family:
    """The loaded files; everything computes in float32."""

    files: Files

    def model(self, high: Path, low: Path | None) -> ModelHandle:
        return load_model(high, low, compute=COMPUTE, dtype="fp32", notify=lambda text: None)

    @property
    def t2v(self) -> ModelHandle:
        return self.model(self.files.t2v_high, self.files.t2v_low)

    @property
    def i2v(self) -> ModelHandle:
        return self.model(self.files.i2v_high, self.files.i2v_low)

    @property
    def encoder(self) -> TextEncoderHandle:
        return load_text_encoder(self.files.text_encoder, compute=COMPUTE, dtype="fp32")

    @property
    def vae(self) -> VaeHandle:
        return load_vae(self.files.vae, compute=COMPUTE, dtype="fp32")


@dataclass(frozen=True, kw_only=True)
class Run:
    """How clips are made."""

    guidance: float = GUIDANCE
    steps: int = STEPS
    shift: float = SHIFT
    seed: int = 7
    frames: int = FRAMES


def make(
    model: ModelHandle,
    encoder: TextEncoderHandle,
    vae: VaeHandle,
    prompts: list[str],
    run: Run,
    images: np.ndarray | None = None,
    negatives: list[str] | None = None,
) -> np.ndarray:
    """One clip a prompt.

    Args:
        images: the first frames, uint8 ``[N, 64, 64, 3]``, for image models.
        negatives: one negative prompt for each; None: empty ones.

    Returns:
        uint8 ``[N, frames, 64, 64, 3]``.
    """
    empty = encode_text(encoder, "", PORTS)
    grid = grid_of(vae.spec, width=SIZE, height=SIZE, frames=run.frames)
    made = []
    for start in range(0, len(prompts), BATCH):
        texts = torch.cat([encode_text(encoder, one, PORTS) for one in prompts[start : start + BATCH]])
        against = empty
        if negatives is not None:
            against = torch.cat([encode_text(encoder, one, PORTS) for one in negatives[start : start + BATCH]])
        shape = (len(texts), vae.spec.channels, *grid.latent_shape)
        known = {}
        if images is not None:
            each = [known_first_frame(vae, grid, image, PORTS) for image in images[start : start + BATCH]]
            known = {
                "known_latent": torch.cat([one["known_latent"] for one in each]),
                "known_mask": each[0]["known_mask"],
            }
        settings = Settings(seed=run.seed + start, steps=run.steps, shift=run.shift, guidance_high=run.guidance)
        sides = Condition(text=texts, **known), Condition(text=against, **known)
        latent = sample(model, *sides, StartLatent(samples=torch.zeros(shape)), settings, PORTS)
        made.append((decode(vae, latent, PORTS) * 255).round().byte().numpy())
    return np.concatenate(made)


def score(clips: np.ndarray, scenes: list[Scene], colors: dict = COLORS) -> dict[str, float]:
    """Share of clips, in percent, that show what their scene says: by field, and all at once."""
    seen = [judge(clip, colors) for clip in clips]
    right = {
        field: [getattr(one, field) == getattr(scene, field) for one, scene in zip(seen, scenes)]
        for field in vars(scenes[0])
    }
    rates = {field: 100 * float(np.mean(hits)) for field, hits in right.items()}
    return rates | {"all": 100 * float(np.mean(np.all(list(right.values()), axis=0)))}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean peak signal-to-noise ratio in dB of uint8 clips ``[N, T, H, W, 3]``."""
    return video_psnr(to_video(a), to_video(b))
