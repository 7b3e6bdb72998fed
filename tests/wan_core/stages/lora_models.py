"""Small text and image models of one expert and of two, with LoRAs on them, in a run of two steps."""

from functools import lru_cache

import torch

from benchmarks.lora_dialects import LOW_ONLY
from tests import tiny
from wan_core.runtime.ports import Ports
from wan_core.sampling.loras import constant
from wan_core.stages.lora import add_lora
from wan_core.stages.sample import Settings, StartLatent, sample
from wan_core.stages.sides import Condition
from wan_core.variants import Feature

MODELS = {"T2V": "t2v-1.3b", "T2V pair": "t2v-a14b", "I2V": "i2v-14b-480p", "I2V pair": "i2v-a14b"}
SHAPE = (1, 16, 2, 4, 6)


def cfg_of(kind: str):
    return tiny.variant(MODELS[kind]).dit


def put_on(model, path, strength: float = 0.8, dialect: str = "", told=None):
    """On a single model or on both experts; a file that is for the low-noise expert by its names, on that one."""
    pair, full = model.low is not None, constant(strength)
    high, low = None if dialect == LOW_ONLY else path, path if pair else None
    notify = (lambda text: None) if told is None else told.append
    return add_lora(model, high, low, strength=full, strength_low=full, notify=notify)


@lru_cache
def condition(kind: str, seed: int = 5) -> Condition:
    draw = torch.Generator().manual_seed(seed)
    more, features = {}, tiny.variant(MODELS[kind]).features
    if Feature.CONCAT in features:
        mask = torch.zeros(1, 4, *SHAPE[2:])
        mask[:, :, 0] = 1
        more = {"known_latent": torch.randn(SHAPE, generator=draw), "known_mask": mask}
    if Feature.CLIP in features:
        more["clip"] = torch.randn(1, 257, 32, generator=draw)
    return Condition(text=torch.randn(1, 7, 24, generator=draw), **more)


def run(model, kind: str):
    settings = Settings(seed=3, steps=2, guidance_high=1.0, guidance_low=1.0, solver="euler", switch_step=1)
    if model.low is None:
        settings = Settings(seed=3, steps=2, guidance_high=1.0, solver="euler")
    start = StartLatent(samples=torch.zeros(SHAPE))
    return sample(model, condition(kind), None, start, settings, Ports(notify=lambda text: None))
