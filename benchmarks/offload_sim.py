"""Streaming on a simulated clock: how long a run takes when every block comes from host memory.

``python3 -m benchmarks.offload_sim [--json]`` drives the streamer that runs on real devices (``runtime/offload.py``)
with a link whose time is counted instead of passed, for each model and size x card x bandwidth, and compares it with
what physics asks: the larger of the compute and the transfer of a step. Deterministic; needs no device and no weights.

Compute rates are nominal working figures (TFLOP/s in bf16), bandwidths GB/s of host to device; 7 GB/s is an NVMe disk.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass

from wan_core.configs import DitConfig
from wan_core.runtime.memory import Rates, WeightSizes, dit_work, spread
from wan_core.runtime.offload import Leg, Streamer
from wan_core.variants import VARIANTS

CARDS = {"H200": 790e12, "H100": 650e12, "A100": 270e12, "4090": 150e12, "3060": 40e12}
BANDWIDTHS = {"PCIe 5 x16": 55e9, "PCIe 4 x16": 25e9, "PCIe 3 x16": 12.5e9, "NVMe": 7e9}
SIZES = {
    "14B 480p x17": ("t2v-a14b", (5, 60, 104)),
    "14B 480p x33": ("t2v-a14b", (9, 60, 104)),
    "14B 480p x81": ("t2v-a14b", (21, 60, 104)),
    "14B 720p x81": ("t2v-a14b", (21, 90, 160)),
    "5B 704p x121": ("ti2v-5b", (31, 44, 80)),
    "1.3B 480p x81": ("t2v-1.3b", (21, 60, 104)),
}
STEPS = 4
"""Of each expert. The first of a run is reported by itself: its first block has to arrive before anything begins."""
BYTES = 2
LORA_RANK = 64
MEMORY_BANDWIDTH = {"H200": 4.3e12, "H100": 3.0e12, "A100": 1.9e12, "4090": 1.0e12, "3060": 0.36e12}
MERGE_PASSES = 4
"""Times that the weights are read or written while a LoRA is merged into them, in their own type."""


class SimulatedLink:
    """A bus and a processor, each one thing at a time, on one clock (seconds)."""

    def __init__(self, bytes_per_second: float):
        self.rate = bytes_per_second
        self.now = self._bus_free = self.waited = 0.0
        self.waits: list[float] = []

    def buffer(self, nbytes: int) -> int:
        return nbytes

    def mark(self) -> float:
        return self.now

    def send(self, parcel, buffer: int, after: float | None) -> float:
        if parcel.nbytes > buffer:
            raise ValueError(f"a parcel of {parcel.nbytes} bytes for a buffer of {buffer}")
        self._bus_free = max(self._bus_free, after or 0.0) + parcel.nbytes / self.rate
        return self._bus_free

    def wait(self, ticket: float) -> None:
        self.waits.append(max(0.0, ticket - self.now))
        self.now = max(self.now, ticket)

    def close(self) -> None:
        pass


@dataclass
class SimulatedParcel:
    nbytes: int
    link: SimulatedLink
    merge_seconds: float

    def unpack(self, buffer, at_use):
        self.link.now += self.merge_seconds
        return (), ()


class SimulatedWeights:
    """Blocks of given sizes that wear a LoRA of ``lora_bytes`` each."""

    def __init__(self, sizes: WeightSizes, link: SimulatedLink, lora_bytes: int = 0, merge_seconds: float = 0.0):
        self.sizes, self.link, self.lora_bytes, self.merge_seconds = sizes, link, lora_bytes, merge_seconds

    def outfit(self, index, changes):
        return changes

    def parcel(self, index, changes):
        nbytes = self.sizes.rest if index is None else self.sizes.blocks[index] + self.lora_bytes
        return SimulatedParcel(nbytes, self.link, 0.0 if index is None else self.merge_seconds)

    def install(self, index, tensors, worn): ...

    def uninstall(self, index): ...

    def is_changed_at_use(self, index):
        return []


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case: seconds of a step as simulated and as bounded, and what the change of experts waited for."""

    model: str
    card: str
    link: str
    together: bool
    compute_s: float
    transfer_s: float
    step_s: float
    ratio: float
    hideable: bool
    switch_wait_blocks: float
    first_step_extra_s: float


def block_bytes(cfg: DitConfig) -> int:
    return BYTES * (8 * cfg.dim**2 + 2 * cfg.dim * cfg.ffn_dim + 8 * cfg.dim + cfg.ffn_dim)


def rest_bytes(cfg: DitConfig) -> int:
    return BYTES * (7 * cfg.dim**2 + cfg.dim * (cfg.text_dim + cfg.freq_dim + 4 * (cfg.in_dim + cfg.out_dim)))


