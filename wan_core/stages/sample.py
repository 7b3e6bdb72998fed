"""Noise and conditions -> latent: the composition of schedule, experts, guidance and solver."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..conditioning.checks import check_tensor
from ..conditioning.known_frames import LATENT_LAYOUT
from ..errors import InputError, MismatchError, first_few
from ..grid import PATCH_HW, check_amount
from ..models.dit import Inputs
from ..models.dit_block import TextMemory
from ..models.nag import NegativeText
from ..runtime.attention import using
from ..runtime.finite import check_finite
from ..runtime.memory import Work, dit_work
from ..runtime.ports import Ports
from ..runtime.stay import Stay, Stop
from ..sampling.experts import by_boundary, by_step, expert_names
from ..sampling.given import GivenParts
from ..sampling.guidance import check_scale, passes
from ..sampling.guidance_options import PLAIN, GuidanceOptions, StepGuidance, guided_by
from ..sampling.loras import changes_at
from ..sampling.noise import SEEDS, initial_noise, leave_off, noisy_start, step_noise, take_up
from ..sampling.sigmas import Schedule, Step, from_sigmas, make_schedule
from ..sampling.solvers import DEFAULT_SCHEDULE, SOLVERS, Denoise, StepResult
from ..variants import Feature, WanVariant
from ..weights.precision import has_bf16
from .guidance import check_guidance
from .inpaint import given_parts, is_start
from .load import ModelHandle
from .sides import Condition, Side, averaged, check_sides, counting, prepared

AUTO = "auto"
MAX_BATCH_INDEX = 1023
"""Noises are drawn one after another up to the highest that is asked for."""
ALMOST_ALL_NOISE = 0.95
"""Schedules of a whole run begin at 0.97 and above, whatever their shift."""
NOT_FINITE = (
    "Load the model with precision bf16 or fp32 and try again; if it stays, the file may be damaged: download it again."
)

LORAS_FIRST = "Lower the strength of the LoRA, or take it away. "


@dataclass(frozen=True, kw_only=True)
class StartLatent:
    """What sampling starts from: ``samples`` ``[B, C, T, h, w]`` not normalised (all zero: nothing), ``noise_mask``
    ``[frames, H, W]`` or ``[B or 1, 1, frames, H, W]`` of any size, 0 where the latent is given, 1 where it is made,
    and ``batch_index``, as ComfyUI's LATENT has them."""

    samples: Tensor
    noise_mask: Tensor | None = None
    batch_index: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The sampler's knobs. 0 or ``auto`` leaves a number to the variant (``resolve`` fills it in)."""

    seed: int = 0
    steps: int = 0
    solver: str = "unipc"
    schedule: str = AUTO
    shift: float = 0.0
    guidance_high: float = 0.0
    guidance_low: float = 0.0
    boundary: float = 0.0
    switch_step: int = 0
    denoise: float = 1.0
    start_step: int = 0
    end_step: int = 10000
    add_noise: bool = True
    """False: the latent that comes in already holds the noise of the first step. Never added when start_step > 0."""
    sigmas: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings with every number filled in, and the steps that will run."""

    schedule: Schedule
    whole: Schedule
    solver: str
    shift: float | None
    """None: the noise levels came off the SIGMAS wire."""
    guidance_high: float
    guidance_low: float
    boundary: float | None
    switch_step: int | None
    experts: tuple[str, ...]
    add_noise: bool
    seed: int


def resolve(settings: Settings, variant: WanVariant) -> Plan:
    """Fill in the variant's own numbers and lay out the steps; errors name the value."""
    _check_settings(settings)
    own = variant.defaults
    shift = settings.shift or own.shift
    guidance_high = settings.guidance_high or own.guidance_high
    guidance_low = settings.guidance_low or settings.guidance_high or own.guidance_low
    name = DEFAULT_SCHEDULE[settings.solver] if settings.schedule == AUTO else settings.schedule
    if settings.sigmas is not None:
        whole = from_sigmas(settings.sigmas)
    else:
        whole = make_schedule(name, settings.steps or own.steps, shift, settings.denoise)
    steps = len(whole)
    if settings.start_step >= min(settings.end_step, steps):
        raise InputError(
            f"start_step {settings.start_step} leaves no step: sampling ends at step "
            f"{min(settings.end_step, steps)} of {steps}. Use a start_step below that."
        )
    schedule = whole.slice(settings.start_step, min(settings.end_step, steps))
    boundary = switch_step = None
    if variant.experts == 2:
        switch_step = settings.switch_step or None
        boundary = None if switch_step else settings.boundary or variant.boundary
    return Plan(
        schedule=schedule,
        whole=whole,
        solver=settings.solver,
        shift=None if settings.sigmas is not None else shift,
        guidance_high=guidance_high,
        guidance_low=guidance_low,
        boundary=boundary,
        switch_step=switch_step,
        experts=expert_names(schedule, boundary=boundary, switch_step=switch_step),
        add_noise=settings.add_noise and settings.start_step == 0,
        seed=settings.seed,
    )


