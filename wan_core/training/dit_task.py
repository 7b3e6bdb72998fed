"""Training a transformer by flow matching, alone or together with its text encoder."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning.known_frames import MASK_CHANNELS
from ..grid import latent_frames
from ..models.dit import WanDiT
from ..models.umt5 import Umt5Encoder
from ..runtime.ports import CheckCancel, never_cancelled
from ..weights.keymaps import to_naming
from .flow import SigmaSettings, draw_sigmas, noised
from .latents import EncodedClips
from .phases import Phase, phase_at
from .rng import generator_of
from .state import write_safetensors
from .text_rows import encode_batch, fold

STRIDE_T = 4
"""Frames a latent frame stands for, in every Wan VAE."""

SAMPLED = "sampled"
"""Folder of the model files that the newest sample was made with; final names are for what is finished."""

Show = Callable[[list[Path], Path], str | None]
"""Model files and where to put a sample of them (a path without its ending) -> a line for the log."""


@dataclass(frozen=True, kw_only=True)
class DitSettings:
    """``drop_text`` is the share of captions replaced by the empty one, which guidance needs. Phases with fewer frames
    than the clips have take the first so many."""

    phases: tuple[Phase, ...]
    sigma: SigmaSettings
    drop_text: float = 0.1
    bf16: bool = True
    checkpoint: bool = False
    seed: int = 0


class DitTask:
    """Trains ``dit``, and ``encoder`` too if one is given (then ``spiece`` goes into its file)."""

    def __init__(
        self,
        dit: WanDiT,
        clips: EncodedClips,
        settings: DitSettings,
        encoder: Umt5Encoder | None = None,
        spiece: bytes = b"",
        show: Show | None = None,
        check_cancel: CheckCancel = never_cancelled,
    ):
        self.dit, self.clips, self.settings = dit, clips, settings
        self.encoder, self.spiece, self.show, self.check_cancel = encoder, spiece, show, check_cancel

    def parameters(self) -> Mapping[str, nn.Parameter]:
        named = {f"dit.{name}": parameter for name, parameter in self.dit.named_parameters()}
        if self.encoder is not None:
            named |= {f"text.{name}": parameter for name, parameter in self.encoder.named_parameters()}
        return named

    def loss(self, step: int, part: int) -> Tensor:
        cfg = self.settings
        rng, generator = np.random.default_rng((cfg.seed, step, part)), generator_of(cfg.seed, step, part)
        phase = phase_at(cfg.phases, step)
        picks = rng.integers(len(self.clips), size=phase.batch)
        x0 = self.clips.latents[picks][:, :, : latent_frames(phase.frames, STRIDE_T)]
        sigma = draw_sigmas(phase.batch, cfg.sigma, generator)
        x, t, target = noised(x0, torch.randn(x0.shape, generator=generator), sigma)
        texts = [self._caption(pick, rng) for pick in picks]
        # All of it is drawn on the CPU, so that a step is the same wherever it computes.
        device = self.device
        x, t, target = self._with_images(x, picks).to(device), t.to(device), target.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.bf16):
            text, bias = (part.to(device) for part in fold(self._rows(texts)))
            velocity = self.dit(x, t, text, text_bias=bias, walk=self._walk)
        return F.mse_loss(velocity.float(), target)

    @property
    def device(self) -> torch.device:
        return next(self.dit.parameters()).device

    def _caption(self, pick: int, rng: np.random.Generator) -> int:
        choices = self.clips.captions[pick]
        return (
            len(self.clips.ids) - 1 if rng.random() < self.settings.drop_text else choices[rng.integers(len(choices))]
        )

    def _rows(self, texts: list[int]) -> list[Tensor]:
        if self.encoder is not None:
            return encode_batch(self.encoder, [self.clips.ids[text] for text in texts])
        return [self.clips.rows[text] for text in texts]

    def _with_images(self, x: Tensor, picks: np.ndarray) -> Tensor:
        """The first frame is known: its mask and its latent beside the noise."""
        if self.clips.images is None:
            return x
        mask = torch.zeros(len(x), MASK_CHANNELS, *x.shape[2:])
        mask[:, :, 0] = 1
        return torch.cat([x, mask, self.clips.images[picks][:, :, : x.shape[2]]], dim=1)

    def _walk(self, blocks):
        """The blocks; with checkpointing, each forgets its inner values and computes them again going back."""
        for block in blocks:
            self.check_cancel()
            yield _Checkpointed(block) if self.settings.checkpoint else block

    def export(self, weights: Mapping[str, Tensor], folder: Path) -> list[Path]:
        """``dit.safetensors`` and, if it was trained, ``text_encoder.safetensors``, in bf16."""
        path = folder / "dit.safetensors"
        write_dit(path, self.dit, _part(weights, "dit."))
        if self.encoder is None:
            return [path]
        text_path = folder / "text_encoder.safetensors"
        write_text_encoder(text_path, _part(weights, "text."), self.spiece)
        return [path, text_path]

    def sample(self, weights: Mapping[str, Tensor], path: Path) -> str | None:
        return None if self.show is None else self.show(self.export(weights, path.parent / SAMPLED), path)


class _Checkpointed:
    def __init__(self, block: nn.Module):
        self.block = block

    def __call__(self, *inputs):
        return torch.utils.checkpoint.checkpoint(self.block, *inputs, use_reentrant=False)


def write_dit(path: Path, dit: WanDiT, state: Mapping[str, Tensor]) -> None:
    """A transformer under its official names in bf16; the metadata say what shapes do not, as ComfyUI reads it."""
    names = ("num_heads", "text_dim", "freq_dim", "dim", "num_layers", "in_dim", "out_dim", "ffn_dim")
    config = {name: getattr(dit.config, name) for name in names}
    tensors = {name: value.bfloat16() for name, value in state.items()}
    write_safetensors(path, tensors, {"config": json.dumps({"transformer": config})})


def write_text_encoder(path: Path, state: Mapping[str, Tensor], spiece: bytes) -> None:
    """A umT5 encoder in the repackaged layout in bf16, its tokenizer inside."""
    tensors = {name: value.bfloat16() for name, value in to_naming(dict(state), "umt5", "hf").items()}
    tensors["spiece_model"] = torch.frombuffer(bytearray(spiece), dtype=torch.uint8)
    write_safetensors(path, tensors, {"format": "pt"})


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
