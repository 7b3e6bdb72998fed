"""What a run would do, from file headers and shapes: nothing is read, nothing is computed.

Memory comes from the runtime's own plans (``runtime/memory.py``), what fits together from the checks that the stages
make, and seconds from arithmetic over the measured rates of the device.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..conditioning.clip_tokens import clip_context
from ..conditioning.text import text_context
from ..errors import MismatchError, WanError, gigabytes
from ..grid import PATCH_HW, pixel_frames
from ..runtime.links import PIECE_BYTES, PIECES
from ..runtime.memory import Rates, ResidencyPlan, WeightSizes, Work, fixed_work, umt5_work
from ..runtime.ports import Memory
from ..runtime.residency import Resident, block_path
from ..sampling.loras import AddedLora
from ..variants import Feature, WanVariant
from ..weights.checkpoint import PICKLE_SUFFIXES
from . import sample
from .guidance import check_guidance
from .load import ClipVisionHandle, ModelHandle, TextEncoderHandle, VaeHandle, dit_places
from .plan_report import RunPlan, StagePlan
from .text import TEXT_ROWS
from .vae import check_channels
from .vae_work import choices, choose, decode_flops, encode_flops

PROMPTS = 2
"""The positive and the negative one."""
CONVOLUTION = {"cpu": 0.6, "cuda": 0.25}
"""The rate that a VAE's arithmetic reaches, by that of matrix products: measured, VAE 2.1 in float32 on two CPU cores,
and in bfloat16 on an H200 (docs/performance.md)."""
WINOGRAD = 2.4
"""... where it does with fewer multiplications than are counted, in float32 on a CPU: 2.0 to 3.4 measured, by what the
CPU's convolutions gain on its matrix products."""
AT_HOME = "It computes in the host's memory; no weights are moved."


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What is connected, as handles; None: nothing, or another pack's object."""

    model: ModelHandle
    text_encoder: TextEncoderHandle | None = None
    vae: VaeHandle | None = None
    clip_vision: ClipVisionHandle | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the plan asks of the machine.

    ``budget_of``: bytes that a run may take on a device; None: it computes in host memory. ``mapped``: files are mapped
    and not read.
    """

    memory: Memory
    budget_of: Callable[[torch.device], int | None]
    rates_of: Callable[[torch.device, torch.dtype], Rates]
    host_bytes: int
    mapped: bool = True


def plan_run(
    parts: Parts, start: sample.StartLatent, settings: sample.Settings, machine: Machine, told: Sequence[str] = ()
) -> RunPlan:
    """Everything that is known of a run before it begins.

    Args:
        start: the latent that the sampler would be given; only its size and its mask matter.
        settings: the sampler's; 0 is the model's own.
        told: problems that the caller has found.

    Raises:
        InputError: the settings are out of range, or the latent is none of a video.
    """
    variant = parts.model.variant
    plan = sample.resolve(settings, variant)
    problems, notes = [*told], _absent(parts)
    _check(problems, lambda: sample.check_latent(variant, start))
    if start.samples.ndim != 5:
        raise MismatchError(problems[-1])
    for check in _checks(parts, variant):
        _check(problems, check)
    guidance = sample.step_guidance(parts.model, plan)
    _check(problems, lambda: check_guidance(parts.model.guidance, guidance, True, notes.append))
    stages = []
    if parts.text_encoder is not None:
        stages.append(_text(parts.text_encoder, machine))
    if parts.clip_vision is not None and Feature.CLIP in variant.features:
        stages.append(_clip_vision(parts.clip_vision, machine))
    encodes = _encodes(variant, start)
    if parts.vae is not None and encodes and not parts.vae.is_tiny:
        stages.append(_vae("encode", parts.vae, start, machine, encodes))
    stages.append(_sampler(parts.model, start, plan, machine))
    if parts.vae is not None:
        stages.append(_vae("decode", parts.vae, start, machine))
    return RunPlan(
        title=variant.title,
        files=tuple(weights.name for weights in _all_weights(parts)),
        size=_size(variant, start),
        settings=sample.describe(plan, variant, parts.model.guidance),
        stages=tuple(stages),
        problems=tuple(dict.fromkeys(problems)),
        notes=tuple(notes),
        basis=_basis(parts, machine),
    )


def _check(problems: list[str], check: Callable[[], object]) -> None:
    try:
        check()
    except WanError as error:
        problems.append(str(error))


def _checks(parts: Parts, variant: WanVariant) -> list[Callable[[], object]]:
    """The stages' own, on something of the size that they would be given."""
    found: list[Callable[[], object]] = []
    text, vae, clip = parts.text_encoder, parts.vae, parts.clip_vision
    if text is not None:
        found.append(lambda: text_context(torch.zeros(1, 1, text.config.dim), variant.dit, 1))
    if vae is not None:
        found.append(lambda: check_channels(vae.spec, variant.latent.channels))
    if clip is not None and Feature.CLIP in variant.features:
        tokens = torch.zeros(1, clip.config.num_tokens, clip.config.dim)
        found.append(lambda: clip_context(tokens, variant.dit, 1))
    return found


