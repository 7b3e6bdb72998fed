"""A whole sampling run: experts, cancel, refusals, resumption."""

import pytest
import torch

from tests import tiny
from wan_core.errors import InputError, MismatchError, NonFiniteError
from wan_core.runtime.ports import PlainMemory, Ports
from wan_core.stages.sample import Settings, StartLatent, resolve, sample
from wan_core.stages.sides import Condition
from wan_core.variants import Feature

SHAPE = (1, 16, 3, 6, 8)


class CancelledError(Exception):
    """What a host raises."""


def condition(seed: int = 5, **extra) -> Condition:
    return Condition(text=torch.randn(1, 7, 24, generator=torch.Generator().manual_seed(seed)), **extra)


def start(shape=SHAPE, **extra) -> StartLatent:
    return StartLatent(samples=torch.zeros(shape), **extra)


def run(model, settings=None, ports=None, positive=None, negative=None, latent=None):
    settings = settings or Settings(seed=3, steps=4)
    return sample(
        model, positive or condition(), negative or condition(6), latent or start(), settings, ports or Ports()
    )


@pytest.mark.parametrize("name", ["t2v-1.3b", "t2v-a14b", "i2v-a14b", "i2v-14b-480p"])
def test_equal_seeds_give_equal_bits_and_another_seed_another_latent(name):
    model = tiny.model(name)
    first = run(model)
    assert torch.equal(first, run(model))
    assert (first - run(model, Settings(seed=4, steps=4))).abs().max() > 0.1


def test_guidance_1_never_evaluates_the_negative_prompt():
    model, calls = tiny.model("t2v-1.3b"), []
    model.high.module.register_forward_hook(lambda *_: calls.append(1))
    run(model, Settings(steps=4, guidance_high=1.0))
    assert len(calls) == 4
    run(model, Settings(steps=4, guidance_high=2.0))
    assert len(calls) == 4 + 8


def test_each_expert_does_its_own_steps_and_is_told_so():
    model, used, told = tiny.model("t2v-a14b"), [], []
    for side in ("high", "low"):
        getattr(model, side).module.register_forward_hook(lambda *_, side=side: used.append(side))
    run(model, Settings(steps=8, guidance_high=1.0, guidance_low=1.0), Ports(notify=told.append))
    assert used == ["high"] * 6 + ["low"] * 2
    assert "6 steps" in told[0] and "low-noise for 2" in told[0]
    used.clear()
    run(model, Settings(steps=8, guidance_high=1.0, switch_step=3))
    assert used == ["high"] * 3 + ["low"] * 5


def test_two_halves_with_leftover_noise_make_the_whole():
    model = tiny.model("t2v-1.3b")
    whole = run(model, Settings(seed=3, steps=6, solver="euler"))
    half = run(model, Settings(seed=3, steps=6, solver="euler", end_step=2))
    joined = run(model, Settings(seed=9, steps=6, solver="euler", start_step=2), latent=StartLatent(samples=half))
    torch.testing.assert_close(joined, whole, atol=1e-4, rtol=0)


def test_two_halves_keep_a_clean_first_frame():
    model = tiny.model("ti2v-5b")
    samples = torch.randn(1, 48, 3, 4, 6)
    mask = torch.ones(1, 1, 3, 4, 6)
    mask[:, :, 0] = 0
    settings = {"seed": 3, "steps": 6, "solver": "euler"}
    start_latent = StartLatent(samples=samples * (1 - mask), noise_mask=mask)
    whole = run(model, Settings(**settings), latent=start_latent)
    half = run(model, Settings(**settings, end_step=3), latent=start_latent)
    torch.testing.assert_close(half[:, :, 0], samples[:, :, 0], atol=1e-5, rtol=0)
    second = StartLatent(samples=half, noise_mask=mask)
    torch.testing.assert_close(run(model, Settings(**settings, start_step=3), latent=second), whole, atol=1e-4, rtol=0)


def test_a_split_of_sigmas_joins_when_the_second_half_adds_no_noise():
    model, sigmas = tiny.model("t2v-1.3b"), torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])
    whole = run(model, Settings(seed=3, solver="euler", sigmas=sigmas))
    half = run(model, Settings(seed=3, solver="euler", sigmas=sigmas[:3]))
    second = Settings(seed=8, solver="euler", sigmas=sigmas[2:], add_noise=False)
    torch.testing.assert_close(run(model, second, latent=StartLatent(samples=half)), whole, atol=1e-4, rtol=0)