def _check_settings(settings: Settings) -> None:
    """What no later stage looks at; steps, shift, denoise, guidance and sigmas are judged where they are used."""
    if settings.solver not in SOLVERS:
        raise InputError(f"unknown solver {settings.solver!r}. Use one of {', '.join(SOLVERS)}.")
    if not 0 <= settings.boundary <= 1:  # true for NaN too
        raise InputError(f"boundary must be from 0 (the model's own) to 1; got {settings.boundary}. Wan uses 0.9.")
    if settings.switch_step < 0 or settings.start_step < 0 or settings.end_step < 1:
        raise InputError(
            f"switch_step and start_step are 0 or more, end_step 1 or more; got {settings.switch_step}, "
            f"{settings.start_step} and {settings.end_step}. Use 0, 0 and 10000 for a whole run."
        )
    if not 0 <= settings.seed < SEEDS:
        raise InputError(f"seed must be from 0 to 2^64 - 1; got {settings.seed}.")


def describe(plan: Plan, variant: WanVariant, options: GuidanceOptions = PLAIN) -> str:
    """The plan as one sentence for the node, and one for each extra of guidance."""
    return " ".join((_described(plan, variant, options.over_steps is not None), *options.describe()))


def _described(plan: Plan, variant: WanVariant, over_steps: bool) -> str:
    first = plan.schedule.steps[0].index
    text = f"{len(plan.schedule)} of {len(plan.whole)} steps" if len(plan.schedule) < len(plan.whole) else ""
    levels = "noise levels from the wire" if plan.shift is None else f"shift {plan.shift:g}"
    text = (text or f"{len(plan.whole)} steps") + f", {plan.solver}, {levels}"
    if variant.experts == 1:
        return f"{text}." if over_steps else f"{text}, guidance {plan.guidance_high:g}."
    high = plan.experts.count("high")
    guidance = ("", "") if over_steps else (f" (guidance {g:g})" for g in (plan.guidance_high, plan.guidance_low))
    of_high, of_low = guidance
    where = f"high-noise expert for {high} steps{of_high}"
    rest = f"low-noise for {len(plan.experts) - high}{of_low}"
    begins = f", beginning with step {first + 1}" if first else ""
    return f"{text}; {where}, {rest}{begins}."


