"""VACE: blocks beside the main ones carry a control clip and give the main blocks hints.

Source: Wan-Video/Wan2.1 ``wan/modules/vace_model.py``. ``hint_n = after_proj(c_n)``, where ``c_n`` is the control
stream after VACE block n and ``c_0`` begins as ``before_proj(embedded context) + x``; main block ``vace_layers[n]``
adds ``strength * hint_n`` to its result. Hints depend on the main stream at its beginning only, so each VACE block is
walked just before the main block that takes its hint: one is held at a time, and weights travel in the order of work.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..configs import DitConfig
from ..runtime.pointwise import add_gated
from .dit import Inputs, PatchEmbedding, WanDiT, _Pass, pad_to_patch
from .dit_block import Block, runs


class VaceBlock(Block):
    """A main block on the control stream, with the projection to a hint; the first also lets the main stream in."""

    def __init__(self, cfg: DitConfig, first: bool):
        super().__init__(cfg)
        if first:
            self.before_proj = nn.Linear(cfg.dim, cfg.dim)
        self.after_proj = nn.Linear(cfg.dim, cfg.dim)


@dataclass(kw_only=True)
class _Stream:
    """One context on its way through the VACE blocks."""

    c_BLd: Tensor
    strength: float


@dataclass(kw_only=True)
class _Streams:
    """All contexts of a prediction, and their summed hint for the main block that comes next."""

    streams: list[_Stream]
    hint_BLd: Tensor | None = None


class WanVace(WanDiT):
    """A Wan transformer with VACE blocks. Without a context in :class:`~.dit.Inputs` it computes what it would without
    them."""

    def __init__(self, config: DitConfig):
        layers = config.vace_layers
        if list(layers) != sorted(set(layers)) or layers[0] != 0 or layers[-1] >= config.num_layers:
            raise ValueError(f"vace_layers must rise from 0 and stay below {config.num_layers}; got {layers}")
        super().__init__(config)
        self.vace_patch_embedding = PatchEmbedding(config.vace_in_dim, config.dim, config.patch, config.patch)
        self.vace_blocks = nn.ModuleList(VaceBlock(config, first=n == 0) for n in range(len(layers)))
        number = {layer: n for n, layer in enumerate(layers)}
        self.walked = tuple(
            path
            for i in range(config.num_layers)
            for path in ([f"vace_blocks.{number[i]}"] if i in number else []) + [f"blocks.{i}"]
        )

    def in_order(self) -> Sequence[nn.Module]:
        return [self.get_submodule(path) for path in self.walked]

    def _begin(self, inputs: Inputs) -> _Pass:
        one = super()._begin(inputs)
        batch, length, _ = one.tokens_BLd.shape
        streams = []
        for control in inputs.vace:
            c_BLd = self.vace_patch_embedding(pad_to_patch(control.context, self.config.patch))
            if c_BLd.shape[0] not in (1, batch) or c_BLd.shape[1] != length:
                raise ValueError(f"a VACE context {list(control.context.shape)} does not fit {batch} x {length} tokens")
            c_BLd = c_BLd.repeat(batch, 1, 1) if c_BLd.shape[0] != batch else c_BLd
            streams.append(_Stream(c_BLd=c_BLd, strength=control.strength))
        one.vace = _Streams(streams=streams)
        return one

    def _leave_out(self, one: _Pass) -> None:
        one.vace.hint_BLd = None

    def _advance(self, block: nn.Module, one: _Pass, chunk: int | None) -> None:
        control: _Streams = one.vace
        if isinstance(block, VaceBlock):
            for stream in control.streams:
                _advance_stream(block, stream, one, chunk)
                hint = _by_pieces(block.after_proj, stream.c_BLd, chunk)
                hint = hint if stream.strength == 1.0 else hint.mul_(stream.strength)
                control.hint_BLd = hint if control.hint_BLd is None else add_gated(control.hint_BLd, hint, None, None)
            return
        super()._advance(block, one, chunk)
        if control.hint_BLd is not None:
            one.tokens_BLd = add_gated(one.tokens_BLd, control.hint_BLd, None, None)
            control.hint_BLd = None


def _advance_stream(block: VaceBlock, stream: _Stream, one: _Pass, chunk: int | None) -> None:
    if hasattr(block, "before_proj"):
        x_BLd, c_BLd = one.tokens_BLd, stream.c_BLd
        if torch.is_grad_enabled():
            stream.c_BLd = block.before_proj(c_BLd) + x_BLd
        else:
            for where in runs(c_BLd.shape[1], chunk):
                c_BLd[:, where] = block.before_proj(c_BLd[:, where]) + x_BLd[:, where]
    stream.c_BLd = one.through(block, stream.c_BLd, chunk)


def _by_pieces(linear: nn.Module, x_BLd: Tensor, chunk: int | None) -> Tensor:
    """``linear(x)`` for some tokens after another, so that no whole copy of ``x`` in its dtype is made."""
    parts = runs(x_BLd.shape[1], chunk)
    if len(parts) == 1:
        return linear(x_BLd)
    if torch.is_grad_enabled():
        return torch.cat([linear(x_BLd[:, where]) for where in parts], dim=1)
    out = None
    for where in parts:
        part = linear(x_BLd[:, where])
        out = part.new_empty(*x_BLd.shape[:2], part.shape[-1]) if out is None else out
        out[:, where] = part
    return out


def build_dit(config: DitConfig) -> WanDiT:
    """The transformer of these numbers."""
    return WanVace(config) if config.vace_layers else WanDiT(config)
