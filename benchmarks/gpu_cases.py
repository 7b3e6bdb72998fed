"""The cases of ``benchmarks/gpu.py``; each takes a few seconds to two minutes on an H200."""

import gc
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from wan_core.runtime.memory import Rates, dit_work, streamed_plan
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

    def __init__(self, kept: int = 0, together: bool = False, chunk: int = 8192):
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


def work_of(model: ModelHandle, size: str, bench: Bench):
    frames, height, width = SIZES["toy" if bench.toy else size]
    return dit_work(model.variant.dit, 1, frames * height * width // 4, passes=2, itemsize=2)


def composite(bench: Bench, model: ModelHandle, size: str) -> float:
    """Seconds of a step with guidance at the rates that were measured in this run."""
    rates = bench.rates or ceilings(bench)
    return 2 * model.variant.dit.num_layers * work_of(model, size, bench).block_seconds(rates)


def ceilings(bench: Bench) -> Rates:
    """Copies, matrix products, attention and the bus, on random numbers."""
    device, dtype, report = bench.device, torch.bfloat16, bench.report
    side, tokens = (512, (256, 512)) if bench.toy else (8192, (32760, 75600))
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    matmul = 2 * side**3 / bench.seconds(lambda: torch.mm(a, b), 10)
    report.add("ceilings", f"matrix product {side}^3 bf16", matmul / 1e12, "TFLOP/s")
    size = COPY_GB * 10**9 if not bench.toy else 10**7
    pinned = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there, twin = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    link = size / bench.seconds(lambda: there.copy_(pinned, non_blocking=True))
    report.add("ceilings", "host to device, pinned", link / 1e9, "GB/s")
    report.add(
        "ceilings", "device copy, read and written", 2 * size / bench.seconds(lambda: twin.copy_(there)) / 1e9, "GB/s"
    )
    best = {}
    backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    if device.type != "cuda":
        backends = {"cpu": SDPBackend.FLASH_ATTENTION}
    for length in tokens:
        q, k, v = (torch.randn(1, 8, length, 128, device=device, dtype=dtype) for _ in range(3))
        for name, backend in backends.items():
            with sdpa_kernel(backend):
                taken = bench.seconds(partial(F.scaled_dot_product_attention, q, k, v), 3, 1)
            rate = 4 * 8 * length**2 * 128 / taken
            best[length] = max(best.get(length, 0.0), rate)
            report.add("ceilings", f"attention {name}, {length} tokens, head 128", rate / 1e12, "TFLOP/s")
    bench.rates = Rates(matmul=matmul, attention=best[tokens[0]], link=link)
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
        bench.tidy()


RESIDENT = (
    ("t2v-1.3b", "480p x81", 4, 0.88, 0.95),
    ("ti2v-5b", "704p x121", 4, 0.88, 1.65),
    ("t2v-a14b", "480p x81", 4, 0.94, 5.25),
    ("t2v-a14b", "720p x81", 2, 0.96, 21.2),
)


def short(bench: Bench) -> None:
    """Few frames, where transfer bounds: G4, and the bound for any size."""
    name = "t2v-a14b"
    model = bench.model(name)
    for size in ("480p x17", "480p x33"):
        whole = run(bench, name, size, PlainMemory(), steps=4)
        bench.tidy()
        for together in (False, True):
            made = run(bench, name, size, Planned(together=together), steps=4)
            sizes = model.high.sizes()
            walks = 1 if together else 2
            rates = bench.rates or ceilings(bench)
            bound = max(whole.typical, walks * sum(sizes.blocks) / rates.link)
            label = f"{name} {size} streamed, {'once' if together else 'twice'} a step"
            over = made.typical / whole.typical - 1
            bench.report.add(
                "short",
                f"{label}: more than resident",
                over * 100,
                "%",
                "<= 5" if together else "",
                over <= 0.05 if together else None,
            )
            ratio = made.typical / bound
            bench.report.add("short", f"{label}: step / bound", ratio, "", "<= 1.05", ratio <= 1.05)
            same = torch.equal(made.latent, whole.latent)
            bench.report.add("short", f"{label}: bits equal to resident", float(same), "", "1", same)
            bench.tidy()


def switch(bench: Bench) -> None:
    """A pair, every block streamed: what the change of experts costs."""
    made = run(bench, "t2v-a14b", "480p x81", Planned(), steps=5, switch_step=3)
    usual = statistics.median(made.seconds[1:3] + made.seconds[4:])
    stall = made.seconds[3] - usual
    limit = max(0.06, 0.01 * usual)
    bench.report.add(
        "switch", "A14B 480p x81: step of the change more than usual", stall, "s", f"<= {limit:.3f}", stall <= limit
    )


def memory(bench: Bench) -> None:
    """Budgets: how much the runs of :func:`resident` lose in small cards (G3), and that their bits do not change."""
    for name, size, limit in MEMORY:
        bench.tidy()
        budget, label = int(limit * 1e9), f"{name} {size} in {limit:g} GB"
        whole = bench.whole.get(f"{name} {size}") or run(bench, name, size, PlainMemory(), 2)
        bench.tidy()
        with bench.limited(budget):
            asked = PlainMemory(budget_bytes=10**9 if bench.toy else budget)
            made = run(bench, name, size, asked, len(whole.seconds))
        got, over = bench.reserved_gb(), made.typical / whole.typical - 1
        bench.report.add("memory", f"{label}: step", made.typical, "s")
        bench.report.add("memory", f"{label}: more than resident", over * 100, "%", "<= 1", over <= 0.01)
        bench.report.add("memory", f"{label}: first step more", made.seconds[0] - made.typical, "s")
        bench.report.add("memory", f"{label}: max reserved", got, "GB", f"<= {limit}", got <= limit)
        same = torch.equal(made.latent, whole.latent)
        bench.report.add("memory", f"{label}: bits equal to resident", float(same), "", "1", same)
        print("          " + " ".join(made.said[1:]), flush=True)


MEMORY = (
    ("t2v-a14b", "480p x81", 4.5),
    ("t2v-a14b", "480p x81", 24.0),
    ("t2v-a14b", "720p x81", 7.0),
    ("ti2v-5b", "704p x121", 5.0),
    ("t2v-1.3b", "480p x81", 2.5),
)
"""Row 9 to 12 of the targets; what a card of 6, 8 or 24 GB leaves to the transformer."""


def plan(bench: Bench) -> None:
    """Predicted peaks against what the allocator reserved."""
    for name, size, kept in PLANS:
        bench.tidy()
        model = bench.model(name)
        made_plan = streamed_plan(model.high.sizes(), model.variant.experts, work_of(model, size, bench), kept)
        run(bench, name, size, Planned(kept), steps=1, **({"switch_step": 1} if model.low is not None else {}))
        got = bench.reserved_gb()
        off = got / (made_plan.peak_bytes / 1e9) - 1
        bench.report.add(
            "plan",
            f"{name} {size}, {kept} blocks kept: reserved / predicted - 1",
            off * 100,
            "%",
            "+-15",
            abs(off) <= 0.15,
        )


PLANS = (
    ("t2v-1.3b", "480p x17", 0), ("t2v-1.3b", "480p x81", 0), ("t2v-1.3b", "480p x81", 28), ("ti2v-5b", "704p x121", 0),
    ("t2v-a14b", "480p x17", 0), ("t2v-a14b", "480p x33", 10), ("t2v-a14b", "480p x81", 0), ("t2v-a14b", "720p x81", 0),
)  # fmt: skip


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
    """Rank 64 on every layer of a 14B model: on arrival, changed, and in the stream."""
    from dataclasses import replace

    from .gpu_lora import random_lora

    name, size = "t2v-a14b", "480p x17"
    model = bench.model(name)
    plain = run(bench, name, size, PlainMemory(), steps=3)
    bench.tidy()
    added = random_lora(model, 64)
    worn = run(bench, name, size, PlainMemory(), steps=3, model=replace(model, loras=(added(1.0),)))
    bench.report.add(
        "lora",
        "rank 64, resident: apply",
        worn.seconds[0] - plain.seconds[0],
        "s",
        "<= 0.2",
        worn.seconds[0] - plain.seconds[0] <= 0.2,
    )
    other = run(bench, name, size, PlainMemory(), steps=3, model=replace(model, loras=(added(0.5),)))
    bench.report.add("lora", "rank 64, resident: change of strength", other.seconds[0] - other.typical, "s")
    again = run(bench, name, size, PlainMemory(), steps=3, model=replace(model, loras=(added(1.0),)))
    bench.report.add(
        "lora",
        "A -> B -> A: bits equal",
        float(torch.equal(again.latent, worn.latent)),
        "",
        "1",
        torch.equal(again.latent, worn.latent),
    )
    bench.tidy()
    size = "480p x81"
    plain = run(bench, name, size, Planned(), steps=3)
    worn = run(bench, name, size, Planned(), steps=3, model=replace(model, loras=(added(1.0),)))
    over = worn.typical / plain.typical - 1
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
    for frames in (17, 33, 49, 81, 121, 161):
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
    """Decode of 480p and 720p: as it is today."""
    from wan_core.stages.vae import decode_stream

    handle = gpu_models.random_vae(16, bench.device, bench.toy)
    for size in ("480p x81", "720p x81"):
        bench.tidy()
        latent = torch.randn(1, 16, *SIZES["toy" if bench.toy else size], generator=torch.Generator().manual_seed(0))

        def decode(latent=latent):
            for _ in decode_stream(handle, latent, Ports()):
                pass

        taken = bench.seconds(decode, 1, 1)
        bench.report.add("vae", f"VAE 2.1 {size}: decode", taken, "s", "<= 2.0" if "720p" in size else "")
        bench.report.add("vae", f"VAE 2.1 {size}: max reserved", bench.reserved_gb(), "GB")


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
