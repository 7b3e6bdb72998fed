"""A sample of a model in training: the files it would leave, along the ordinary path, as a video of several prompts."""

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from ..conditioning.known_frames import known_mask
from ..configs import DitConfig
from ..grid import Grid, grid_of
from ..runtime.ports import Compute, Ports
from ..sampling.loras import constant
from ..stages.image import known_latent
from ..stages.load import ModelHandle, TextEncoderHandle, VaeHandle, load_model, load_text_encoder
from ..stages.lora import add_lora
from ..stages.sample import Settings, StartLatent, sample
from ..stages.sides import Condition
from ..stages.text import encode_text
from ..stages.vae import decode
from .clips import Clips
from .state import whole_file

COMPUTE = Compute(device=torch.device("cpu"))
QUIET = Ports(notify=lambda text: None)


@dataclass(frozen=True, kw_only=True)
class ShowSettings:
    """How samples are made: as many clips of the held set as ``count``, a caption of each, the first frame for
    image models."""

    count: int = 4
    steps: int = 20
    shift: float = 3.0
    guidance: float = 3.0


class Show:
    """Draws samples with whatever files the training has written: a model, or a LoRA on ``base``."""

    def __init__(
        self,
        vae: VaeHandle,
        encoder: TextEncoderHandle,
        held: Clips,
        settings: ShowSettings,
        base: ModelHandle | None = None,
        ports: Ports = QUIET,
    ):
        self.vae, self.encoder, self.held, self.settings, self.base = vae, encoder, held, settings, base
        self.ports = replace(ports, notify=QUIET.notify, progress=QUIET.progress)

    def __call__(self, paths: list[Path], place: Path) -> str:
        encoder = load_text_encoder(paths[1], compute=COMPUTE, dtype="fp32") if len(paths) > 1 else self.encoder
        if self.base is None:
            model = load_model(paths[0], compute=COMPUTE, dtype="fp32", notify=QUIET.notify)
        else:
            full = constant(1.0)
            model = add_lora(self.base, paths[0], strength=full, strength_low=full, notify=QUIET.notify)
        ports = self.ports
        videos, texts = [], []
        for n in range(self.settings.count):
            clip = self.held[n * len(self.held) // self.settings.count]
            texts.append(clip.captions[0])
            videos.append(self._one(model, encoder, clip, n, ports))
        path = place.with_suffix(".mp4")
        write_video(np.concatenate(videos, axis=2), path, self.vae.spec.fps)
        return f"{path.name}: {' | '.join(texts)}"

    def _one(self, model, encoder: TextEncoderHandle, clip, seed: int, ports: Ports) -> np.ndarray:
        frames, height, width, _ = clip.frames.shape
        grid = grid_of(self.vae.spec, width=width, height=height, frames=frames)
        shape = (1, self.vae.spec.channels, *grid.latent_shape)
        image_model = is_image_model(model.variant.dit)
        known = known_first_frame(self.vae, grid, clip.frames[0], ports) if image_model else {}
        sides = [Condition(text=encode_text(encoder, text, ports), **known) for text in (clip.captions[0], "")]
        settings = Settings(
            seed=seed, steps=self.settings.steps, shift=self.settings.shift, guidance_high=self.settings.guidance
        )
        latent = sample(model, *sides, StartLatent(samples=torch.zeros(shape)), settings, ports)
        return (decode(self.vae, latent, ports)[0] * 255).round().byte().numpy()


def known_first_frame(vae: VaeHandle, grid: Grid, frame_HW3: np.ndarray, ports: Ports) -> dict[str, torch.Tensor]:
    """What a :class:`Condition` needs of a clip whose first frame (uint8) is given."""
    picture = torch.from_numpy(frame_HW3)[None].float() / 255
    return {
        "known_latent": known_latent(vae, grid, picture, None, ports),
        "known_mask": known_mask(grid, first=1, last=0),
    }


def is_image_model(dit: DitConfig) -> bool:
    """Takes known pictures beside the noise."""
    return dit.in_dim > dit.out_dim


def write_video(frames_THW3: np.ndarray, path: Path, fps: int) -> None:
    """uint8 frames -> MP4 (H.264)."""
    import av

    with whole_file(path) as part, av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=Fraction(fps), options={"crf": "12"})
        stream.height, stream.width = frames_THW3.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames_THW3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
