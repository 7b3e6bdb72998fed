"""How much fits: which blocks of a network stay on the device, and how the work is cut. Pure functions of sizes.

Everything here is counted from file headers and shapes, before a weight is read. Bytes are bytes, never GB.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..configs import DitConfig, Umt5Config
from ..errors import CapacityError, gigabytes

RING = 2
"""Buffers for blocks that come and go: one computes while the next arrives. Where blocks are kept it is one more, so
that the bus goes on while a kept block computes."""
CHUNKS = (32768, 16384, 8192, 4096, 2048, 1024, 512, 256, 128)
"""Tokens worked on at once, best first: 8192 cost 5 % more time than 32768 on an H200. The first that fits is taken
before any block is kept, so that a clip is cut the same way, to the same bits, whatever else is on the card."""
BOUND_BY_TRANSFER = 0.9
"""Weights are loaded once for both sides of guidance where their transfer takes this part of a side's compute."""
HALVE = 8
"""When memory runs out, half of the kept blocks go if they are this many; else all."""
GROW_SLOTS = 3
"""Spare buffers at which more blocks are kept again; for fewer, every breath of another program would move some."""


@dataclass(frozen=True, kw_only=True)
class WeightSizes:
    """Bytes of one network as stored: of each block that it walks, and of everything else."""

    blocks: tuple[int, ...]
    rest: int

    @property
    def total(self) -> int:
        return sum(self.blocks) + self.rest

    @property
    def largest(self) -> int:
        """Bytes of a buffer that holds any block."""
        return max(self.blocks, default=0)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a device does in a second: matrix products, attention (FLOP), and bytes from host memory."""

    matmul: float
    attention: float
    link: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one step needs besides weights.

    ``bytes_at(chunk, together)``: working memory, with ``chunk`` tokens at once, and with both sides of guidance going
    through each block together or not. ``passes``: predictions a step. ``block_flops``: (matrix products, attention) of
    one block and pass.
    """

    bytes_at: Callable[[int, bool], int]
    tokens: int
    passes: int = 1
    block_flops: tuple[float, float] = (0.0, 0.0)
    kept_bytes: int = 0
    """Besides, through the whole run, where all weights are on the device."""
    once: bool = False
    """A single walk: bringing a block for it or before it costs the same, so none is kept."""

    def block_seconds(self, rates: Rates) -> float:
        """One block, one pass."""
        return self.block_flops[0] / rates.matmul + self.block_flops[1] / rates.attention


@dataclass(frozen=True, kw_only=True)
class ResidencyPlan:
    """Where weights are during a run and how its work is cut. Only ``chunk`` touches the result, by rounding."""

    whole: bool
    """All weights of all experts on the device, as the host keeps models; nothing is streamed."""
    kept: frozenset[int] = frozenset()
    """Blocks that stay on the device while their expert works."""
    streamed: int = 0
    """How many blocks come and go."""
    chunk: int = CHUNKS[0]
    together: bool = False
    """Both sides of guidance go through a block before the next block."""
    weight_bytes: int = 0
    work_bytes: int = 0

    @property
    def slots(self) -> int:
        """Buffers of a block's size."""
        return len(self.kept) + min(RING + bool(self.kept), self.streamed)

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + self.work_bytes

    def describe(self) -> str:
        """One sentence for the node."""
        if self.whole:
            return f"All weights on the device, {gigabytes(self.peak_bytes)} at the peak."
        count = self.streamed + len(self.kept)
        if not self.streamed:
            return f"Keeps all {count} blocks of the expert that works, {gigabytes(self.peak_bytes)} at the peak."
        return f"Streams {self.streamed} of {count} blocks, {gigabytes(self.peak_bytes)} at the peak."


