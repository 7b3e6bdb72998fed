"""One block of the Wan transformer: attention to the tokens and to the text, and the feed-forward layer.

Source: Wan-Video/Wan2.1 and Wan-Video/Wan2.2, ``wan/modules/model.py``; shape letters as in :mod:`.dit`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..configs import DitConfig
from ..runtime.attention import attention
from ..runtime.pointwise import add_gated, gelu_tanh, norm_affine, norm_modulate, rms_rotate
from .layers import RMSNorm
from .nag import Nag, normalised

Rope = tuple[Tensor, Tensor]
KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Negative:
    """A negative prompt on its way through the blocks."""

    text_BSd: Tensor
    bias: Tensor | None
    nag: Nag


class TextMemory:
    """The keys and values that blocks have made of one text: the same in every step, and for a short clip a good part
    of its work. Whoever keeps it says with which weights it is used."""

    def __init__(self) -> None:
        self._made: dict[nn.Module, KeyValue] = {}
        self._weights: object = None

    def made_with(self, weights: object) -> "TextMemory":
        """Itself, without what was made with other ``weights`` (anything that can be compared)."""
        if weights != self._weights:
            self.clear()
            self._weights = weights
        return self

    def clear(self) -> None:
        self._made.clear()

    def of(self, block: nn.Module, make: Callable[[], KeyValue]) -> KeyValue:
        if torch.is_grad_enabled():
            return make()
        if block not in self._made:
            self._made[block] = make()
        return self._made[block]


class Attention(nn.Module):
    """Projections and query/key norms of one attention; self-attention or cross-attention by its inputs."""

    def __init__(self, cfg: DitConfig, image: bool = False):
        super().__init__()
        dim = cfg.dim
        self.heads, self.eps = cfg.num_heads, cfg.eps
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim, cfg.eps), RMSNorm(dim, cfg.eps)
        if image:
            self.k_img, self.v_img = nn.Linear(dim, dim), nn.Linear(dim, dim)
            self.norm_k_img = RMSNorm(dim, cfg.eps)

    def split(self, x_BLd: Tensor) -> Tensor:
        return x_BLd.unflatten(-1, (self.heads, -1))

    def normed(self, x_BLd: Tensor, norm: RMSNorm, dtype: torch.dtype, rope: Rope | None = None) -> Tensor:
        """Queries or keys ``[B, L, H, D]`` in ``dtype``: normed over the width, then turned by their positions."""
        cos, sin = (None, None) if rope is None else rope
        return rms_rotate(x_BLd, norm.weight, cos, sin, self.heads, norm.eps, dtype)

    def key_value(self, x_BLd: Tensor, rope: Rope | None = None) -> KeyValue:
        """Keys and values ``[B, L, H, D]`` of tokens, or of text."""
        value = self.split(self.v(x_BLd))
        return self.normed(self.k(x_BLd), self.norm_k, value.dtype, rope), value

    def image_key_value(self, x_BSd: Tensor) -> KeyValue:
        """Keys and values of the image tokens."""
        value = self.split(self.v_img(x_BSd))
        return self.normed(self.k_img(x_BSd), self.norm_k_img, value.dtype), value

    def to_self(self, x_BLd: Tensor, memory: KeyValue, rope: Rope, mask: Tensor | None) -> Tensor:
        """Attend to the tokens themselves, with rotary positions."""
        query = self.normed(self.q(x_BLd), self.norm_q, memory[1].dtype, rope)
        return self.o(attention(query, *memory, mask).flatten(2))

    def to_context(
        self,
        x_BLd: Tensor,
        text: KeyValue,
        image: KeyValue | None,
        text_bias: Tensor | None,
        negative: tuple[KeyValue, Tensor | None, Nag] | None = None,
    ) -> Tensor:
        """Attend to the text and, separately with the same queries, to the image tokens; the two are added.

        ``negative``: keys and values of a negative prompt, its bias, and how the text is guided away from it.
        """
        query = self.normed(self.q(x_BLd), self.norm_q, text[1].dtype)
        out = attention(query, *text, text_bias)
        if negative is not None:
            away, bias, nag = negative
            out = normalised(out, attention(query, *away, bias), nag)
        if image is not None:
            out = out + attention(query, *image)
        return self.o(out.flatten(2))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward; the first and the last modulated and gated by time.

    Keys and values are of all tokens; everything else is done for ``chunk`` tokens after another, so that besides the
    residual stream only those two are ever whole.
    """

    def __init__(self, cfg: DitConfig):
        super().__init__()
        self.eps = cfg.eps
        self.modulation = nn.Parameter(torch.zeros(1, 6, cfg.dim))
        self.self_attn = Attention(cfg)
        self.norm3 = nn.LayerNorm(cfg.dim, eps=cfg.eps)
        self.cross_attn = Attention(cfg, image=cfg.img_dim is not None)
        self.ffn = nn.Sequential(nn.Linear(cfg.dim, cfg.ffn_dim), nn.GELU("tanh"), nn.Linear(cfg.ffn_dim, cfg.dim))

    def forward(
        self,
        x_BLd: Tensor,
        time_U6d: Tensor,
        which_BL: Tensor,
        rope: Rope,
        text_BSd: Tensor,
        image_BSd: Tensor | None = None,
        mask: Tensor | None = None,
        text_bias: Tensor | None = None,
        chunk: int | None = None,
        negative: Negative | None = None,
        text_memory: TextMemory | None = None,
    ) -> Tensor:
        """Without autograd ``x_BLd`` itself is changed and returned. ``text_memory``: of ``text_BSd``."""
        # A row per distinct timestep, spread over the tokens only where it is used: clips with clean frames have two.
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + time_U6d).transpose(0, 1).contiguous()
        text = (text_memory or TextMemory()).of(self, lambda: self.cross_attn.key_value(text_BSd))
        image = None if image_BSd is None else self.cross_attn.image_key_value(image_BSd)
        away = None
        if negative is not None:
            away = self.cross_attn.key_value(negative.text_BSd), negative.bias, negative.nag
        pieces = [Piece(x_BLd, which_BL, rope, where) for where in runs(x_BLd.shape[1], chunk)]

        def first_norm(piece: Piece) -> Tensor:
            return norm_modulate(piece.x, shift1, scale1, piece.which, self.eps, compute_dtype(self.self_attn.q))

        memory, h = self._memory(pieces, first_norm)
        for piece in pieces:
            h = first_norm(piece) if len(pieces) > 1 else h
            x = add_gated(piece.x, self.self_attn.to_self(h, memory, piece.rope, mask), gate1, piece.which)
            norm3 = self.norm3
            h = norm_affine(x, norm3.weight, norm3.bias, norm3.eps, compute_dtype(self.cross_attn.q))
            x = add_gated(x, self.cross_attn.to_context(h, text, image, text_bias, away), None, None)
            h = norm_modulate(x, shift2, scale2, piece.which, self.eps, compute_dtype(self.ffn[0]))
            piece.x = add_gated(x, self._feed_forward(h), gate2, piece.which)
            h = None
        if len(pieces) == 1:
            return pieces[0].x
        return torch.cat([piece.x for piece in pieces], dim=1) if torch.is_grad_enabled() else x_BLd

    def _memory(self, pieces: list["Piece"], norm: Callable[["Piece"], Tensor]) -> tuple[KeyValue, Tensor | None]:
        """Keys and values of all tokens; with one piece, its norm too."""
        if len(pieces) == 1:
            h = norm(pieces[0])
            return self.self_attn.key_value(h, pieces[0].rope), h
        parts = (self.self_attn.key_value(norm(piece), piece.rope) for piece in pieces)
        if torch.is_grad_enabled():
            keys, values = zip(*parts)
            return (torch.cat(keys, dim=1), torch.cat(values, dim=1)), None
        keys = values = None
        for piece, (key, value) in zip(pieces, parts):
            if keys is None:
                shape = (key.shape[0], pieces[-1].where.stop, *key.shape[2:])
                keys, values = key.new_empty(shape), value.new_empty(shape)
            keys[:, piece.where], values[:, piece.where] = key, value
        return (keys, values), None

    def _feed_forward(self, x_BLd: Tensor) -> Tensor:
        into, _, out = self.ffn
        fused = getattr(into, "with_gelu", None)
        return out(gelu_tanh(into(x_BLd)) if fused is None else fused(x_BLd))


class Piece:
    """Some of the tokens, and what belongs to them."""

    def __init__(self, x_BLd: Tensor, which_BL: Tensor, rope: Rope, where: slice):
        self.where = where
        self.x = x_BLd[:, where]
        self.which = which_BL if which_BL.shape[1] == 1 else which_BL[:, where]
        self.rope = tuple(table[..., where, :] for table in rope)


TILE = 128


def runs(length: int, chunk: int | None) -> list[slice]:
    """``length`` tokens in runs of about one size, none longer than ``chunk`` (None: one run), and all but the last
    multiples of a kernel's tile where they can be."""
    count = 1 if chunk is None else -(-length // chunk)
    size = -(-length // count)
    size = min(-(-size // TILE) * TILE, chunk) if count > 1 and size >= TILE else size
    return [slice(a, min(a + size, length)) for a in range(0, length, size)]


def compute_dtype(linear: nn.Module) -> torch.dtype:
    """What a linear layer computes in, where it says so; else float32, and the layer casts by itself."""
    return getattr(linear, "compute_dtype", torch.float32)
