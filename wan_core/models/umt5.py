"""The umT5 text encoder of Wan.

Source: Wan-Video/Wan2.1, ``wan/modules/t5.py``; parameter names are the official ones. Paper: Raffel et al. 2020
(T5: relative position buckets, no attention scaling), Chung et al. 2023 (umT5: a bias table in every layer).
Shape letters: B batch, L tokens, N = 2 L - 1 offsets between them, H heads, D head dim, d width.

Precision: linear layers compute in the dtype they were given; scores, norm statistics and the residual stream are
float32, because the unscaled scores and the sum over 24 layers leave the range of float16.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configs import Umt5Config
from ..runtime.pointwise import gelu_tanh
from .layers import RMSNorm, Walk


class Attention(nn.Module):
    """Self-attention with an additive bias and without the usual ``1 / sqrt(D)``."""

    def __init__(self, cfg: Umt5Config):
        super().__init__()
        self.heads = cfg.num_heads
        self.q, self.k, self.v = (nn.Linear(cfg.dim, cfg.dim_attn, bias=False) for _ in range(3))
        self.o = nn.Linear(cfg.dim_attn, cfg.dim, bias=False)

    def forward(self, x_BLd: Tensor, bias_BHLL: Tensor) -> Tensor:
        q, k, v = (
            project(x_BLd).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.q, self.k, self.v)
        )
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # it has the range, and scores are float32 there
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        else:
            q, k, v = q.float(), k.float(), v.float()
        out_BHLD = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_BHLL, scale=1.0)
        return self.o(out_BHLD.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """``fc2(fc1(x) * gelu(gate(x)))``."""

    def __init__(self, cfg: Umt5Config):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(cfg.dim, cfg.dim_ffn, bias=False), nn.GELU("tanh"))
        self.fc1 = nn.Linear(cfg.dim, cfg.dim_ffn, bias=False)
        self.fc2 = nn.Linear(cfg.dim_ffn, cfg.dim, bias=False)

    def forward(self, x_BLd: Tensor) -> Tensor:
        gate, _ = self.gate
        open_BLf, x_BLf = gelu_tanh(gate(x_BLd)), self.fc1(x_BLd)
        return self.fc2(open_BLf * x_BLf if torch.is_grad_enabled() else open_BLf.mul_(x_BLf))


class RelativePositions(nn.Module):
    """One bias per head and distance bucket."""

    def __init__(self, cfg: Umt5Config):
        super().__init__()
        self.embedding = nn.Embedding(cfg.num_buckets, cfg.num_heads)

    def forward(self, buckets_N: Tensor) -> Tensor:
        """``buckets_N``: of :func:`position_buckets`. Gives ``[1, H, L, L]``, float32: a query's row is a window on the
        biases of all offsets, one further back than that of the query before it."""
        bias_HN = self.embedding(buckets_N).float().T.contiguous()  # else the windows' keys would lie apart
        return bias_HN.unfold(1, len(buckets_N) // 2 + 1, 1).flip(1).unsqueeze(0)


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, cfg: Umt5Config):
        super().__init__()
        self.norm1 = RMSNorm(cfg.dim, cfg.eps)
        self.attn = Attention(cfg)
        self.norm2 = RMSNorm(cfg.dim, cfg.eps)
        self.ffn = FeedForward(cfg)
        self.pos_embedding = RelativePositions(cfg)

    def forward(self, x_BLd: Tensor, buckets_N: Tensor, hidden_B11L: Tensor | None) -> Tensor:
        bias_BHLL = self.pos_embedding(buckets_N)
        if hidden_B11L is not None:
            bias_BHLL = bias_BHLL.masked_fill(hidden_B11L, torch.finfo(bias_BHLL.dtype).min)
        x_BLd = x_BLd + self.attn(self.norm1(x_BLd), bias_BHLL)
        return x_BLd + self.ffn(self.norm2(x_BLd))


class Umt5Encoder(nn.Module):
    """Token ids in, one vector per token out."""

    walked = "blocks"
    """The list of blocks that ``walk`` is given."""
    stays_home = ("token_embedding.",)
    """A table of which a prompt needs a few rows: they are looked up where it is."""

    def __init__(self, config: Umt5Config):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.eps)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor, walk: Walk = iter) -> Tensor:
        """Encode.

        Args:
            ids_BL: token ids, int64, below ``config.vocab``.
            mask_BL: 1 (or True) where there is a token, 0 where there is padding. Padding is attended by nobody; what
                comes out at padded positions means nothing.
            walk: yields the blocks one after another (see ``runtime/ports.py``).

        Returns:
            ``[B, L, dim]``, float32.
        """
        buckets_N = position_buckets(ids_BL.shape[1], self.config).to(ids_BL.device)
        hidden_B11L = None if mask_BL.all() else (mask_BL == 0)[:, None, None]
        table = self.token_embedding.weight
        x_BLd = self.token_embedding(ids_BL.to(table.device)).to(ids_BL.device).float()
        for block in walk(self.blocks):
            x_BLd = block(x_BLd, buckets_N, hidden_B11L)
        return self.norm(x_BLd)


def position_buckets(length: int, cfg: Umt5Config) -> Tensor:
    """Bucket of every offset from query to key, ``-(length - 1)`` to ``length - 1`` in this order, int64, on the CPU.

    Half of the buckets are for keys after the query. Of each half, the first half holds one distance each; the rest
    grow by logarithm up to ``max_distance``. Made on the CPU so that every device puts a distance in the same bucket.
    """
    per_side = cfg.num_buckets // 2
    exact = per_side // 2
    distances = torch.arange(length)
    steps = torch.log(distances.clamp(min=1).float() / exact) / math.log(cfg.max_distance / exact) * (per_side - exact)
    far = (exact + steps.long()).clamp(max=per_side - 1)
    bucket_of = torch.where(distances < exact, distances, far)
    return torch.cat((bucket_of[1:].flip(0), bucket_of[:1], bucket_of[1:] + per_side))