def test_weights_are_placed_once_an_expert_and_not_at_every_step():
    placed: list[str] = []

    class Memory(PlainMemory):
        def place(self, weights, activation_bytes, certain=True):
            placed.append(weights.name)
            return super().place(weights, activation_bytes, certain)

    run(tiny.model("t2v-a14b"), Settings(steps=8), Ports(memory=Memory()))
    assert placed == ["t2v-a14b high", "t2v-a14b low"]


def test_partial_denoise_starts_from_the_latent_that_comes_in():
    model = tiny.model("t2v-1.3b")
    given = StartLatent(samples=torch.randn(SHAPE))
    near = run(model, Settings(seed=3, steps=10, denoise=0.1), latent=given)
    far = run(model, Settings(seed=3, steps=10, denoise=0.9), latent=given)
    assert (near - given.samples).std() < (far - given.samples).std()


@pytest.mark.parametrize("block", range(0, 24, 5))
def test_cancel_acts_before_the_next_block_and_leaves_no_trace(block):
    model = tiny.model("t2v-a14b")
    clean = run(model)
    begun, cancelled = [], []

    def press(*_):
        begun.append(1)
        if len(begun) == block + 1:
            cancelled.append(len(begun))

    hooks = [b.register_forward_pre_hook(press) for side in (model.high, model.low) for b in side.module.blocks]

    def check():
        if cancelled:
            raise CancelledError

    with pytest.raises(CancelledError):
        run(model, ports=Ports(check_cancel=check))
    assert len(begun) - cancelled[0] == 0, "a block began after cancel was pressed"
    for hook in hooks:
        hook.remove()
    assert torch.equal(run(model), clean)


@pytest.mark.parametrize("expert", ["high", "low"])
def test_nan_stops_the_run_and_names_step_and_expert(expert):
    model = tiny.model("t2v-a14b")
    getattr(model, expert).module.head.head.weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=rf"step {1 if expert == 'high' else 4} of 4 .*{expert}-noise expert"):
        run(model, Settings(steps=4))


def test_a_clean_first_frame_stays_and_the_others_are_made():
    model = tiny.model("ti2v-5b")
    shape = (1, 48, 3, 4, 6)
    samples = torch.zeros(shape)
    samples[:, :, 0] = torch.randn(1, 48, 4, 6)
    mask = torch.ones(1, 1, *shape[2:])
    mask[:, :, 0] = 0
    out = run(model, latent=StartLatent(samples=samples, noise_mask=mask))
    torch.testing.assert_close(out[:, :, 0], samples[:, :, 0], atol=1e-5, rtol=0)
    assert out[:, :, 1:].std() > 0.1


def test_every_zero_is_filled_from_the_variant():
    row = tiny.variant("t2v-a14b")
    plan = resolve(Settings(), row)
    assert (len(plan.whole), plan.shift, plan.guidance_high, plan.guidance_low) == (40, 12.0, 4.0, 3.0)
    assert plan.boundary == 0.875
    assert resolve(Settings(guidance_high=2.5), row).guidance_low == 2.5


known = {"known_latent": torch.randn(1, 16, 3, 6, 8), "known_mask": torch.ones(1, 4, 3, 6, 8)}
REFUSALS = [
    ("t2v-1.3b", {"latent": start((1, 48, 3, 6, 8))}, MismatchError, ["48", "16", "Wan 2.1 VAE"]),
    ("t2v-1.3b", {"positive": condition(**known)}, MismatchError, ["takes none", "image-to-video"]),
    ("i2v-a14b", {"positive": condition(known_latent=torch.randn(1, 16, 2, 6, 8))}, MismatchError, ["same width"]),
    ("t2v-1.3b", {"positive": Condition(text=torch.randn(1, 7, 32))}, MismatchError, ["32", "24", "umT5"]),
    ("t2v-1.3b", {"latent": start(noise_mask=torch.full((1, 1, 3, 6, 8), 1.5))}, InputError, ["noise mask", "Clamp"]),
    ("t2v-1.3b", {"latent": start(noise_mask=torch.ones(6, 8))}, InputError, ["[6, 8]", "mask of the clip"]),
    ("t2v-1.3b", {"latent": start(noise_mask=torch.ones(2, 1, 3, 6, 8))}, MismatchError, ["2 clips", "latent 1"]),
    (
        "t2v-1.3b",
        {
            "settings": Settings(steps=4, start_step=2),
            "latent": StartLatent(samples=torch.ones(SHAPE), noise_mask=torch.ones(3, 6, 8)),
        },
        MismatchError,
        ["another sampler", "one Wan Core Sampler"],
    ),
    ("i2v-a14b", {"positive": condition(subjects=torch.zeros(1, 16, 2, 6, 8))}, MismatchError, ["I2V A14B", "Phantom"]),
    ("t2v-1.3b", {"positive": condition(subjects=torch.zeros(1, 16, 2, 6, 6))}, MismatchError, ["[16, 2, 6, 6]"]),
    ("t2v-1.3b", {"positive": condition(strength=-1.0)}, InputError, ["strength", "-1.0"]),
    ("t2v-1.3b", {"positive": condition(start=0.8, end=0.2)}, InputError, ["0.8 and 0.2"]),
    ("t2v-1.3b", {"positive": [condition(end=0.5)]}, InputError, ["positive", "step 3", "Widen"]),
    ("t2v-1.3b", {"negative": [condition(strength=0.0)]}, InputError, ["negative", "step 1", "above 0"]),
    ("t2v-1.3b", {"settings": Settings(steps=4, start_step=4)}, InputError, ["start_step 4", "below"]),
    ("i2v-14b-480p", {"positive": condition(clip=torch.randn(1, 257, 48))}, MismatchError, ["48", "32", "ViT-H"]),
    ("t2v-1.3b", {"latent": StartLatent(samples=torch.full(SHAPE, float("nan")))}, InputError, ["NaN"]),
]