def spread(count: int, kept: int) -> frozenset[int]:
    """``kept`` of ``count`` blocks such that those that are not lie as far from each other as they can."""
    streamed = count - kept
    return frozenset(range(count)) - {(2 * i + 1) * count // (2 * streamed) for i in range(streamed)}


def plan_residency(
    sizes: WeightSizes, experts: int, work: Work, budget_bytes: int, rates: Rates, name: str = "The model"
) -> ResidencyPlan:
    """The plan that uses a budget best: everything on the device if it fits, else as many blocks as fit.

    Args:
        sizes: of one expert; both have the same shapes.
        experts: 1, or 2 of a pair that take turns.
        budget_bytes: what weights and work may take on the device together.

    Raises:
        CapacityError: not even the smallest plan fits; says what is needed and what there is.
    """
    alone = work.once and bool(sizes.blocks)
    if not alone and experts * sizes.total + work.bytes_at(CHUNKS[0], False) + work.kept_bytes <= budget_bytes:
        return whole_plan(sizes, experts, work)
    for chunk in CHUNKS:
        plan = _streamed(sizes, experts, work, budget_bytes, chunk, together=False)
        if plan is not None:
            wants = work.passes > 1 and _is_bound_by_transfer(plan, sizes, work, rates)
            both = _streamed(sizes, experts, work, budget_bytes, chunk, together=True) if wants else None
            return both or plan
        fits = experts * sizes.total + work.bytes_at(chunk, False) + work.kept_bytes <= budget_bytes
        if chunk >= work.tokens and fits:
            return whole_plan(sizes, experts, work)
    least = smallest_bytes(sizes, experts, work)
    raise CapacityError(
        f"{name} needs at least {gigabytes(least)} here ({gigabytes(least - work.bytes_at(CHUNKS[-1], False))} weights "
        f"with every block streamed, the rest to work in); {gigabytes(budget_bytes)} are available. Use fewer frames "
        "or a smaller size, an fp8 file, or close other programs that use the device."
    )


def whole_plan(sizes: WeightSizes, experts: int, work: Work, chunk: int = CHUNKS[0]) -> ResidencyPlan:
    """Everything on the device."""
    return ResidencyPlan(
        whole=True,
        chunk=chunk,
        weight_bytes=experts * sizes.total,
        work_bytes=work.bytes_at(chunk, False) + work.kept_bytes,
    )


def streamed_plan(
    sizes: WeightSizes, experts: int, work: Work, kept: int, chunk: int = CHUNKS[0], together: bool = False
) -> ResidencyPlan:
    """``kept`` blocks of each expert on the device while it works, the others through the ring."""
    count = len(sizes.blocks)
    kept = min(max(kept, 0), count)
    plan = ResidencyPlan(
        whole=False,
        kept=spread(count, kept) if kept < count else frozenset(range(count)),
        streamed=count - kept,
        chunk=chunk,
        together=together and work.passes > 1,
        work_bytes=work.bytes_at(chunk, together and work.passes > 1),
    )
    return replace(plan, weight_bytes=experts * sizes.rest + _slots(plan, experts) * sizes.largest)


def _slots(plan: ResidencyPlan, experts: int) -> int:
    """A pair whose blocks are all kept still needs a buffer or two to change experts through."""
    return plan.slots if plan.streamed or experts == 1 else plan.slots + RING


def smallest_bytes(sizes: WeightSizes, experts: int, work: Work) -> int:
    """The least that a run can do with."""
    return streamed_plan(sizes, experts, work, 0, CHUNKS[-1]).peak_bytes


def lower(plan: ResidencyPlan, sizes: WeightSizes, experts: int, work: Work) -> ResidencyPlan | None:
    """The next plan that needs clearly less, after memory ran out; None where there is none."""
    tokens = max(1, work.tokens)
    count = len(sizes.blocks)
    if plan.whole and count:
        return streamed_plan(sizes, experts, work, count // 2, plan.chunk, plan.together)
    if len(plan.kept) > 0 and count:
        kept = len(plan.kept) // 2 if len(plan.kept) >= HALVE else 0
        return streamed_plan(sizes, experts, work, kept, plan.chunk, plan.together)
    smaller = [chunk for chunk in CHUNKS if chunk < min(plan.chunk, tokens)]
    if not smaller and not plan.together:
        return None
    chunk = next(
        (one for one in smaller if one <= min(plan.chunk, tokens) // 4), smaller[-1] if smaller else plan.chunk
    )
    return (
        streamed_plan(sizes, experts, work, 0, chunk)
        if count
        else replace(plan, chunk=chunk, together=False, work_bytes=work.bytes_at(chunk, False))
    )


def adjusted(
    plan: ResidencyPlan, sizes: WeightSizes, experts: int, work: Work, free_bytes: int, budget_bytes: int | None = None
) -> ResidencyPlan | None:
    """The plan for the next step when ``free_bytes`` are free between two steps; None: as it is.

    ``budget_bytes``: what the user allows; more is not taken, whatever is free.
    """
    spare = free_bytes - plan.work_bytes
    if budget_bytes is not None:
        spare = min(spare, budget_bytes - plan.peak_bytes)
    if plan.whole:
        return lower(plan, sizes, experts, work) if spare < 0 and sizes.blocks else None
    slot = max(1, sizes.largest)
    more = spare // slot if spare < 0 else max(0, spare // slot - 1)
    if spare >= 0 and more < GROW_SLOTS:
        return None
    kept = min(max(len(plan.kept) + more, 0), len(sizes.blocks))
    if kept == len(plan.kept):
        return None
    return streamed_plan(sizes, experts, work, kept, plan.chunk, plan.together)


def _streamed(
    sizes: WeightSizes, experts: int, work: Work, budget_bytes: int, chunk: int, together: bool
) -> ResidencyPlan | None:
    count = len(sizes.blocks)
    if not count:
        return None
    free = budget_bytes - work.bytes_at(chunk, together) - experts * sizes.rest
    slots = free // sizes.largest
    if slots < min(RING, count):
        return None
    # One model whose blocks all fit has no use for a ring; a pair changes experts through it.
    kept = count if slots >= count + (RING if experts > 1 else 0) else max(0, min(slots - RING - 1, count - 1))
    kept = 0 if work.once else kept
    plan = streamed_plan(sizes, experts, work, int(kept), chunk, together)
    return plan if plan.peak_bytes <= budget_bytes else None


def _is_bound_by_transfer(plan: ResidencyPlan, sizes: WeightSizes, work: Work, rates: Rates) -> bool:
    transfer = plan.streamed * sizes.largest / rates.link
    return transfer > BOUND_BY_TRANSFER * len(sizes.blocks) * work.block_seconds(rates)


def dit_work(
    config: DitConfig,
    batch: int,
    tokens: int,
    passes: int,
    itemsize: int,
    fused: bool = True,
    emulated: bool = False,
    contexts: int = 1,
    negative_text: bool = False,
    text_rows: int = 0,
) -> Work:
    """The working memory and arithmetic of one step of a Wan transformer.

    Args:
        tokens: of one sample.
        passes: predictions a step: 2 with guidance.
        itemsize: bytes of the compute dtype.
        fused: norms and rotations are single kernels (on a GPU); else their float32 steps are counted.
        emulated: a CPU has no products of the compute dtype; its library makes them in float32 and rounds a copy.
        contexts: control streams of a VACE model; others have none.
        negative_text: cross-attention attends to a negative prompt too, and guides in float32.
        text_rows: of all texts of which every block keeps keys and values through the run.
    """
    rows, dim, ffn = batch * tokens, config.dim, config.ffn_dim
    context = config.text_len + (0 if config.img_dim is None else 257)
    latents = rows * LATENTS_HELD * 4 * max(config.in_dim, config.out_dim) * 4
    rope = tokens * config.head_dim * 4
    streams = contexts if config.vace_layers else 0
    control = streams and rows * (streams + 2) * 4 * config.vace_in_dim * 4  # kept, and one in the making
    text = batch * context * dim * itemsize * (8 if negative_text else 4)
    walked = config.num_layers + len(config.vace_layers)
    held = rows * dim * HELD_BYTES if itemsize < 4 and rows * dim * itemsize < HELD_UNTIL else 0

    def bytes_at(chunk: int, together: bool) -> int:
        part = min(rows, chunk * batch)
        stream = rows * dim * (4 * (1 + streams) + itemsize * min(streams, 2))  # the hint, and another in the making
        residual = stream * (passes if together else 1)
        memory = 2 * rows * dim * itemsize
        piece = part * (max(dim * 2 + ffn, dim * 4) * itemsize + (4 * ffn if emulated else 0))
        if not fused:  # a norm, its rotation in float32 and the result stand beside each other
            piece = max(piece, part * dim * (3 * itemsize + 4)) + held
        if negative_text:
            piece = max(piece, part * dim * (4 * itemsize + 12))
        return residual + memory + piece + latents + control + rope + text + OVERHEAD

    linear = 2 * rows * (6 * dim**2 + 2 * dim * ffn) + 2 * batch * context * 2 * dim**2
    scores = 4 * batch * tokens**2 * dim + 4 * rows * context * dim * (2 if negative_text else 1)
    extra = len(config.vace_layers) * (streams - 1)
    share = (walked + extra) / walked  # a VACE block does its work for every context
    return Work(
        bytes_at=bytes_at,
        tokens=tokens,
        passes=passes,
        block_flops=(linear * share, scores * share),
        kept_bytes=text_rows * walked * 2 * batch * dim * itemsize,
    )


LATENTS_HELD = 8
"""Latents that a step holds: x, the stacked input and its patches, predictions, the solver's history."""
HELD_BYTES, HELD_UNTIL = 10, 32 * 2**20
"""What glibc's malloc holds of freed tensors, for each value of the residual stream, where float32 copies come and go
beside a half type and are smaller than this; larger ones go back to the system. Up to 16, by processor and
library (``benchmarks/plan_check.py``)."""
OVERHEAD = 128 * 2**20
"""Workspaces of libraries, small tensors, and what an allocator rounds up."""


def umt5_work(config: Umt5Config, length: int) -> Work:
    """The working memory of one prompt of ``length`` tokens; too little to be worth cutting."""
    size = 4 * length * (8 * config.dim + 3 * config.dim_ffn + config.num_heads * length * 3)
    flops = 2 * length * (4 * config.dim * config.dim_attn + 3 * config.dim * config.dim_ffn)
    return Work(bytes_at=lambda chunk, together: size, tokens=length, block_flops=(flops, 0.0), once=True)


def fixed_work(nbytes: int, tokens: int = 1) -> Work:
    """Work of one walk that is not cut."""
    return Work(bytes_at=lambda chunk, together: nbytes, tokens=tokens, once=True)
