"""Parts of a picture: what a layer has to see to make one, and layers run on just that.

All layers of the VAEs but the attention are local, and say how far they see: ``before`` turns the stretch of one axis
that is wanted of their output into the stretch of their input that it depends on, ``after`` the other way round.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ConvCache = dict[nn.Module, Tensor]
"""Convolution over time -> the last input frames it has seen (at most 2). One per stream, empty at its start."""


FRAMES = 4
"""That leave a layer at most: of a longer run the layers take pieces. It is what the VAEs make of a latent frame, so
that what comes out at last is one latent frame's."""


@dataclass(frozen=True)
class Span:
    """A stretch of one axis: pixels ``lo`` to ``hi`` (not included) of ``size``."""

    lo: int
    hi: int
    size: int

    def __len__(self) -> int:
        return self.hi - self.lo

    def grown(self, reach: int) -> "Span":
        """``reach`` pixels more at both ends, as far as the picture goes."""
        return Span(max(0, self.lo - reach), min(self.size, self.hi + reach), self.size)

    def within(self, other: "Span") -> slice:
        """Where it lies in a tensor that covers ``other``."""
        return slice(self.lo - other.lo, self.hi - other.lo)

    def times(self, factor: int) -> "Span":
        return Span(self.lo * factor, self.hi * factor, self.size * factor)


@dataclass(frozen=True)
class Box:
    """A rectangle of a picture."""

    rows: Span
    cols: Span

    @classmethod
    def whole(cls, height: int, width: int) -> "Box":
        return cls(Span(0, height, height), Span(0, width, width))

    @property
    def area(self) -> int:
        return len(self.rows) * len(self.cols)

    def cut(self, x: Tensor, have: "Box") -> Tensor:
        """This part of a tensor ``[..., H, W]`` that covers ``have``."""
        return x[..., self.rows.within(have.rows), self.cols.within(have.cols)]

    def of(self, x: Tensor) -> Tensor:
        """This part of a tensor ``[..., H, W]`` of the whole picture."""
        return x[..., self.rows.lo : self.rows.hi, self.cols.lo : self.cols.hi]

    def before(self, layer: nn.Module) -> "Box":
        """What ``layer`` has to see to make this."""
        return Box(layer.before(self.rows), layer.before(self.cols))

    def after(self, layer: nn.Module) -> "Box":
        """What ``layer`` makes of this; its edges may be wrong where the picture goes on."""
        return Box(layer.after(self.rows), layer.after(self.cols))

    def times(self, factor: int) -> "Box":
        return Box(self.rows.times(factor), self.cols.times(factor))


def needs(layers: Sequence[nn.Module], want: Box) -> list[Box]:
    """The part of each layer's input that ``want``, of the last one's output, depends on; and ``want``."""
    boxes = [want]
    for layer in reversed(layers):
        boxes.insert(0, boxes[0].before(layer))
    return boxes


def at_once(layer: nn.Module) -> int:
    """The frames that a layer should be given at most; layers that double frames have a ``growth_t``."""
    return FRAMES // getattr(layer, "growth_t", 1)


@torch.no_grad()
def _run_one(layer: nn.Module, x: Tensor, cache: ConvCache, box: Box, following: Box) -> Tensor:
    return following.cut(layer(x, cache), box.after(layer))


def run_local(layers: Sequence[nn.Module], x: Tensor, cache: ConvCache, boxes: Sequence[Box]) -> Iterator[Tensor]:
    """Layers after one another on the part of a picture that the last of ``boxes`` depends on, and no more.

    At an edge inside the picture a layer pads with zeros, so that its outermost pixels are wrong: they are cut off
    before the next layer. A run that has become long goes through the rest of the layers piece by piece.

    Args:
        x: a run of frames that covers the first of ``boxes``.
        boxes: of :func:`needs`.

    Yields:
        What covers the last of ``boxes``, up to :data:`FRAMES` frames. No gradients are kept.
    """
    for index, layer in enumerate(layers):
        if x.shape[2] > at_once(layer):
            for piece in x.split(at_once(layer), dim=2):
                yield from run_local(layers[index:], piece, cache, boxes[index:])
            return
        x = _run_one(layer, x, cache, *boxes[index : index + 2])
    yield x
