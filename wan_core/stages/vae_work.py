"""What a VAE's work costs, from its layers alone: arithmetic, and memory for a picture in parts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, singledispatch
from itertools import pairwise, product

import torch
from torch import nn

from ..configs import TaeConfig, VaeConfig
from ..models.tae import Grow, MemBlock, WanTAE
from ..models.vae import LATENTS_AT_ONCE, Head, WanVAE
from ..models.vae_layers import (
    AttentionBlock,
    CausalConv3d,
    DownLevel,
    Downsample,
    ResidualBlock,
    UpLevel,
    Upsample,
)
from ..models.vae_parts import Box, Span, at_once, needs
from ..runtime import winograd

MOST_PARTS = 16
"""Of a picture."""
LEAST_SIDE = 4
"""Of a part, in latent pixels; below it nearly everything is done twice."""
WINDOW = 24
"""Latent frames, at most, for which one part of a picture is worked on before the next part: between two windows its
cache goes home, and a window's frames wait in host memory until all its parts are there."""
WORKSPACE = 1.15
"""What a library's convolutions take besides their inputs and outputs."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of some layers for one run of frames, in values (not bytes)."""

    macs: int = 0
    """Multiplications with an addition each."""
    kept: int = 0
    """Frames that convolutions over time keep between two runs."""
    peak: int = 0
    """Alive at once besides, at the worst moment."""
    frames: int = 1
    """That come out."""

    def then(self, other: "Cost") -> "Cost":
        return Cost(
            macs=self.macs + other.macs,
            kept=self.kept + other.kept,
            peak=max(self.peak, other.peak),
            frames=other.frames,
        )


@dataclass(frozen=True, kw_only=True)
class Split:
    """A picture cut into rectangles of the latent grid, and what working on them one after another takes."""

    boxes: tuple[Box, ...]
    bytes: int
    """Besides the weights, at most."""
    macs: int
    """Of one later latent frame, all parts together."""

    @property
    def grid(self) -> str:
        """For people."""
        rows, cols = (len({getattr(box, axis) for box in self.boxes}) for axis in ("rows", "cols"))
        return "whole" if rows * cols == 1 else f"in {rows * cols} parts ({cols} across, {rows} down)"


def decode_flops(config: VaeConfig | TaeConfig, frames: int, height: int, width: int) -> float:
    """FLOP to decode a latent of so many frames and its own height and width."""
    if isinstance(config, TaeConfig):
        return 2.0 * frames * _tiny(config, 1, height, width, 1).macs
    return _clip("decode", config, frames, Box.whole(height, width))


def encode_flops(config: VaeConfig, frames: int, height: int, width: int) -> float:
    """FLOP to encode a clip to a latent of that size."""
    return _clip("encode", config, frames, Box.whole(height, width))


def _clip(direction: str, config: VaeConfig, frames: int, whole: Box) -> float:
    """The first latent frame is one picture, each other one four."""
    first, later = (
        _joined(direction, config, whole, first).macs + _part(direction, config, whole, first).macs
        for first in (True, False)
    )
    return 2.0 * (first + (frames - 1) * later / _latents(direction, False))


def _latents(direction: str, first: bool) -> int:
    """Latent frames that a run is of."""
    return LATENTS_AT_ONCE if direction == "decode" and not first else 1


