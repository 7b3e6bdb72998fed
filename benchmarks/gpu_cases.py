"""The cases of ``benchmarks/gpu.py``; each takes a few seconds to two minutes on an H200."""

import gc
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from wan_core.runtime.memory import CHUNKS, Rates, dit_work, streamed_plan
from wan_core.runtime.ports import PlainMemory, Ports
from wan_core.stages import sample as stage
from wan_core.stages.load import ModelHandle

from . import gpu_models
from .gpu_bits import bits
from .gpu_kernels import kernels

SIZES = {
    "480p x17": (5, 60, 104),
    "480p x33": (9, 60, 104),
    "480p x81": (21, 60, 104),
    "720p x81": (21, 90, 160),
    "704p x121": (31, 44, 80),
    "toy": (3, 8, 8),
}
COPY_GB = 2
TEXT_ROWS = 77


@dataclass
class Bench:
    """The device, the models made so far, and the ceilings once they are measured."""

    device: torch.device
    toy: bool
    report: Any
    rates: Rates | None = None
    attention: dict[int, float] = field(default_factory=dict)
    """FLOP/s of the best attention, by tokens."""
    models: dict[str, ModelHandle] = field(default_factory=dict)
    whole: dict[str, "Steps"] = field(default_factory=dict)
    """Runs with everything on the device, to compare with."""

    def model(self, name: str) -> ModelHandle:
        if name not in self.models:
            self.models[name] = gpu_models.random_model(name, self.device, self.toy)
        return self.models[name]

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def tidy(self) -> None:
        for model in self.models.values():
            for weights in (model.high, model.low):
                if weights is not None:
                    weights.go_home()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    @contextmanager
    def limited(self, nbytes: int):
        """The allocator gives out no more than this."""
        if self.device.type != "cuda":
            yield
            return
        total = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, nbytes / total), self.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)

    def reserved_gb(self) -> float:
        return torch.cuda.max_memory_reserved(self.device) / 1e9 if self.device.type == "cuda" else 0.0

    def sustained(self, call: Callable[[], Any], lasting: float = 1.5) -> float:
        """Seconds of a call among many that fill ``lasting`` seconds."""
        call()
        self.sync()
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < (lasting if not self.toy else 0.02):
            for _ in range(4):
                call()
            count += 4
            self.sync()
        return (time.perf_counter() - began) / count

    def seconds(self, call: Callable[[], Any], repeats: int = 5, warm: int = 2) -> float:
        """Median of some calls, each waited for."""
        times = []
        for _ in range(warm + repeats):
            self.sync()
            began = time.perf_counter()
            call()
            self.sync()
            times.append(time.perf_counter() - began)
        return statistics.median(times[warm:])


class Planned(PlainMemory):
    """Streams with ``kept`` blocks on the device, whatever is free."""

    def __init__(self, kept: int = 0, together: bool = False, chunk: int = CHUNKS[0]):
        super().__init__()
        self.asked = {"kept": kept, "together": together, "chunk": chunk}

    def plan(self, weights, sizes, work, budget_bytes):
        return streamed_plan(sizes, len(weights), work, **self.asked)


@dataclass
class Steps:
    """A run: seconds of each step, the latent it made, and what was said."""

    seconds: list[float]
    latent: Tensor
    said: list[str]

    @property
    def typical(self) -> float:
        """Without the first, which also brings the weights."""
        return statistics.median(self.seconds[1:])


def run(
    bench: Bench,
    name: str,
    size: str,
    memory: PlainMemory,
    steps: int = 4,
    model: ModelHandle | None = None,
    **settings,
) -> Steps:
    """Sample with guidance, as a user does."""
    model = model or bench.model(name)
    variant = model.variant
    shape = (1, variant.latent.channels, *SIZES["toy" if bench.toy else size])
    generator = torch.Generator().manual_seed(1)
    sides = [
        stage.Condition(text=torch.randn(1, TEXT_ROWS, variant.dit.text_dim, generator=generator)) for _ in range(2)
    ]
    marks, said = [], []

    def on_progress(done, total, x0):
        bench.sync()
        marks.append(time.perf_counter())

    ports = Ports(memory=memory, progress=on_progress, notify=said.append)
    start = stage.StartLatent(samples=torch.zeros(shape))
    asked = {"seed": 3, "steps": steps, "solver": "euler", "guidance_high": 5.0, "guidance_low": 4.0, **settings}
    bench.sync()
    marks.append(time.perf_counter())
    latent = stage.sample(model, *sides, start, stage.Settings(**asked), ports)
    return Steps([b - a for a, b in pairwise(marks)], latent, said)