@pytest.mark.parametrize(("name", "parts", "error", "words"), REFUSALS, ids=[f"{r[0]}-{r[3][0]}" for r in REFUSALS])
def test_parts_that_do_not_fit_are_refused_before_the_first_step(name, parts, error, words):
    model, steps = tiny.model(name), []
    with pytest.raises(error) as caught:
        run(model, ports=Ports(progress=lambda *_: steps.append(1)), **parts)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not steps


@pytest.mark.parametrize("rows", [1, 7, 510, 511, 512])
def test_folding_the_empty_rows_of_the_text_changes_nothing_but_rounding(rows, monkeypatch):
    model = tiny.model("t2v-1.3b")
    text = torch.zeros(1, 512, 24)
    text[:, :rows] = torch.randn(1, rows, 24)
    seen = []
    model.high.module.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[4].shape[1]))
    folded = run(model, positive=Condition(text=text))
    monkeypatch.setattr("wan_core.stages.sides.folded", lambda text, cfg: (text, None))
    whole = run(model, positive=Condition(text=text))
    assert min(rows + 1, 512) in seen and 512 in seen
    torch.testing.assert_close(folded, whole, atol=1e-4 * whole.abs().max().item(), rtol=0)


@pytest.mark.parametrize("name", ["fun-inp-1.3b", "fun-control-v1.1-1.3b", "fun-camera-1.3b"])
def test_a_fun_model_without_a_picture_gets_clip_tokens_of_zeros(name):
    """As VideoX-Fun does; I2V models, which were never trained so, get none."""
    model = tiny.model(name)
    blank = condition(clip=torch.zeros(1, 257, 32)), condition(6, clip=torch.zeros(1, 257, 32))
    assert torch.equal(run(model), run(model, positive=blank[0], negative=blank[1]))
    seen = condition(clip=torch.randn(1, 257, 32))
    assert (run(model) - run(model, positive=seen)).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["fun-control-1.3b", "fun-control-a14b", "fun-control-5b"])
def test_a_control_model_sees_control_mask_and_start_in_the_order_it_was_trained_in(name):
    """A model that reads one group of channels alone is changed by that condition alone."""
    row = tiny.variant(name)
    channels, shape = row.latent.channels, (1, row.latent.channels, *SHAPE[2:])
    mask = 4 if Feature.CONCAT in row.features else 0
    groups = {"control_latent": (channels, 2 * channels), "known_latent": (2 * channels + mask, 3 * channels + mask)}
    if mask:
        groups["known_mask"] = (2 * channels, 2 * channels + 4)
    assert row.dit.in_dim == 3 * channels + mask
    values = {key: torch.randn(shape) for key in groups if key != "known_mask"}
    values |= {"known_mask": torch.zeros(1, 4, *SHAPE[2:])} if mask else {}
    for group, (begin, end) in groups.items():
        model = tiny.model(name)
        for expert in filter(None, (model.high, model.low)):
            weight = expert.module.patch_embedding.weight
            kept = weight[:, begin:end].clone()
            weight[:, channels:] = 0
            weight[:, begin:end] = kept
        whole = run(model, positive=condition(**values), latent=start(shape))
        for key, value in values.items():
            changed = condition(**(values | {key: value + 1}))
            same = torch.equal(whole, run(model, positive=changed, latent=start(shape)))
            assert same == (key != group), (group, key)