@torch.no_grad()
def sample(
    model: ModelHandle,
    positive: Condition | Sequence[Condition],
    negative: Condition | Sequence[Condition] | None,
    start: StartLatent,
    settings: Settings,
    ports: Ports,
) -> Tensor:
    """Run the sampler. A side may have several entries, of which those that count at a noise level are averaged.

    Returns:
        Latent ``[B, C, T, h, w]`` float32 on the CPU, not normalised. With steps left (``end_step``), the noisy latent
        in native ComfyUI's convention for leftover noise, so that either sampler can go on with the other's.
    """
    variant = model.variant
    check_latent(variant, start)
    plan = resolve(settings, variant)
    given = _given(start, plan, variant, ports)
    parts = given_parts(
        start.noise_mask, given, variant, ports.notify,
        begins=plan.add_noise, ends=plan.schedule.sigmas[-1].item() == 0, is_empty=not start.samples.any(),
    )  # fmt: skip
    positive, negative = _entries(positive), _entries(negative)
    device = model.high.device
    like = given.to(device)
    shift, made = settings.shift or variant.defaults.shift, None if parts is None else parts.made
    if settings.sigmas is not None and any((one.start, one.end) != (0, 1) for one in (*positive, *negative)):
        ports.notify(
            f"Parts of the run that conditionings count in are reckoned with shift {shift:g}: the noise levels on the "
            "wire do not tell theirs. Set shift to that of the scheduler."
        )
    conditions = [
        [prepared(one, variant, like, ports, shift, made) for one in side] for side in (positive, negative) if side
    ]
    check_sides(positive, negative, ports)
    is_clean = parts is not None and Feature.FIRST_FRAME in variant.features
    if is_clean and is_start(parts) and Feature.CONCAT in variant.features and not _has_picture(positive):
        raise MismatchError(
            f"{variant.title} takes its picture in the latent and beside the noise; here it is in the latent alone. "
            "Connect the model to Wan Core Image to Video, or use Wan Core Fun Control or Camera Control."
        )
    for scale in (plan.guidance_high, *(() if model.low is None else (plan.guidance_low,))):
        # Of both experts, whether or not each has a step to do.
        check_scale(scale, bool(negative) or model.guidance.over_steps is not None)
    check_guidance(model.guidance, step_guidance(model, plan), bool(negative), ports.notify)
    if model.guidance.nag is not None and [(one.start, one.end) for one in negative] != [(0.0, 1.0)]:
        raise InputError(
            f"NAG guides away from one negative prompt in all steps; the negative conditioning has {len(negative)} "
            "entries, or counts in a part of the run. Remove the node that combines or limits them, or remove NAG."
        )
    # All inputs are good. What a host cannot hold it refuses here, before noise of the same size is drawn.
    with _stay(model, plan, like, ports, conditions) as stay, using(model.options.attention, ports.notify):
        noise = initial_noise(tuple(given.shape), plan.seed, start.batch_index)
        placed = None if parts is None else parts.on(device, None if is_clean else noise)
        denoise = _denoiser(model, conditions, plan, placed, stay)
        ports.notify(describe(plan, variant, model.guidance))
        if not stay.plan.whole:
            ports.notify(stay.plan.describe())
        x = _solve(model, denoise, _noised(given, noise, plan), plan, ports).cpu()
    x = leave_off(x, plan.schedule.sigmas[-1].item())
    # Frames that are shown clean carry no noise that could be left over.
    return variant.latent.denormalise(parts.impose(x) if is_clean else x)


def _has_picture(side: Sequence[Condition]) -> bool:
    return any(one.known_latent is not None for one in side)


def _entries(side: Condition | Sequence[Condition] | None) -> Sequence[Condition]:
    return [side] if isinstance(side, Condition) else side or []


def _solve(model: ModelHandle, denoise: Denoise, x: Tensor, plan: Plan, ports: Ports) -> Tensor:
    """From the first noise level to the last."""
    device = model.high.device

    def on_step(result: StepResult) -> None:
        where = f"step {result.index + 1} of {len(plan.whole)} at sigma {result.step.sigma:.3f}"
        if model.variant.experts == 2:
            where += f", {plan.experts[result.done - 1]}-noise expert"
        check_finite(result.x, where, model.name, LORAS_FIRST + NOT_FINITE if model.loras else NOT_FINITE)
        ports.progress(result.done, len(plan.schedule), result.x0)

    solver, noise = SOLVERS[plan.solver], step_noise(plan.seed, device)
    return solver(denoise, x.to(device), plan.schedule, on_step=on_step, noise=noise)


def check_latent(variant: WanVariant, start: StartLatent) -> None:
    """The latent must be one of this model's space, and its noises few enough to be drawn."""
    shape, spec = list(start.samples.shape), variant.latent
    if start.samples.ndim != 5 or shape[1] != spec.channels:
        raise MismatchError(
            f"The latent is {shape} (batch, channels, frames, height, width); {variant.title} takes {spec.channels} "
            f"channels. Make it with Wan Core Empty Latent from this model, or encode with the {spec.vae}."
        )
    check_tensor(start.samples, "The latent to start from", LATENT_LAYOUT)
    check_amount(spec, *shape[2:])
    noises = [0] * shape[0] if start.batch_index is None else list(start.batch_index)
    if len(noises) != shape[0] or not all(0 <= number <= MAX_BATCH_INDEX for number in noises):
        raise InputError(
            f"batch_index must name one noise, from 0 to {MAX_BATCH_INDEX}, for each of the {shape[0]} latents; got "
            f"{first_few(map(str, noises))}. Use the latent without the node that picks from a batch."
        )