@lru_cache(maxsize=16)
def choices(
    direction: str, config: VaeConfig | TaeConfig, batch: int, height: int, width: int, itemsize: int
) -> tuple[Split, ...]:
    """All ways to cut a picture that are worth it, the cheapest (whole) first; each needs less memory than those
    before it.

    Args:
        direction: ``decode`` or ``encode``.
        height, width: of the latent.
        itemsize: bytes of a value in the dtype that is computed in.
    """
    if isinstance(config, TaeConfig):
        return (_tiny(config, batch, height, width, itemsize),)
    counts = [range(1, min(MOST_PARTS, max(1, side // LEAST_SIDE)) + 1) for side in (height, width)]
    found = [
        in_parts(direction, config, batch, cut(height, rows), cut(width, cols), itemsize)
        for rows, cols in product(*counts)
        if rows * cols <= MOST_PARTS
    ]
    found.sort(key=lambda split: (split.macs, split.bytes))
    best: list[Split] = []
    for split in found:
        if not best or split.bytes < best[-1].bytes:
            best.append(split)
    return tuple(best)


def _tiny(config: TaeConfig, batch: int, height: int, width: int, itemsize: int) -> Split:
    """A tiny VAE works on whole pictures: one frame at a time takes less than a VAE in parts."""
    with torch.device("meta"):
        layers = WanTAE(config).decoder
    area, frames, macs, kept, peak = height * width, 1, 0, 0, 0
    for layer in layers:
        convs = [conv for conv in layer.modules() if isinstance(conv, nn.Conv2d)]
        macs += frames * area * sum(conv.weight.numel() for conv in convs)
        if isinstance(layer, MemBlock):
            kept += convs[-1].out_channels * area
            peak = max(peak, 5 * convs[-1].out_channels * area)
        elif isinstance(layer, Grow):
            kept += convs[0].out_channels * area
            area, frames = 4 * area, frames * layer.frames
        elif convs:
            peak = max(peak, (convs[0].in_channels + convs[0].out_channels) * area)
    kept += 2 * frames * layers[-1].out_channels * area  # the pictures of a latent frame, one by one and joined
    return Split(boxes=(Box.whole(height, width),), bytes=int(batch * itemsize * WORKSPACE * (kept + peak)), macs=macs)


def cut(size: int, count: int) -> list[Span]:
    """One axis in ``count`` stretches of about one length."""
    edges = [round(size * i / count) for i in range(count + 1)]
    return [Span(a, b, size) for a, b in pairwise(edges)]


def choose(found: Sequence[Split], weight_bytes: int, budget_bytes: int | None) -> Split:
    """The cheapest that fits beside the weights; the smallest where none does. ``budget_bytes`` None: no limit."""
    fitting = (one for one in found if budget_bytes is None or weight_bytes + one.bytes <= budget_bytes)
    return next(fitting, found[-1])


def smaller(found: Sequence[Split], than: Split) -> Split | None:
    """The next that needs a third less; the smallest of all at last, and None after it."""
    after = [one for one in found if one.bytes < than.bytes]
    return next((one for one in after if one.bytes <= than.bytes * 2 / 3), after[-1] if after else None)


def in_parts(direction: str, config: VaeConfig, batch: int, rows: list[Span], cols: list[Span], itemsize: int) -> Split:
    """A picture of the latent cut at these edges."""
    boxes = tuple(Box(row, col) for row, col in product(rows, cols))
    whole = Box(replace(rows[0], lo=0, hi=rows[0].size), replace(cols[0], lo=0, hi=cols[0].size))
    joined = _joined(direction, config, whole, False)
    costs = [_part(direction, config, box, False) for box in boxes]
    worst = max(costs, key=lambda cost: cost.kept + cost.peak)
    held = 0
    if len(boxes) > 1:  # the features of a window wait for all parts
        vae = _shapes(config)
        middle = vae.decoder.middle if direction == "decode" else vae.encoder.middle
        held = WINDOW * middle[0].residual["2"].in_channels * whole.area
    values = joined.kept + held + max(joined.peak, worst.kept + worst.peak)
    return Split(
        boxes=boxes,
        bytes=int(batch * itemsize * WORKSPACE * values),
        macs=(joined.macs + sum(cost.macs for cost in costs)) // _latents(direction, False),
    )


def _part(direction: str, config: VaeConfig, box: Box, first: bool) -> Cost:
    vae = _shapes(config)
    if direction == "decode":
        layers, frames = vae.decoder.local, _latents(direction, first)
        want = box.times(config.stride_hw // config.patch)
    else:
        layers, frames, want = vae.encoder.local, 1 if first else config.stride_t, box
    return _cost(layers, needs(layers, want), frames, first)


def _joined(direction: str, config: VaeConfig, whole: Box, first: bool) -> Cost:
    vae = _shapes(config)
    middle = vae.decoder.middle if direction == "decode" else vae.encoder.middle
    layers = [vae.decoder.conv1, *middle] if direction == "decode" else [*middle, vae.encoder.head]
    conv = vae.conv2 if direction == "decode" else vae.conv1
    frames = _latents(direction, first)
    total = _cost(layers, [whole] * len(layers), frames, first)
    return replace(total, macs=total.macs + frames * whole.area * conv.in_channels * conv.out_channels)


def _cost(layers: Sequence[nn.Module], boxes: Sequence[Box], frames: int, first: bool) -> Cost:
    total = Cost(frames=frames)
    for index, (layer, box) in enumerate(zip(layers, boxes)):
        pieces = -(-total.frames // at_once(layer))
        if pieces > 1:
            rest = _cost(layers[index:], boxes[index:], at_once(layer), first)
            waiting = total.frames * _channels(layer) * box.area
            macs, frames = rest.macs * pieces, rest.frames * pieces
            return total.then(replace(rest, macs=macs, frames=frames, peak=rest.peak + waiting))
        total = total.then(of(layer, box, total.frames, first))
    return total


def _channels(layer: Upsample | UpLevel) -> int:
    """That go in."""
    return (layer.resample[1] if isinstance(layer, Upsample) else layer.layers[0].residual["2"]).in_channels


@lru_cache(maxsize=8)
def _shapes(config: VaeConfig) -> WanVAE:
    with torch.device("meta"):
        return WanVAE(config)


@singledispatch
def of(layer: nn.Module, box: Box, frames: int, first: bool) -> Cost:
    """What one layer costs for ``frames`` of a part of its input; ``first``: in a clip's first run."""
    raise NotImplementedError(type(layer).__name__)


@of.register
def _(conv: CausalConv3d, box: Box, frames: int, first: bool) -> Cost:
    into, out, (taps, *side) = conv.in_channels, conv.out_channels, conv.kernel_size
    more = winograd.room(frames, len(box.rows), len(box.cols), into, out) if side == [3, 3] else 0  # on a CPU
    return Cost(
        macs=frames * box.area * (1 if first else taps) * side[0] * side[1] * into * out,
        kept=2 * into * box.area,
        peak=((2 * frames + 2) * into + frames * out) * box.area + more,
        frames=frames,
    )


@of.register
def _(head: Head, box: Box, frames: int, first: bool) -> Cost:
    return of(head["2"], box, frames, first)


@of.register
def _(block: ResidualBlock, box: Box, frames: int, first: bool) -> Cost:
    conv1, conv2 = block.residual["2"], block.residual["6"]
    into, out = conv1.in_channels, conv1.out_channels
    both = of(conv1, box, frames, first).then(of(conv2, box, frames, first))
    shortcut = 0 if into == out else frames * box.area * into * out
    held = (frames * into + frames * out + (frames + 2) * out + frames * out) * box.area
    return replace(both, macs=both.macs + shortcut, peak=max(both.peak, held))


@of.register
def _(block: AttentionBlock, box: Box, frames: int, first: bool) -> Cost:
    dim = block.proj.in_channels
    return Cost(
        macs=frames * (box.area * 4 * dim**2 + 2 * box.area**2 * dim), peak=7 * frames * dim * box.area, frames=frames
    )


@of.register
def _(layer: Downsample, box: Box, frames: int, first: bool) -> Cost:
    dim, area = layer.resample[1].in_channels, box.after(layer).area
    made = frames if first or layer.time_conv is None else frames // 2
    return Cost(
        macs=frames * area * 9 * dim**2 + (0 if made == frames else made * area * 3 * dim**2),
        kept=0 if layer.time_conv is None else dim * area,
        peak=frames * dim * (2 * box.area + 3 * area),
        frames=made,
    )


@of.register
def _(layer: Upsample, box: Box, frames: int, first: bool) -> Cost:
    conv, area = layer.resample[1], box.area
    into, out = conv.in_channels, conv.out_channels
    doubles = layer.time_conv is not None and not first
    made = frames * 2 if doubles else frames
    return Cost(
        macs=made * (len(box.rows) + 1) * (len(box.cols) + 1) * 16 * into * out
        + (frames * area * 3 * into * 2 * into if doubles else 0),
        kept=0 if layer.time_conv is None else 2 * into * area,
        peak=(((3 * frames + 2) if doubles else frames) * into + made * 4 * out + frames * out) * area,
        frames=made,
    )


def _of_level(level: DownLevel | UpLevel, box: Box, frames: int, first: bool) -> Cost:
    """Its input stays for the shortcut."""
    inside = [box]
    for layer in level.layers:
        inside.append(inside[-1].after(layer))
    total = _cost(level.layers, inside, frames, first)
    block = level.layers[0].residual["2"]
    return replace(total, peak=total.peak + frames * block.in_channels * box.area)


of.register(DownLevel)(_of_level)
of.register(UpLevel)(_of_level)
