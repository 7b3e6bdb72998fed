"""Predictions for samplers that are not ours: the same numbers as our own run, whatever order they are asked in."""

import gc
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.lora_dialects import make
from tests import tiny
from tests.wan_core.runtime.memories import Planned, SmallDevice
from wan_core.errors import InputError, MismatchError, NonFiniteError
from wan_core.runtime.memory import smallest_bytes
from wan_core.runtime.ports import PlainMemory, Ports
from wan_core.sampling.loras import constant, parse_strength
from wan_core.sampling.noise import initial_noise
from wan_core.sampling.sigmas import make_schedule
from wan_core.stages import predict as stage
from wan_core.stages.load import RunOptions
from wan_core.stages.lora import add_lora
from wan_core.stages.predict import Asked, Predictor
from wan_core.stages.sample import Settings, StartLatent, sample
from wan_core.stages.sides import Condition

SHAPE = (2, 16, 2, 4, 6)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def asked(level: float = 0.95, seed: int = 1, shape=SHAPE, **more) -> Asked:
    t = torch.full(shape[:1], 1000.0 * level)
    return Asked(x=draw(seed, *shape), t=t, text=draw(5, 1, 7, 24), sigma=level, **more)


def predictor(name: str = "t2v-a14b", memory=None, model=None, told=None, **more) -> Predictor:
    notify = (lambda text: None) if told is None else told.append
    ports = Ports(memory=memory or PlainMemory(), notify=notify)
    return Predictor(model or tiny.model(name), ports, **more)


LEVELS = (1.0, 0.95, 0.95, 0.9, 0.8, 0.5, 0.95, 0.1)
"""A sampler may ask twice at a level, and go back."""


def all_levels(maker: Predictor) -> list[torch.Tensor]:
    made = [maker.predict(asked(level, seed)) for seed, level in enumerate(LEVELS)]
    maker.close()
    return made