def _given(start: StartLatent, plan: Plan, variant: WanVariant, ports: Ports) -> Tensor:
    """The latent to start from, normalised; an empty one is said where something should be in it."""
    samples = start.samples.to("cpu", torch.float32)  # hosts may keep latents on the device; noise is drawn on the CPU
    if samples.any():
        return variant.latent.normalise(samples)
    if not plan.add_noise:
        raise InputError(
            f"The latent is empty and no noise is added to it: start_step {plan.schedule.first} without noise goes on "
            "with what another sampler left. Connect that sampler's latent, or begin with start_step 0 and noise."
        )
    if plan.whole.sigmas[0] < ALMOST_ALL_NOISE:
        ports.notify(
            "The schedule begins below full noise (denoise below 1, or sigmas of a part): it changes the latent that "
            "comes in, and that is empty. Connect an encoded clip, or set denoise to 1."
        )
    return samples


def _noised(given: Tensor, noise: Tensor, plan: Plan) -> Tensor:
    """The first x: noise over the given latent, or a noisy latent taken up where another sampler left off."""
    sigma = plan.schedule.sigmas[0].item()
    return noisy_start(given, noise, sigma) if plan.add_noise else take_up(given, sigma)


def extra_frames(variant: WanVariant) -> int:
    """Frames of tokens that may stand beside the clip's own."""
    return 1 if Feature.REFERENCE in variant.features else 0


def work_of(model: ModelHandle, batch: int, tokens: int, passes: int, **more: int) -> Work:
    """:func:`dit_work` in the arithmetic of this model's device; ``more`` are its arguments on what is asked."""
    device, dtype = model.high.device, model.high.compute_dtype
    emulated = device.type == "cpu" and dtype == torch.bfloat16 and not has_bf16(device)
    fused = device.type == "cuda"
    return dit_work(model.variant.dit, batch, tokens, passes, dtype.itemsize, fused=fused, emulated=emulated, **more)