def simulate(size: str, card: str, link_name: str, together: bool, kept: int = 0, lora: bool = False) -> Row:
    """A run of both experts (of one model where it has one), guidance 2 passes a step."""
    name, (frames, height, width) = SIZES[size]
    variant = next(row for row in VARIANTS if row.name == name)
    cfg = variant.dit
    sizes = WeightSizes(blocks=(block_bytes(cfg),) * cfg.num_layers, rest=rest_bytes(cfg))
    work = dit_work(cfg, 1, frames * height * width // 4, passes=2, itemsize=BYTES)
    rates = Rates(matmul=CARDS[card], attention=CARDS[card], link=BANDWIDTHS[link_name])
    link = SimulatedLink(rates.link)
    lora_bytes = BYTES * LORA_RANK * (16 * cfg.dim + 2 * (cfg.dim + cfg.ffn_dim)) if lora else 0
    merge = (
        MERGE_PASSES * block_bytes(cfg) / MEMORY_BANDWIDTH[card] + block_bytes(cfg) * LORA_RANK / rates.matmul
        if lora
        else 0.0
    )
    experts = [SimulatedWeights(sizes, link, lora_bytes, merge) for _ in range(variant.experts)]
    seconds = work.block_seconds(rates)
    walks = 1 if together else 2
    legs = [Leg(weights) for weights in experts for _ in range(STEPS * walks)]
    stays = spread(cfg.num_layers, kept)
    streamer = Streamer(link, legs, blocks=cfg.num_layers, kept=stays, slots=kept + (3 if kept else 2))
    ends, switch_wait = [], 0.0
    for number in range(len(legs)):
        before = len(link.waits)
        streamer.begin(number)
        for _ in streamer.walk(number, range(cfg.num_layers)):
            link.now += seconds * (2 if together else 1)
        if number == STEPS * walks:
            switch_wait = sum(link.waits[before : before + 2])
        ends.append(link.now)
    streamer.close()
    steps = [b - a for a, b in zip([0.0, *ends[walks - 1 :: walks]], ends[walks - 1 :: walks])]
    compute = 2 * cfg.num_layers * seconds
    transfer = (cfg.num_layers - kept) * walks * (sizes.blocks[0] + lora_bytes) / rates.link
    bound = max(compute, transfer)
    # A change of experts has one rest more to carry; steps of it and the first are judged by themselves.
    steady = [step for number, step in enumerate(steps) if number % STEPS]
    return Row(
        model=size, card=card, link=link_name, together=together, compute_s=compute, transfer_s=transfer,
        step_s=max(steady), ratio=max(steady) / bound, hideable=compute >= transfer,
        switch_wait_blocks=switch_wait * rates.link / sizes.blocks[0], first_step_extra_s=steps[0] - bound,
    )  # fmt: skip


def rows() -> list[Row]:
    """Every model and size x card x link, with and without both sides of guidance in one walk."""
    return [
        simulate(size, card, link, together)
        for size in SIZES for card in CARDS for link in BANDWIDTHS for together in (False, True)
    ]  # fmt: skip


def lora_rows() -> list[dict]:
    """What a LoRA of rank 64 on every layer adds to a streamed step."""
    made = []
    for size in ("14B 480p x81", "14B 720p x81"):
        for card in CARDS:
            plain, worn = (simulate(size, card, "PCIe 4 x16", True, lora=lora) for lora in (False, True))
            made.append({"model": size, "card": card, "added": worn.step_s / plain.step_s - 1})
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    args = parser.parse_args()
    made, loras = rows(), lora_rows()
    if args.json:
        print(json.dumps({"rows": [asdict(row) for row in made], "lora": loras}, indent=1))
    else:
        print(
            f"{'model':15}{'card':6}{'link':12}{'walks':>6}{'compute':>9}{'transfer':>9}{'step':>9}{'ratio':>8}{'switch':>8}"
        )
        for row in made:
            mark = "" if row.hideable else "  transfer-bound"
            print(
                f"{row.model:15}{row.card:6}{row.link:12}{1 if row.together else 2:>6}{row.compute_s:9.3f}"
                f"{row.transfer_s:9.3f}{row.step_s:9.3f}{row.ratio:8.4f}{row.switch_wait_blocks:8.2f}{mark}"
            )
        for row in loras:
            print(f"LoRA rank {LORA_RANK} on {row['model']}, {row['card']}, streamed: {row['added']:+.2%} a step")
    worst = max(row.ratio for row in made if row.hideable)
    stall = max(row.switch_wait_blocks for row in made if row.hideable)
    lora = max(row["added"] for row in loras)
    print(
        f"hidden rows: at most {worst - 1:+.2%} above the bound; a change of experts waits for {stall:.2f} blocks; "
        f"all rows: {max(row.ratio for row in made) - 1:+.2%}; LoRA at most {lora:+.2%}",
        file=sys.stderr if args.json else sys.stdout,
    )
    return 0 if worst <= 1.01 and stall <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