def test_an_euler_run_of_predictions_is_our_samplers_run():
    model = tiny.model("t2v-a14b")
    shape = (1, *SHAPE[1:])
    settings = Settings(seed=3, steps=6, solver="euler", schedule="simple", guidance_high=1.0, guidance_low=1.0)
    text, latent = draw(5, 1, 7, 24), StartLatent(samples=torch.zeros(shape))
    ours = sample(model, Condition(text=text), None, latent, settings, Ports())

    schedule = make_schedule("simple", 6, model.variant.defaults.shift, 1.0)
    x, maker = initial_noise(shape, 3, None), predictor(model=model)
    for sigma, after in zip(schedule.sigmas.tolist(), schedule.sigmas.tolist()[1:]):
        velocity = maker.predict(Asked(x=x, t=torch.tensor([sigma * 1000]), text=text))
        x = x + (after - sigma) * velocity
    maker.close()
    torch.testing.assert_close(model.variant.latent.denormalise(x), ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_streamed_predictions_have_the_bits_of_the_resident_model(kept, monkeypatch):
    whole = all_levels(predictor())
    assert all(torch.equal(a, b) for a, b in zip(all_levels(predictor(memory=Planned(kept))), whole))
    monkeypatch.setattr(stage, "AHEAD", 2)
    assert all(torch.equal(a, b) for a, b in zip(all_levels(predictor(memory=Planned(kept))), whole))


def test_a_pair_changes_by_noise_level_and_a_side_stays_itself():
    model = tiny.model("t2v-a14b")
    high, low = predictor(model=model, side="high"), predictor(model=model, side="low")
    both, later = predictor(model=model), predictor(model=model, boundary=0.5)
    for level, side in ((0.95, high), (0.875, high), (0.87, low), (0.1, low)):
        assert torch.equal(both.predict(asked(level)), side.predict(asked(level))), level
    assert torch.equal(later.predict(asked(0.7)), high.predict(asked(0.7)))
    assert not torch.equal(high.predict(asked(0.7)), low.predict(asked(0.7)))


@pytest.mark.parametrize("memory", [PlainMemory(), Planned(1)])
def test_predictors_of_one_model_take_turns(memory):
    """Each call of one takes the weights over from the other, and nothing is left installed at the end."""
    model = tiny.model("t2v-1.3b")
    home = {name: param.data_ptr() for name, param in model.high.module.named_parameters()}
    first, second = predictor(model=model, memory=memory), predictor(model=model, memory=memory)
    alone = first.predict(asked(0.9)), first.predict(asked(0.4))
    first.close()
    first.predict(asked(0.9)), second.predict(asked(0.9))
    assert first.smallest_work_bytes(2, *SHAPE[2:]) > second.smallest_work_bytes(2, *SHAPE[2:]) == 0, "both hold it"
    turns = first.predict(asked(0.9)), second.predict(asked(0.9)), first.predict(asked(0.4)), second.predict(asked(0.4))
    assert torch.equal(turns[0], alone[0]) and torch.equal(turns[1], alone[0])
    assert torch.equal(turns[2], alone[1]) and torch.equal(turns[3], alone[1])
    first.close()
    second.close()
    assert all(param.data_ptr() == home[name] for name, param in model.high.module.named_parameters())


def test_nothing_streamed_stays_after_close():
    maker = predictor(memory=Planned(2))
    maker.model.high.module, maker.model.low.module  # noqa: B018
    gc.collect()
    with SmallDevice() as device:
        maker.predict(asked(0.95))
        held = device.live
        maker.close()
        gc.collect()
        assert held > 10_000 and device.live < held / 10


@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("memory", [PlainMemory(), Planned(1)])
def test_cancel_acts_before_the_next_block_and_the_next_run_is_the_same(block, memory):
    model = tiny.model("t2v-1.3b")
    clean = predictor(model=model, memory=memory).predict(asked())
    begun = []

    class CancelledError(BaseException):
        pass

    def check():
        begun.append(1)
        if len(begun) == block + 1:
            raise CancelledError

    ports = Ports(memory=memory, check_cancel=check, notify=lambda text: None)
    maker = Predictor(model, ports)
    with pytest.raises(CancelledError):
        maker.predict(asked())
    assert len(begun) == block + 1
    assert torch.equal(maker.predict(asked()), clean)


def test_a_clean_frame_has_a_timestep_of_its_own():
    shape = (1, 48, 3, 4, 6)
    maker = predictor("ti2v-5b")
    t = torch.tensor([[0.0, 600.0, 600.0]])
    made = maker.predict(replace(asked(0.6, shape=shape), t=t))
    tokens = maker.model.high.module(draw(1, *shape), t.repeat_interleave(6, dim=1), draw(5, 1, 7, 24))
    torch.testing.assert_close(made, tokens, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(made, maker.predict(asked(0.6, shape=shape)))


def test_memory_that_is_held_is_not_asked_for_again():
    maker = predictor("t2v-1.3b")
    before = maker.smallest_work_bytes(2, *SHAPE[2:])
    assert before > 2**20
    maker.predict(asked())
    assert maker.smallest_work_bytes(2, *SHAPE[2:]) == maker.smallest_work_bytes(1, *SHAPE[2:]) == 0
    assert maker.smallest_work_bytes(4, *SHAPE[2:]) > before
    maker.close()
    assert maker.smallest_work_bytes(2, *SHAPE[2:]) == before


def test_weights_that_a_host_took_off_are_brought_back():
    model, placed = tiny.model("t2v-1.3b"), []

    class Host(PlainMemory):
        def place(self, weights, activation_bytes, certain=True):
            placed.append(weights.name)
            return super().place(weights, activation_bytes, certain)

    maker = predictor(model=model, memory=Host())
    maker.predict(asked())
    maker.predict(asked(0.5))
    assert len(placed) == 1
    model.high._where = torch.device("meta")
    model.high.go_home = lambda: setattr(model.high, "_where", torch.device("cpu"))
    maker.predict(asked(0.4))
    assert len(placed) == 2


def test_the_models_own_budget_and_attention_hold_here_too():
    """As Wan Core Memory sets them."""
    told: list[str] = []
    model = tiny.model("t2v-1.3b")
    maker = predictor(model=model)
    whole = maker.predict(asked())
    least = smallest_bytes(model.high.sizes(), 1, maker._work(SHAPE[0], *SHAPE[2:]))
    options = RunOptions(budget_bytes=least, attention="nowhere")
    made = predictor(model=replace(model, options=options), told=told).predict(asked())
    torch.testing.assert_close(made, whole, atol=1e-5, rtol=1e-5)
    assert any("Streams" in sentence for sentence in told), told
    assert any("'nowhere' is not installed" in sentence for sentence in told), told


def test_nan_is_said_with_the_noise_level():
    model = tiny.model("t2v-1.3b")
    model.high.module.head.head.weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"noise level 0\.950"):
        predictor(model=model).predict(asked())


def test_a_text_of_another_width_is_refused():
    with pytest.raises(MismatchError, match="23 wide, the model takes 24"):
        predictor().predict(replace(asked(), text=draw(5, 1, 7, 23)))


@pytest.fixture
def scheduled(tmp_path):
    """A model with a LoRA whose strength changes at step 2 of four."""

    model, path = tiny.model("t2v-1.3b"), tmp_path / "a.safetensors"
    save_file(make("PEFT (diffusion_model.)", model.variant.dit), path)
    strength = parse_strength("0: 1, 2: 0.25")
    return model, add_lora(model, path, strength=strength, strength_low=strength, notify=lambda text: None)


@pytest.mark.parametrize("memory", [PlainMemory(), Planned(1)])
def test_a_strength_over_steps_follows_the_run_that_asks(scheduled, memory):
    bare, model = scheduled
    sigmas, maker = torch.tensor([1.0, 0.9, 0.6, 0.3, 0.0]), predictor(model=scheduled[1], memory=memory)
    strong, weak = (lambda level: asked(level, 7, sigmas=sigmas)), {}
    for level in (1.0, 0.95, 0.9 - 1e-6, 0.6, 0.45, 0.3, 0.05, 0.9):
        weak[level] = maker.predict(strong(level))

    for strength, levels in ((1.0, (1.0, 0.95, 0.9 - 1e-6, 0.9)), (0.25, (0.6, 0.45, 0.3, 0.05))):
        fixed = replace(model.loras[0], strength_high=constant(strength))
        other = predictor(model=replace(model, loras=(fixed,)), memory=memory)
        for level in levels:
            torch.testing.assert_close(weak[level], other.predict(asked(level, 7)), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(weak[1.0], predictor(model=bare, memory=memory).predict(asked(1.0, 7)))


def test_an_expert_whose_turn_is_over_takes_off_what_it_wore_at_home(tmp_path):
    """What it wears there is a copy of its weights, and an expert is large."""

    model, path = tiny.model("t2v-a14b"), tmp_path / "a.safetensors"
    save_file(make("PEFT (diffusion_model.)", model.variant.dit), path)
    model = add_lora(model, path, path, strength=constant(1.0), strength_low=constant(1.0), notify=lambda text: None)
    home = {name: param.data_ptr() for name, param in model.high.module.named_parameters()}
    worn = lambda: sum(p.data_ptr() != home[name] for name, p in model.high.module.named_parameters())  # noqa: E731
    maker = predictor(model=model)
    maker.predict(asked(0.95))
    assert worn() > 3
    maker.predict(asked(0.1))
    assert worn() == 0


def test_a_sampler_that_does_not_tell_its_steps_gets_no_strength_over_steps(scheduled):
    with pytest.raises(InputError, match="does not tell its steps"):
        predictor(model=scheduled[1]).predict(asked())


@pytest.mark.parametrize(("sigmas", "is_part"), [((1.0, 0.5, 0.0), False), ((0.5, 0.0), True), ((1.0, 0.5), True)])
def test_a_part_of_a_run_is_said_once_where_the_strength_counts_its_steps(scheduled, sigmas, is_part):
    told: list[str] = []
    maker = predictor(model=scheduled[1], told=told)
    for level in sigmas[:-1]:
        maker.predict(asked(level, sigmas=torch.tensor(sigmas)))
    assert sum("counts the steps of this sampler alone" in sentence for sentence in told) == is_part, json.dumps(told)


def test_a_model_that_was_trained_with_empty_tokens_gets_them_where_there_is_no_picture():
    """As our sampler gives them."""
    shape, clip = (1, 36, 2, 4, 6), torch.zeros(1, 257, 32)
    made = {
        name: predictor("fun-inp-1.3b").predict(asked(shape=shape, **more))
        for name, more in {"none": {}, "zeros": {"clip": clip}, "picture": {"clip": draw(4, 1, 257, 32)}}.items()
    }
    assert torch.equal(made["none"], made["zeros"])
    assert (made["none"] - made["picture"]).abs().max() > 1e-3