def _stay(model: ModelHandle, plan: Plan, x: Tensor, ports: Ports, sides: Sequence[Sequence[Side]]) -> Stay:
    """The device, for all steps of the plan."""
    stops = []
    for number, (step, now) in enumerate(zip(plan.schedule.steps, step_guidance(model, plan))):
        side = plan.experts[number] if model.low is not None else "high"
        weights = {"high": model.high, "low": model.low}[side]
        changes = changes_at(model.loras, side, step.index, len(plan.whole))
        stops.append(Stop(weights=weights, changes=changes, passes=_predictions(now, step, sides)))
    batch, _, frames, height, width = x.shape
    entries = [one for side in sides for one in side]
    asked = entries if guides(model, plan) else sides[0]
    frames += extra_frames(model.variant)
    frames += max(0 if one.subjects is None else one.subjects.shape[2] for one in entries)
    tokens = frames * -(-height // PATCH_HW) * -(-width // PATCH_HW)
    work = work_of(
        model,
        batch,
        tokens,
        max(1, *(stop.passes for stop in stops)),
        contexts=max(len(one.vace) for one in entries),
        negative_text=model.guidance.nag is not None,
        text_rows=len(asked) * model.variant.dit.text_len if model.high.device.type == "cpu" else 0,
    )
    return Stay(stops, work, ports, model.options.budget_bytes)


def _predictions(now: StepGuidance, step: Step, sides: Sequence[Sequence[Side]]) -> int:
    """How many a step makes: one for each entry that counts, of each side that it needs."""
    if now.still:
        return 0
    count = len(counting(sides[0], step.sigma, "positive", f"step {step.index + 1}")) * (1 + bool(now.skip_extra))
    if passes(now.scale) > 1:
        count += len(counting(sides[1], step.sigma, "negative", f"step {step.index + 1}"))
    return count


def guides(model: ModelHandle, plan: Plan) -> bool:
    """Whether any step asks the negative side."""
    return any(passes(now.scale) > 1 for now in step_guidance(model, plan))


def step_guidance(model: ModelHandle, plan: Plan) -> list[StepGuidance]:
    """What guidance does in each step that runs."""
    scales = {"high": plan.guidance_high, "low": plan.guidance_low}
    sides = plan.experts if model.low is not None else ["high"] * len(plan.schedule)
    return [
        model.guidance.at(step.index, len(plan.whole), scales[side]) for step, side in zip(plan.schedule.steps, sides)
    ]


def _denoiser(
    model: ModelHandle, sides: Sequence[Sequence[Side]], plan: Plan, given: GivenParts | None, stay: Stay
) -> Denoise:
    """The one Denoise of a run: entries inside each side, guidance inside each expert, the choice of expert around
    both, what is given around all."""

    def predict_each(x: Tensor, step: Step, entries: Sequence[Side]) -> list[Tensor]:
        number = step.index - plan.schedule.first
        t = given.timesteps(step.timestep, x) if given is not None else x.new_full((x.shape[0],), step.timestep)

        def all_entries() -> list[Tensor]:
            inputs = [_inputs(one, x, t, step.index, len(plan.whole), _memory(one, stay, number)) for one in entries]
            if stay.plan.together:
                module, walk = stay.begin(number)
                return module.together(inputs, walk, stay.plan.chunk)
            made = []
            for again, one in enumerate(inputs):
                module, walk = stay.begin(number, again)
                made.append(module(**vars(one), walk=walk, chunk=stay.plan.chunk))
            return made

        return [made[:, :, : x.shape[2]] for made in stay.attempt(all_entries)]  # what stands behind the clip goes

    def predict(x: Tensor, step: Step, wanted: Sequence[Sequence[Side]]) -> list[Tensor]:
        now = [[one for one in entries if one.counts_at(step.sigma)] for entries in wanted]
        for one in (one for entries in wanted for one in entries if not one.counts_at(step.sigma)):
            _forget(one)
        made = iter(predict_each(x, step, [one for entries in now for one in entries]))
        return [averaged([next(made) for _ in entries], entries) for entries in now]

    options, steps = model.guidance, len(plan.whole)
    cond, uncond = sides[0], sides[1] if len(sides) > 1 else None
    if options.nag is not None:
        negative = NegativeText(text=uncond[0].text, text_bias=uncond[0].text_bias, nag=options.nag)
        cond = [replace(one, negative=negative) for one in cond]

    def guided(scale: float) -> Denoise:
        return guided_by(
            predict, cond, uncond,
            at=lambda index: options.at(index, steps, scale),
            skipping=lambda side, blocks: [replace(one, skip=blocks) for one in side],
            rescale=options.zero_star is not None and options.zero_star.rescale,
        )  # fmt: skip

    denoise = guided(plan.guidance_high)
    if model.low is not None:
        low = guided(plan.guidance_low)
        denoise = (
            by_boundary(high=denoise, low=low, boundary=plan.boundary)
            if plan.switch_step is None
            else by_step(high=denoise, low=low, switch_step=plan.switch_step)
        )
    return denoise if given is None else given.around(denoise)


def _memory(side: Side, stay: Stay, number: int) -> TextMemory | None:
    """What a step knows of a side's text from those before: their weights have to be the same, and memory not short."""
    if side.memory is None or not stay.plan.whole:
        _forget(side)
        return None
    stop = stay.stops[number]
    return side.memory.made_with((stop.weights, stop.changes))


def _forget(side: Side) -> None:
    if side.memory is not None:
        side.memory.clear()


def _inputs(side: Side, x: Tensor, t: Tensor, step: int, steps: int, memory: TextMemory | None) -> Inputs:
    """What the transformer is given of an entry in a step."""
    x = x if side.concat is None else torch.cat((x, side.concat), dim=1)
    return Inputs(
        x=x if side.subjects is None else torch.cat((x, side.subjects), dim=2), t=t, text=side.text, clip=side.clip,
        text_bias=side.text_bias, reference=side.reference, camera=side.camera, vace=side.controls_at(step, steps),
        skip=side.skip, negative=side.negative, memory=memory,
    )  # fmt: skip