def step_work(model: ModelHandle, size: str, bench: Bench):
    frames, height, width = SIZES["toy" if bench.toy else size]
    return dit_work(model.variant.dit, 1, frames * height * width // 4, passes=2, itemsize=2)


def composite(bench: Bench, model: ModelHandle, size: str) -> float:
    """Seconds of a step with guidance at the rates that were measured in this run."""
    rates = bench.rates or ceilings(bench)
    work = step_work(model, size, bench)
    nearest = min(bench.attention, key=lambda tokens: abs(tokens - work.tokens))
    return 2 * model.variant.dit.num_layers * work.block_seconds(replace(rates, attention=bench.attention[nearest]))


def ceilings(bench: Bench) -> Rates:
    """Copies, matrix products, attention and the bus, on random numbers; the heavy ones as long as a step lasts, for a
    card that works slows down."""
    device, dtype, report = bench.device, torch.bfloat16, bench.report
    side, heads, tokens = (512, 2, (256, 512)) if bench.toy else (8192, 40, (32760, 75600))
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    report.add(
        "ceilings",
        f"matrix product {side}^3 bf16, ten",
        2 * side**3 / bench.seconds(partial(torch.mm, a, b), 10) / 1e12,
        "TFLOP/s",
    )
    matmul = 2 * side**3 / bench.sustained(partial(torch.mm, a, b))
    report.add("ceilings", f"matrix product {side}^3 bf16, sustained", matmul / 1e12, "TFLOP/s")
    size = COPY_GB * 10**9 if not bench.toy else 10**7
    pinned = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there, twin = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    link = size / bench.seconds(partial(there.copy_, pinned, non_blocking=True))
    report.add("ceilings", "host to device, pinned", link / 1e9, "GB/s")
    report.add(
        "ceilings", "device copy, read and written", 2 * size / bench.seconds(partial(twin.copy_, there)) / 1e9, "GB/s"
    )
    backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    if device.type != "cuda":
        backends = {"cpu": SDPBackend.FLASH_ATTENTION}
    bench.attention = {}
    for length in tokens:
        q, k, v = (torch.randn(1, length, heads, 128, device=device, dtype=dtype).transpose(1, 2) for _ in range(3))
        for name, backend in backends.items():
            with sdpa_kernel(backend):
                taken = bench.sustained(partial(F.scaled_dot_product_attention, q, k, v))
            rate = 4 * heads * length**2 * 128 / taken
            bench.attention[length] = max(bench.attention.get(length, 0.0), rate)
            report.add(
                "ceilings",
                f"attention {name}, {length} tokens, {heads} heads of 128, sustained",
                rate / 1e12,
                "TFLOP/s",
            )
    bench.rates = Rates(matmul=matmul, attention=bench.attention[tokens[0]], link=link)
    return bench.rates


def resident(bench: Bench) -> None:
    """Everything on the device: G1, G2, G6."""
    for name, size, steps, share, absolute in RESIDENT:
        made = bench.whole[f"{name} {size}"] = run(bench, name, size, PlainMemory(), steps)
        bound = composite(bench, bench.model(name), size)
        bench.report.add(
            "resident", f"{name} {size}: step", made.typical, "s", f"<= {absolute}", made.typical <= absolute
        )
        part = bound / made.typical
        bench.report.add("resident", f"{name} {size}: composite / step", part, "", f">= {share}", part >= share)
        bench.report.add("resident", f"{name} {size}: first step more", made.seconds[0] - made.typical, "s")
        if "720p" not in size:
            streamed(bench, name, size, made)


def streamed(bench: Bench, name: str, size: str, whole: Steps) -> None:
    """Every block from host memory, cut as the resident run is: G3, and the same bits."""
    chunk = CHUNKS[0]
    model = bench.model(name)
    for weights in (model.high, model.low):
        if weights is not None:
            weights.go_home()
    made = run(bench, name, size, Planned(chunk=chunk), steps=len(whole.seconds))
    over = made.typical / whole.typical - 1
    bench.report.add("resident", f"{name} {size}: all blocks streamed, more", over * 100, "%", "<= 1", over <= 0.01)
    bench.report.add("resident", f"{name} {size}: streamed, first step more", made.seconds[0] - made.typical, "s")
    same = torch.equal(made.latent, whole.latent)
    bench.report.add("resident", f"{name} {size}: bits streamed = resident", float(same), "", "1", same)


RESIDENT = (
    ("t2v-1.3b", "480p x81", 3, 0.88, 0.95),
    ("ti2v-5b", "704p x121", 3, 0.88, 1.65),
    ("t2v-a14b", "480p x81", 3, 0.94, 5.25),
    ("t2v-a14b", "720p x81", 2, 0.96, 21.2),
)


def short(bench: Bench) -> None:
    """Few frames, where transfer bounds: G4, and the bound for any size."""
    name, sizes = "t2v-a14b", ("480p x17", "480p x33")
    model, rates = bench.model(name), bench.rates or ceilings(bench)
    whole = {size: run(bench, name, size, PlainMemory(), steps=3) for size in sizes}
    bench.tidy()
    for size in sizes:
        for together in (False, True):
            made = run(bench, name, size, Planned(together=together), steps=3)
            moved = (1 if together else 2) * sum(model.high.sizes().blocks)
            bound = max(whole[size].typical, moved / rates.link)
            label = f"{name} {size} streamed, {'once' if together else 'twice'} a step"
            over, ratio = made.typical / whole[size].typical - 1, made.typical / bound
            target, met = ("<= 5", over <= 0.05) if together else ("", None)
            bench.report.add("short", f"{label}: more than resident", over * 100, "%", target, met)
            bench.report.add("short", f"{label}: step / bound", ratio, "", "<= 1.05", ratio <= 1.05)
            same = torch.equal(made.latent, whole[size].latent)
            bench.report.add("short", f"{label}: bits equal to resident", float(same), "", "1", same)


def switch(bench: Bench) -> None:
    """A pair, every block streamed: what the change of experts costs."""
    made = run(bench, "t2v-a14b", "480p x81", Planned(), steps=4, switch_step=2)
    usual = statistics.median([made.seconds[1], made.seconds[3]])
    stall = made.seconds[2] - usual
    limit = max(0.06, 0.01 * usual)
    bench.report.add(
        "switch", "A14B 480p x81: step of the change more than usual", stall, "s", f"<= {limit:.3f}", stall <= limit
    )


def memory(bench: Bench) -> None:
    """Budgets: what runs of :func:`resident` lose in small cards, what they take there, and what was predicted."""
    for name, size, limit in MEMORY:
        bench.tidy()
        budget, label = int(limit * 1e9), f"{name} {size} in {limit:g} GB"
        whole = bench.whole.get(f"{name} {size}") or run(bench, name, size, PlainMemory(), 2)
        bench.tidy()
        with bench.limited(budget):
            asked = PlainMemory(budget_bytes=10**9 if bench.toy else budget)
            made = run(bench, name, size, asked, 2)
        got, over = bench.reserved_gb(), made.typical / whole.typical - 1
        bench.report.add("memory", f"{label}: step", made.typical, "s")
        bench.report.add("memory", f"{label}: more than resident", over * 100, "%")
        bench.report.add("memory", f"{label}: max reserved", got, "GB", f"<= {limit}", got <= limit)
        predict(bench, name, size, asked, got)
        print("          " + " ".join(made.said[1:]), flush=True)


def predict(bench: Bench, name: str, size: str, memory: PlainMemory, got_gb: float) -> None:
    """The plan's peak against what the allocator reserved."""
    model = bench.model(name)
    weights = [model.high] if model.low is None else [model.high, model.low]
    plan = memory.plan(weights, model.high.sizes(), step_work(model, size, bench), None)
    off = got_gb / (plan.peak_bytes / 1e9) - 1
    told = f"{name} {size}, {len(plan.kept)} blocks kept, {plan.chunk} tokens: reserved / predicted - 1"
    bench.report.add("plan", told, off * 100, "%", "+-15", abs(off) <= 0.15)


MEMORY = (
    ("t2v-a14b", "720p x81", 7.0),
    ("t2v-a14b", "480p x81", 4.5),
    ("t2v-a14b", "480p x81", 24.0),
    ("ti2v-5b", "704p x121", 5.0),
    ("t2v-1.3b", "480p x81", 2.5),
)
"""Row 9 to 12 of the targets; what a card of 6, 8 or 24 GB leaves to the transformer."""


def plan(bench: Bench) -> None:
    """Predicted peaks against what the allocator reserved; the rows of :func:`memory` are judged there."""
    for name, size, kept in PLANS:
        bench.tidy()
        planned = Planned(kept)
        run(bench, name, size, planned, steps=1)
        predict(bench, name, size, planned, bench.reserved_gb())


PLANS = (
    ("t2v-1.3b", "480p x17", 0),
    ("t2v-1.3b", "480p x81", 28),
    ("t2v-a14b", "480p x17", 0),
    ("t2v-a14b", "480p x33", 10),
)


def text(bench: Bench) -> None:
    """umT5-XXL streamed through the device."""
    from wan_core.stages.text import encode_tokens
    from wan_core.text.tokenizer import Tokens

    encoder = gpu_models.random_text_encoder(bench.device, bench.toy)
    ids = [int(i) for i in torch.randint(1, encoder.config.vocab, (120,), generator=torch.Generator().manual_seed(0))]
    tokens = Tokens(ids=ids, total=len(ids))
    ports = Ports(memory=Planned())
    bench.tidy()
    taken = bench.seconds(lambda: encode_tokens(encoder, tokens, ports), 3, 1)
    bench.report.add("text", "umT5-XXL, 120 tokens, streamed", taken, "s", "<= 0.35", taken <= 0.35)
    got = bench.reserved_gb()
    bench.report.add("text", "umT5-XXL streamed: max reserved", got, "GB", "<= 1.2", got <= 1.2)


def lora(bench: Bench) -> None:
    """Rank 64 on every layer of a 14B model: put on, changed, and in the stream."""
    from .gpu_lora import random_lora

    name, size, settings = "t2v-a14b", "480p x17", {"switch_step": 99}
    model = bench.model(name)
    added = random_lora(model, 64)
    worn = {strength: replace(model, loras=(added(strength),)) for strength in (1.0, 0.5)}
    run(bench, name, size, PlainMemory(), steps=2, **settings)
    first = run(bench, name, size, PlainMemory(), steps=3, model=worn[1.0], **settings)
    cost = first.seconds[0] - first.typical
    bench.report.add("lora", "rank 64, one expert, resident: put on", cost, "s", "<= 0.2", cost <= 0.2)
    other = run(bench, name, size, PlainMemory(), steps=3, model=worn[0.5], **settings)
    bench.report.add("lora", "rank 64, one expert, resident: another strength", other.seconds[0] - other.typical, "s")
    again = run(bench, name, size, PlainMemory(), steps=3, model=worn[1.0], **settings)
    same = torch.equal(again.latent, first.latent) and not torch.equal(other.latent, first.latent)
    bench.report.add("lora", "A -> B -> A: bits equal", float(same), "", "1", same)
    bench.tidy()
    size = "480p x81"
    plain = run(bench, name, size, Planned(), steps=2, **settings)
    streamed_too = run(bench, name, size, Planned(), steps=2, model=worn[1.0], **settings)
    over = streamed_too.typical / plain.typical - 1
    bench.report.add("lora", f"rank 64, streamed, {size}: more a step", over * 100, "%", "<= 1", over <= 0.01)


def drift(bench: Bench) -> None:
    """Twenty runs: nothing is left behind."""
    levels = []
    for _ in range(20):
        run(bench, "t2v-1.3b", "480p x17", Planned(10), steps=2)
        gc.collect()
        levels.append(torch.cuda.memory_allocated(bench.device) if bench.device.type == "cuda" else 0)
    growth = levels[-1] - levels[1]
    bench.report.add("drift", "allocated after 20 runs - after 2", growth / 1e6, "MB", "0", growth == 0)


def growth(bench: Bench) -> None:
    """Time against frames, from 17 to 161, on the 1.3B model: a L + b L^2 fitted to all."""
    import numpy as np

    lengths, times = [], []
    for frames in (17, 33, 65, 113, 161):
        SIZES["growth"] = ((frames - 1) // 4 + 1, 60, 104)
        made = run(bench, "t2v-1.3b", "growth", PlainMemory(), steps=3)
        lengths.append(SIZES["growth"][0] * 30 * 52)
        times.append(made.typical)
    x, y = np.array(lengths, float), np.array(times)
    table = np.stack([x / y, x**2 / y], axis=1)
    fit, *_ = np.linalg.lstsq(table, np.ones_like(y), rcond=None)
    off = float(np.abs(table @ fit - 1).max())
    bench.report.add("growth", "largest distance from a L + b L^2, 17..161 frames", off * 100, "%", "<= 3", off <= 0.03)


def vae(bench: Bench) -> None:
    """Decode of 480p and 720p, whole and in the parts that a small card would choose."""
    from wan_core.stages.vae import decode_stream
    from wan_core.stages.vae_work import choices, choose

    handle = gpu_models.random_vae(16, bench.device, bench.toy)
    weights = handle.weights.size_bytes()
    for size, budget_gb in (("480p x81", None), ("720p x81", None), ("720p x81", 4.5), ("720p x81", 3.0)):
        bench.tidy()
        shape = SIZES["toy" if bench.toy else size]
        latent = torch.randn(1, 16, *shape, generator=torch.Generator().manual_seed(0))
        found = choices("decode", handle.config, 1, *shape[1:], handle.weights.compute_dtype.itemsize)
        split = choose(found, weights, None if budget_gb is None else int(budget_gb * 1e9))

        def decode(latent=latent, split=split):
            for _ in decode_stream(handle, latent, Ports(), split):
                pass

        taken = bench.seconds(decode, 1, 1)
        name = f"VAE 2.1 {size}, {split.grid}"
        bench.report.add("vae", f"{name}: decode", taken, "s", "<= 2.0" if size[0] == "7" and not budget_gb else "")
        bench.report.add(
            "vae", f"{name}: max reserved", bench.reserved_gb(), "GB", f"<= {budget_gb}" if budget_gb else ""
        )


def profile(bench: Bench) -> None:
    """Where a resident step of the 14B model spends its time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as trace

    name, size = "t2v-a14b", "480p x81"
    run(bench, name, size, PlainMemory(), steps=1, switch_step=1)
    activities = [ProfilerActivity.CUDA if bench.device.type == "cuda" else ProfilerActivity.CPU]
    with trace(activities=activities) as traced:
        run(bench, name, size, PlainMemory(), steps=1, switch_step=1)
    key = "self_cuda_time_total" if bench.device.type == "cuda" else "self_cpu_time_total"
    print(traced.key_averages().table(sort_by=key, row_limit=22, max_name_column_width=70), flush=True)


CASES: dict[str, Callable[[Bench], Any]] = {
    "ceilings": ceilings, "kernels": kernels, "bits": bits, "resident": resident, "memory": memory, "short": short,
    "switch": switch, "lora": lora, "plan": plan, "text": text, "growth": growth, "drift": drift, "vae": vae,
    "profile": profile,
}  # fmt: skip
DEFAULT = tuple(case for case in CASES if case != "profile")
