"""Equal bits wherever weights are, and equal numbers however tokens are cut: a case of ``benchmarks/gpu.py``."""

from dataclasses import replace
from typing import Any

import torch

from wan_core.conditioning.vace import VaceContext
from wan_core.models.dit_block import Block
from wan_core.models.rope import rope_table
from wan_core.runtime.ports import PlainMemory, Ports
from wan_core.stages import sample as stage
from wan_core.stages.load import ModelHandle
from wan_core.variants import VARIANTS, Feature, WanVariant

from . import gpu_models

SMALL = {"dim": 256, "ffn_dim": 512, "num_heads": 2, "num_layers": 5, "text_dim": 64, "freq_dim": 32}
SHAPE = (5, 12, 16)
PLANS = [(0, False), (0, True), (2, False), (3, True), (5, False)]
WIDTHS = {"1.3B": (1536, 8960, 12), "14B": (5120, 13824, 40)}
TOKENS, CHUNK, GRID = 6144, 2048, (6, 32, 32)


def small_variant(row: WanVariant) -> WanVariant:
    more = {} if row.dit.img_dim is None else {"img_dim": 64}
    more |= {"vace_layers": (0, 2)} if row.dit.vace_layers else {}
    return replace(row, dit=replace(row.dit, **SMALL, **more))


def run(model: ModelHandle, memory: PlainMemory) -> torch.Tensor:
    """Two steps of each expert, with all the conditions that the variant takes."""
    row, draw = model.variant, torch.Generator().manual_seed(4)
    extra: dict[str, Any] = {}
    latent, side = (1, row.latent.channels, *SHAPE), row.latent.stride_hw
    if {Feature.CONCAT, Feature.START} & row.features:
        extra["known_latent"] = torch.randn(latent, generator=draw)
        extra["known_mask"] = torch.ones(1, 4, *SHAPE)
    if Feature.CONTROL in row.features:
        extra["control_latent"] = torch.randn(latent, generator=draw)
    if Feature.REFERENCE in row.features:
        extra["reference"] = torch.randn(latent, generator=draw)[:, :, :1]
    if Feature.CAMERA in row.features:
        extra["camera"] = torch.randn(1, 24, SHAPE[0], SHAPE[1] * side, SHAPE[2] * side, generator=draw)
    if Feature.CLIP in row.features:
        tokens = 514 if Feature.LAST_FRAME in row.features else 257
        extra["clip"] = torch.randn(1, tokens, 64, generator=draw)
    if Feature.VACE in row.features:
        context = torch.randn(1, 32, *SHAPE, generator=draw)
        extra["vace"] = (VaceContext(latent=context), VaceContext(latent=context.flip(2), strength=0.6, end=0.5))
    sides = [stage.Condition(text=torch.randn(1, 9, row.dit.text_dim, generator=draw), **extra) for _ in range(2)]
    start = stage.StartLatent(samples=torch.zeros(1, row.latent.channels, *SHAPE))
    settings = stage.Settings(seed=3, steps=4, switch_step=2 if row.experts == 2 else 0, guidance_high=4.0)
    return stage.sample(model, *sides, start, settings, Ports(memory=memory))


class Failing(PlainMemory):
    """Everything on the device until memory runs out at the 7th block; then what the ladder says."""

    def __init__(self, model: ModelHandle):
        super().__init__()
        self.blocks, self.hook = 0, None
        self.model = model

    def place(self, weights, activation_bytes, certain=True):
        module = super().place(weights, activation_bytes, certain)
        if self.hook is None:
            self.hook = module.blocks[2].register_forward_pre_hook(self.fail)
        return module

    def fail(self, *_):
        self.blocks += 1
        if self.blocks == 2:
            raise torch.OutOfMemoryError("made up: CUDA out of memory")


def bits(bench) -> None:
    """Every variant: resident, all plans, and after a rung of the ladder."""
    from .gpu_cases import Planned

    for row in (row for row in VARIANTS if not row.exact):
        model = gpu_models.model_of(small_variant(row), bench.device)
        whole = run(model, PlainMemory())
        made = {f"{kept} kept{', together' if together else ''}": Planned(kept, together) for kept, together in PLANS}
        made["after the ladder"] = Failing(model)
        differ = [name for name, memory in made.items() if not torch.equal(run(model, memory), whole)]
        told = f"{row.name}: plans of {len(made)} that differ from resident" + (
            f" ({', '.join(differ)})" if differ else ""
        )
        bench.report.add("bits", told, len(differ), "", "0", not differ)
    for name, (dim, ffn, heads) in WIDTHS.items():
        error = chunk_error(row.dit, dim, ffn, heads, bench)
        bench.report.add(
            "bits", f"a block of {name} width in chunks, fp32: relative error", error, "", "<= 1e-5", error <= 1e-5
        )


@torch.no_grad()
def chunk_error(like, dim: int, ffn: int, heads: int, bench) -> float:
    """One block of real width in float32, cut into chunks and not."""
    config = replace(like, dim=dim, ffn_dim=ffn, num_heads=heads, num_layers=1, img_dim=None)
    grid, tokens = ((2, 4, 8), 64) if bench.toy else (GRID, TOKENS)
    generator = torch.Generator(bench.device).manual_seed(2)

    def draw(*shape):
        return torch.randn(shape, generator=generator, device=bench.device)

    with torch.device("meta"):
        block = Block(config)
    block.to_empty(device=bench.device)
    for param in block.parameters():
        param.copy_(draw(*param.shape) * (0.02 if param.ndim > 1 else 0.2))
    x, time, text = draw(1, tokens, dim), draw(1, 6, dim), draw(1, 512, dim)
    rope = tuple(table.to(bench.device) for table in rope_table(grid, dim // heads))
    which = torch.zeros(1, 1, dtype=torch.long, device=bench.device)
    whole = block(x.clone(), time, which, rope, text)
    cut = block(x.clone(), time, which, rope, text, chunk=tokens // 3 if bench.toy else CHUNK)
    return ((cut - whole).norm() / whole.norm()).item()