def _absent(parts: Parts) -> list[str]:
    """What is not connected and matters, or is and does not."""
    wired = {"the text encoder": parts.text_encoder, "the VAE": parts.vae}
    missing = [name for name, handle in wired.items() if handle is None]
    notes = [f"Not connected (or not loaded by Wan Core), so not counted: {', '.join(missing)}."] if missing else []
    title, takes_clip = parts.model.variant.title, Feature.CLIP in parts.model.variant.features
    if takes_clip and parts.clip_vision is None:
        notes.append(f"{title} takes CLIP vision features and none are connected; with them it follows the picture.")
    if not takes_clip and parts.clip_vision is not None:
        notes.append(f"{title} has no CLIP branch: the CLIP vision encoder is not used (harmless).")
    if Feature.VACE in parts.model.variant.features:
        notes.append("Counted with one VACE context; each more takes memory and time of its own.")
    return notes


def _encodes(variant: WanVariant, start: sample.StartLatent) -> int:
    """Clips that are encoded before the run: VACE takes what is kept and what is made anew, Fun Control a start too."""
    if {Feature.VACE, Feature.CONTROL} & variant.features:
        return 2
    return int(bool({Feature.CONCAT, Feature.START} & variant.features) or start.noise_mask is not None)


def _all_weights(parts: Parts) -> list[Resident]:
    found = [parts.model.high, parts.model.low]
    found += [None if one is None else one.weights for one in (parts.text_encoder, parts.clip_vision, parts.vae)]
    return [one for one in found if one is not None]


def _size(variant: WanVariant, start: sample.StartLatent) -> str:
    batch, _, frames, height, width = start.samples.shape
    spec = variant.latent
    return (
        f"{width * spec.stride_hw}x{height * spec.stride_hw}, {pixel_frames(frames, spec.stride_t)} frames "
        f"({_tokens(start)} tokens)" + (f", {batch} at once" if batch > 1 else "")
    )


