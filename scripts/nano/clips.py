"""The world as training clips (``python -m wan_core.training ... --data scripts.nano.clips:NAME``)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wan_core.training.clips import Clip, ClipSize

from . import captions, world


@dataclass(frozen=True)
class SceneClips:
    """Scenes drawn ``times`` times each, every time a little different, with captions in both languages."""

    scenes: list[world.Scene]
    size: ClipSize
    times: int
    seed: int
    say: Callable[[world.Scene, np.random.Generator], tuple[str, ...]] = captions.captions

    def __len__(self) -> int:
        return len(self.scenes) * self.times

    def __getitem__(self, index: int) -> Clip:
        scene = self.scenes[index % len(self.scenes)]
        rng = np.random.default_rng((self.seed, index))
        frames = world.render(scene, rng, self.size.frames, self.size.width)
        return Clip(frames=frames, captions=self.say(scene, rng))


def trained(size: ClipSize) -> SceneClips:
    """What the text-to-video transformers learn from: 720 scenes, three times each."""
    return SceneClips(world.trained(), size, times=3, seed=1)


def with_pictures(size: ClipSize) -> SceneClips:
    """The same clips for image-to-video, with captions that can be trusted for the motion only."""
    return SceneClips(world.trained(), size, times=3, seed=1, say=captions.captions_beside_a_picture)


def held_out(size: ClipSize) -> SceneClips:
    """The 240 scenes that are never trained on."""
    return SceneClips(world.held_out(), size, times=1, seed=2)


@dataclass(frozen=True)
class VaeClips:
    """Half scenes, half anything: the VAE should also draw what the captions have no words for."""

    scenes: SceneClips
    count: int = 3000

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Clip:
        if index % 2 == 0:
            return self.scenes[index // 2]
        size = self.scenes.size
        rng = np.random.default_rng((3, index))
        return Clip(frames=world.render_free(rng, size.frames, size.width), captions=("",))


def for_vae(size: ClipSize) -> VaeClips:
    """What the VAE learns from."""
    return VaeClips(SceneClips(world.trained(), size, times=4, seed=1))
