"""A plan of a run says what the run then does: the same memory, the same refusals, and nothing is read for it."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import ImageColor
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from scripts import tiny_models
from tests import tiny
from wan_core.configs import VaeConfig
from wan_core.errors import CapacityError, MismatchError
from wan_core.models.dit import WanDiT
from wan_core.models.vae import WanVAE
from wan_core.runtime.memory import Rates, dit_work
from wan_core.runtime.ports import Compute, PlainMemory, Ports
from wan_core.sampling.loras import constant
from wan_core.stages import load, plan, sample, vae
from wan_core.stages.lora import add_lora
from wan_core.stages.plan_picture import BAR, MARGIN, ROOM, ROW, WEIGHTS, WIDTH, WORK, plan_image
from wan_core.stages.vae_work import decode_flops, encode_flops
from wan_core.weights.checkpoint import Checkpoint

CPU = torch.device("cpu")
RATES = Rates(matmul=1e9, attention=1e9, link=1e6)
HOST = 10**11


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_models.make(tmp_path_factory.mktemp("plan"))


def machine(memory=None, budget: int | None = None) -> plan.Machine:
    return plan.Machine(
        memory=memory or PlainMemory(budget),
        budget_of=lambda device: budget,
        rates_of=lambda device, dtype: RATES,
        host_bytes=HOST,
    )


def start(variant, *size: int) -> sample.StartLatent:
    return sample.StartLatent(samples=torch.zeros(1, variant.latent.channels, *size))


def loaded(files: dict, name: str = "t2v", vae_name: str = "vae") -> plan.Parts:
    compute = Compute(device=CPU)
    return plan.Parts(
        model=load.load_model(files[name], compute=compute, notify=lambda text: None),
        text_encoder=load.load_text_encoder(files["text_encoder"], compute=compute),
        vae=load.load_vae(files[vae_name], compute=compute),
        clip_vision=load.load_clip_vision(files["clip_vision"], compute=compute),
    )


def stage(made, name: str) -> plan.StagePlan:
    return next(one for one in made.stages if one.name == name)


def test_no_tensor_is_read_and_no_module_built(files, monkeypatch):
    def read(self, name):
        raise AssertionError(f"{self.path.name}: {name} was read")

    monkeypatch.setattr(Checkpoint, "get", read)
    parts = loaded(files, "i2v")
    made = plan.plan_run(parts, start(parts.model.variant, 2, 8, 8), sample.Settings(), machine())
    assert [one.name for one in made.stages] == ["Text encode", "CLIP vision", "VAE encode", "Sampler", "VAE decode"]
    assert made.is_possible, made.as_text()
    held = [parts.model.high, parts.text_encoder.weights, parts.vae.weights, parts.clip_vision.weights]
    assert all(weights._module is None for weights in held)
    assert all(one.weight_bytes > 0 and one.peak_bytes > 0 and one.seconds > 0 for one in made.stages)


class Keeping(PlainMemory):
    """Keeps the last plan."""

    def plan(self, *args):
        self.made = super().plan(*args)
        return self.made


CONDITION = sample.Condition(text=torch.randn(1, 5, 4096, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def deep(files):
    """A model of six blocks, so that some can be streamed."""
    state = tiny_models.randomised(WanDiT, replace(tiny_models.DIT, num_layers=6), torch.Generator().manual_seed(2))
    path = files["t2v"].with_name("deep_t2v_fp32.safetensors")
    save_file(state, path)
    return path


@pytest.mark.parametrize("slots", [4, 5, 100])
@pytest.mark.parametrize("with_lora", [False, True])
def test_the_sampler_then_plans_what_was_said(files, deep, slots, with_lora):
    model = load.load_model(deep, compute=Compute(device=CPU), notify=lambda text: None)
    if with_lora:
        full = constant(1.0)
        model = add_lora(model, files["lora"], strength=full, strength_low=full, notify=lambda text: None)
    settings, latent = sample.Settings(steps=2), start(model.variant, 2, 8, 8)
    free = stage(plan.plan_run(plan.Parts(model=model), latent, settings, machine()), "Sampler")
    budget = free.work_bytes + model.high.sizes().rest + slots * model.high.sizes().largest * 11 // 10
    said = stage(plan.plan_run(plan.Parts(model=model), latent, settings, machine(budget=budget)), "Sampler")
    memory = Keeping(budget)
    sample.sample(model, CONDITION, CONDITION, latent, settings, Ports(memory=memory))
    assert memory.made.whole == (slots == 100)
    assert said.work_bytes == memory.made.work_bytes
    assert said.peak_bytes == pytest.approx(memory.made.peak_bytes, rel=1e-3)
    assert said.placement == memory.made.describe()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_products_that_a_cpu_only_emulates_are_planned_for(files, monkeypatch, native, precision):
    monkeypatch.setattr(sample, "has_bf16", lambda device: native)
    model = load.load_model(files["t2v"], compute=Compute(device=CPU), dtype=precision, notify=lambda text: None)
    planned = sample.work_of(model, 1, 64, 2).bytes_at(64, False)
    with_copies, without = (
        dit_work(model.variant.dit, 1, 64, 2, model.high.compute_dtype.itemsize, fused=False, emulated=one)
        for one in (True, False)
    )
    assert with_copies.bytes_at(64, False) > without.bytes_at(64, False)
    wanted = with_copies if precision == "bf16" and not native else without
    assert planned == wanted.bytes_at(64, False)


def test_what_cannot_fit_is_said_in_the_sentence_that_the_run_is_refused_with(files):
    model = load.load_model(files["t2v"], compute=Compute(device=CPU), notify=lambda text: None)
    latent, little = start(model.variant, 2, 8, 8), 10**7
    made = plan.plan_run(plan.Parts(model=model), latent, sample.Settings(), machine(budget=little))
    with pytest.raises(CapacityError) as refused:
        sample.sample(model, CONDITION, CONDITION, latent, sample.Settings(), Ports(memory=PlainMemory(little)))
    assert stage(made, "Sampler").problem == str(refused.value)
    assert not made.is_possible and str(refused.value) in made.as_text()


def test_parts_that_do_not_fit_together_are_named_as_the_stages_name_them(files):
    parts = loaded(files, vae_name="vae_22")
    narrow = replace(parts.text_encoder, config=replace(parts.text_encoder.config, dim=768))
    latent = start(parts.model.variant, 2, 8, 8)
    made = plan.plan_run(replace(parts, text_encoder=narrow), latent, sample.Settings(), machine())
    with pytest.raises(MismatchError) as wrong_vae:
        vae.decode(parts.vae, latent.samples, Ports())
    with pytest.raises(MismatchError) as wrong_text:
        short = sample.Condition(text=torch.randn(1, 5, 768))
        sample.sample(parts.model, short, short, latent, sample.Settings(), Ports())
    assert set(made.problems) == {str(wrong_vae.value), str(wrong_text.value)}


def test_a_latent_of_another_model_is_a_problem_and_its_size_is_planned_all_the_same(files):
    parts = plan.Parts(model=loaded(files).model)
    latent = sample.StartLatent(samples=torch.zeros(1, 48, 2, 8, 8))
    made = plan.plan_run(parts, latent, sample.Settings(), machine())
    assert any("takes 16 channels" in problem for problem in made.problems)
    assert made.stages


def test_clip_vision_is_missed_where_the_model_takes_it_and_harmless_where_it_does_not(files):
    parts = loaded(files, "i2v")
    latent = start(parts.model.variant, 2, 8, 8)
    without = plan.plan_run(replace(parts, clip_vision=None), latent, sample.Settings(), machine())
    assert any("takes CLIP vision features" in note for note in without.notes)
    unused = plan.plan_run(loaded(files), latent, sample.Settings(), machine())
    assert any("harmless" in note for note in unused.notes)
    assert "CLIP vision" not in [one.name for one in unused.stages]


def test_no_guidance_takes_half_the_time_and_each_step_as_long_as_the_next(files):
    parts = plan.Parts(model=loaded(files).model)
    latent = start(parts.model.variant, 2, 8, 8)

    def seconds(**settings) -> float:
        return plan.plan_run(parts, latent, sample.Settings(**settings), machine()).seconds

    fixed = parts.model.high.sizes().total / RATES.link
    once, twice, longer = seconds(steps=4, guidance_high=1.0), seconds(steps=4), seconds(steps=8)
    assert twice - fixed == pytest.approx(2 * (once - fixed), rel=1e-6)
    assert longer - fixed == pytest.approx(2 * (twice - fixed), rel=1e-6)


@pytest.mark.parametrize(
    "config",
    [VaeConfig(dim=8, dec_dim=8), VaeConfig(dim=8, dec_dim=12, z_dim=48, patch=2, shortcuts=True)],
    ids=["2.1", "2.2"],
)
def test_the_arithmetic_of_a_vae_is_what_pytorch_counts(config):
    with torch.device("meta"):
        network = WanVAE(config)
        latent = torch.empty(1, config.z_dim, 3, 4, 6)
        clip = torch.empty(1, 3, 9, 4 * config.stride_hw, 6 * config.stride_hw)
    for run, flops in ((lambda: network.decode(latent), decode_flops), (lambda: network.encode(clip), encode_flops)):
        with FlopCounterMode(display=False) as counter:
            run()
        assert flops(config, 3, 4, 6) == counter.get_total_flops()


def test_a_program_reads_the_same_plan(files):
    parts = loaded(files)
    made = plan.plan_run(parts, start(parts.model.variant, 2, 8, 8), sample.Settings(), machine())
    again = json.loads(json.dumps(made.as_dict()))
    assert again["seconds"] == made.seconds and again["is_possible"] is True
    assert [one["peak_bytes"] for one in again["stages"]] == [one.peak_bytes for one in made.stages]


def test_the_bars_end_where_the_numbers_say():
    budget, size = 400_000_000, (2, 32, 32)
    model = tiny.model("t2v-1.3b")
    made = plan.plan_run(plan.Parts(model=model), start(model.variant, *size), sample.Settings(), machine(None, budget))
    (sampler,) = made.stages
    image = plan_image(made)
    colours = {ImageColor.getrgb(name) for name in (WEIGHTS, WORK)}
    row = [image.getpixel((x, image.height - 32 - ROW + 21 + BAR // 2)) for x in range(WIDTH)]
    coloured = [x for x, pixel in enumerate(row) if pixel in colours]
    wide = ROOM * (WIDTH - 2 * MARGIN)
    assert coloured[0] == MARGIN
    assert coloured[-1] == pytest.approx(MARGIN + wide * sampler.peak_bytes / budget, abs=2)