def _tokens(start: sample.StartLatent) -> int:
    _, _, frames, height, width = start.samples.shape
    return frames * -(-height // PATCH_HW) * -(-width // PATCH_HW)


def _text(encoder: TextEncoderHandle, machine: Machine) -> StagePlan:
    """Both prompts at their greatest length."""
    work = umt5_work(encoder.config, TEXT_ROWS)
    return _walked("Text encode", [encoder.weights], work, machine, walks=PROMPTS)


def _clip_vision(clip: ClipVisionHandle, machine: Machine) -> StagePlan:
    cfg = clip.config
    # The working memory is that of stages/image.py.
    work = fixed_work(4 * cfg.num_tokens * cfg.dim * 16, cfg.num_tokens)
    flops = 2 * cfg.num_tokens * (4 * cfg.dim**2 + 2 * cfg.dim * cfg.mlp_dim), 4 * cfg.num_tokens**2 * cfg.dim
    return _walked("CLIP vision", [clip.weights], replace(work, block_flops=flops), machine)


def _sampler(model: ModelHandle, start: sample.StartLatent, plan: sample.Plan, machine: Machine) -> StagePlan:
    sides = plan.experts if model.low is not None else ["high"] * len(plan.schedule)
    per_step = [now.passes for now in sample.step_guidance(model, plan)]
    used = {"high": model.high, "low": model.low}
    frames = start.samples.shape[2]
    texts = 1 + sample.guides(model, plan) if model.high.device.type == "cpu" else 0  # as long as they can be
    work = sample.work_of(
        model,
        start.samples.shape[0],
        _tokens(start) * (frames + sample.extra_frames(model.variant)) // frames,
        max(1, *per_step),
        negative_text=model.guidance.nag is not None,
        text_rows=texts * model.variant.dit.text_len,
    )
    return _walked(
        "Sampler",
        [used[side] for side in dict.fromkeys(sides)],
        work,
        machine,
        walks=sum(per_step),
        steps=sum(count > 0 for count in per_step),
        budget_bytes=model.options.budget_bytes,
        loras=model.loras,
        places=dit_places(model.variant.dit),
    )


def _walked(
    name: str,
    weights: Sequence[Resident],
    work: Work,
    machine: Machine,
    walks: int = 1,
    steps: int = 1,
    budget_bytes: int | None = None,
    loras: Sequence[AddedLora] = (),
    places: Mapping[str, int] | None = None,
) -> StagePlan:
    """A network whose blocks are walked, ``walks`` times in all; what its :class:`Stay` would plan.

    ``places``: path of a block -> when it is walked, for ``loras``.
    """
    first = weights[0]
    sizes = _with_loras(first.sizes(), loras, places or {})
    rates = machine.rates_of(first.device, first.compute_dtype)
    budget = machine.budget_of(first.device)
    room = machine.host_bytes if budget is None else budget
    room = room if budget is None or budget_bytes is None else min(room, budget_bytes)
    stage = StagePlan(
        name=name,
        files=tuple(one.name for one in weights),
        device=str(first.device),
        on_card=budget is not None,
        weight_bytes=sum(one.size_bytes() for one in weights),
        work_bytes=work.bytes_at(1 << 30, False),
        peak_bytes=0,
        budget_bytes=room,
        host_mapped_bytes=0,
        host_private_bytes=0,
        placement="",
        seconds=0.0,
    )
    try:
        plan = machine.memory.plan(weights, sizes, work, budget_bytes)
    except WanError as error:
        return replace(stage, problem=str(error))
    stage = replace(
        stage,
        work_bytes=plan.work_bytes,
        peak_bytes=plan.peak_bytes,
        placement=plan.describe() if stage.on_card else AT_HOME,
        seconds=_seconds(plan, sizes, len(weights), work, rates, walks, steps),
    )
    return _in_host(stage, machine, streams=not plan.whole)


def _seconds(
    plan: ResidencyPlan, sizes: WeightSizes, experts: int, work: Work, rates: Rates, walks: int, steps: int
) -> float:
    """Compute or transfer, whichever is longer, and bringing what is kept."""
    computing = walks * len(sizes.blocks) * work.block_seconds(rates)
    if plan.whole:
        return computing + experts * sizes.total / rates.link
    rounds = steps if plan.together else walks
    moving = rounds * plan.streamed * sizes.largest / rates.link
    return max(computing, moving) + experts * (sizes.rest + len(plan.kept) * sizes.largest) / rates.link


def _with_loras(sizes: WeightSizes, loras: Sequence[AddedLora], places: Mapping[str, int]) -> WeightSizes:
    """Each block with the LoRAs of the heavier expert, which travel with it."""
    if not sizes.blocks:
        return sizes
    more = [_lora_bytes(loras, side, places, len(sizes.blocks)) for side in ("high", "low")]
    return replace(sizes, blocks=tuple(size + max(added) for size, *added in zip(sizes.blocks, *more)))


def _lora_bytes(loras: Sequence[AddedLora], side: str, places: Mapping[str, int], count: int) -> list[int]:
    """Bytes of LoRA tensors for each block of an expert, from the headers of their files."""
    found = [0] * count
    for fit in (getattr(lora, side) for lora in loras):
        for change in () if fit is None else fit.changes:
            place = places.get(block_path(change.target))
            if place is not None and place < count:
                header = fit.file.checkpoint.header
                found[place] += sum(header[name].nbytes for name in change.names.values())
    return found


def _vae(direction: str, vae: VaeHandle, start: sample.StartLatent, machine: Machine, times: int = 1) -> StagePlan:
    """Weights whole on the device, and latent frames after one another, whole or in parts; ``times`` clips."""
    batch, _, frames, height, width = start.samples.shape
    weights = vae.weights
    rates = machine.rates_of(weights.device, weights.compute_dtype)
    budget = machine.budget_of(weights.device)
    kept = weights.sizes().total
    found = choices(direction, vae.config, batch, height, width, weights.compute_dtype.itemsize)
    split = choose(found, kept, budget)
    flops = decode_flops if direction == "decode" else encode_flops
    flops = flops(vae.config, frames, height, width) * split.macs / found[0].macs
    share = CONVOLUTION.get(weights.device.type, CONVOLUTION["cuda"])
    if weights.device.type == "cpu" and weights.compute_dtype == torch.float32 and not vae.is_tiny:
        share = WINOGRAD
    stage = StagePlan(
        name=f"VAE {direction}",
        files=(weights.name,),
        device=str(weights.device),
        on_card=budget is not None,
        weight_bytes=weights.size_bytes(),
        work_bytes=split.bytes,
        peak_bytes=kept + split.bytes,
        budget_bytes=machine.host_bytes if budget is None else budget,
        host_mapped_bytes=0,
        host_private_bytes=0,
        placement=AT_HOME if budget is None else f"All weights on the device, the picture {split.grid}.",
        seconds=times * batch * flops / (share * rates.matmul),
    )
    return _in_host(stage, machine, streams=False)


def _in_host(stage: StagePlan, machine: Machine, streams: bool) -> StagePlan:
    """What a stage takes of the host's memory; said where that is too much, or more than there is on the card."""
    mapped = machine.mapped and not stage.files[0].lower().endswith(PICKLE_SUFFIXES)
    private = 0 if mapped else stage.weight_bytes
    if not stage.on_card:
        private += stage.work_bytes
    elif streams:
        private += PIECE_BYTES * PIECES
    problem = warning = ""
    mapped_bytes, needed = stage.weight_bytes if mapped else 0, gigabytes(private)
    if private > machine.host_bytes:
        problem = (
            f"It needs {needed} of the host's memory, which has {gigabytes(machine.host_bytes)}. Use fewer frames or a "
            "smaller size, or a safetensors file instead of a pickle."
        )
    elif stage.on_card and stage.peak_bytes > stage.budget_bytes:
        warning = "It may run out of memory: use a smaller size, or close other programs that use the device."
    elif mapped_bytes + private > machine.host_bytes:
        warning = f"The host has {gigabytes(machine.host_bytes)}: files are read from the disk again and again."
    return replace(stage, host_mapped_bytes=mapped_bytes, host_private_bytes=private, problem=problem, warning=warning)


def _basis(parts: Parts, machine: Machine) -> str:
    rates: Mapping[str, Rates] = {
        f"{one.device} {str(one.compute_dtype).removeprefix('torch.')}": machine.rates_of(one.device, one.compute_dtype)
        for one in _all_weights(parts)
    }
    found = (
        f"{name}: {flops(rate.matmul)} products, {flops(rate.attention)} attention"
        + (f", {rate.link / 1e9:.0f} GB/s to the device" if rate.link != float("inf") else "")
        for name, rate in rates.items()
    )
    return f"Times are estimates: arithmetic over rates measured here ({'; '.join(found)}). Reading files is not in it."


def flops(rate: float) -> str:
    """FLOP/s for people."""
    return f"{rate / 1e12:.0f} TFLOP/s" if rate >= 2e12 else f"{rate / 1e9:.0f} GFLOP/s"
