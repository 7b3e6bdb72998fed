"""Every dialect on text and image models, single and pairs: all tensors accounted for, and the same bits again."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.lora_dialects import MODELS, dialects
from benchmarks.lora_parity import LIMIT, compare, in_diffusers
from tests import tiny
from wan_core.models.dit import WanDiT
from wan_core.runtime.ports import Ports
from wan_core.sampling.loras import constant
from wan_core.stages.load import ModelHandle
from wan_core.stages.lora import add_lora
from wan_core.stages.sample import Condition, Settings, StartLatent, sample
from wan_core.variants import VARIANTS

PLACES = {"T2V": ("t2v-14b", "t2v-a14b"), "I2V": ("i2v-14b-480p", "i2v-a14b")}
"""Model of the dialects -> a single model and a pair. A pair of image models has no CLIP branch."""
NAMES = tuple(dialects("T2V"))
CASES = [(kind, place, dialect) for kind, places in PLACES.items() for place in places for dialect in NAMES]
SHAPE = (1, 16, 2, 4, 6)


def model_of(kind: str, place: str) -> ModelHandle:
    row = next(row for row in VARIANTS if row.name == place)
    config = replace(MODELS[kind], img_dim=MODELS[kind].img_dim if row.dit.img_dim else None)
    row = replace(row, dit=config)
    sides = [tiny.resident(tiny.randomised(WanDiT(config), seed), f"{place} {seed}") for seed in range(row.experts)]
    return ModelHandle(variant=row, high=sides[0], low=sides[1] if row.experts == 2 else None)


def run(model: ModelHandle) -> torch.Tensor:
    draw = torch.Generator().manual_seed(2)
    text = torch.randn(1, 5, 64, generator=draw)
    extra = {}
    if model.variant.dit.in_dim == 36:
        extra = {"known_latent": torch.randn(SHAPE, generator=draw), "known_mask": torch.ones(1, 4, *SHAPE[2:])}
    if model.variant.dit.img_dim:
        extra["clip"] = torch.randn(1, 257, 48, generator=draw)
    settings = Settings(seed=1, steps=2, guidance_high=1.0, switch_step=1 if model.low else 0)
    return sample(
        model, Condition(text=text, **extra), None, StartLatent(samples=torch.zeros(SHAPE)), settings, Ports()
    )


@pytest.mark.parametrize(("kind", "place", "dialect"), CASES)
def test_all_tensors_are_accounted_for_and_every_way_back_is_exact(kind, place, dialect, tmp_path):
    model, files, told = model_of(kind, place), [], []
    for seed, name in ((3, "a"), (4, "b")):
        tensors = {key: tensor.contiguous() for key, tensor in dialects(kind, seed)[dialect].items()}
        save_file(tensors, tmp_path / f"{name}.safetensors")
        files.append(tmp_path / f"{name}.safetensors")

    def wearing(on: ModelHandle, file) -> ModelHandle:
        low = file if model.low is not None else None
        return add_lora(on, file, low, strength=constant(1.0), strength_low=constant(0.5), notify=told.append)

    one, two = wearing(model, files[0]), wearing(model, files[1])
    added = one.loras[0]
    for found in (added.high, *([added.low] if model.low is not None else ())):
        assert found.applied + sum(len(names) for names in found.ignored.values()) == found.total
        assert found.applied > 0
    bare, a, b = run(model), run(one), run(two)
    assert not torch.equal(a, bare) and not torch.equal(a, b)
    assert torch.equal(run(one), a), "A, B, A"
    assert torch.equal(run(model), bare), "taken off"
    assert torch.equal(run(wearing(one, files[1])), run(wearing(two, files[0]))), "order"


@pytest.mark.parametrize("reader", ["diffusers"])
def test_merged_weights_are_those_of_diffusers_own_code(reader):
    rows = compare({reader: in_diffusers})
    read = {(row["model"], row["dialect"]): row[reader] for row in rows if isinstance(row[reader], float)}
    assert {dialect for _, dialect in read} == {"kohya", "peft", "diffusers"}
    assert len(read) == 6 and max(read.values()) <= LIMIT
