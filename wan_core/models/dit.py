"""The Wan diffusion transformer: one class for every base variant, its numbers from :class:`DitConfig`.

Source: Wan-Video/Wan2.1 and Wan-Video/Wan2.2, ``wan/modules/model.py``; parameter names are the official ones.
Shape letters: B batch, L tokens, S context tokens, H heads, D head dim, C latent channels, T latent frames, h/w
latent height and width.

Precision: linear layers compute in the dtype they were given; modulation, norm statistics and the residual stream
follow the float32 parameters (see ``wan_core/weights/precision.py``), by ordinary type promotion.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..configs import DitConfig
from ..runtime.attention import attention
from .layers import RMSNorm, Walk
from .rope import rope_table, rotate, sinusoid

Rope = tuple[Tensor, Tensor]


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """Layer norm without parameters, in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps)


class Attention(nn.Module):
    """Projections and query/key norms of one attention; self-attention or cross-attention by its inputs."""

    def __init__(self, cfg: DitConfig, image: bool = False):
        super().__init__()
        dim = cfg.dim
        self.heads = cfg.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim, cfg.eps), RMSNorm(dim, cfg.eps)
        if image:
            self.k_img, self.v_img = nn.Linear(dim, dim), nn.Linear(dim, dim)
            self.norm_k_img = RMSNorm(dim, cfg.eps)

    def split(self, x_BLd: Tensor) -> Tensor:
        return x_BLd.unflatten(-1, (self.heads, -1))

    def to_self(self, x_BLd: Tensor, rope: Rope, mask: Tensor | None) -> Tensor:
        """Attend to the tokens themselves, with rotary positions."""
        q = rotate(self.split(self.norm_q(self.q(x_BLd))), *rope)
        k = rotate(self.split(self.norm_k(self.k(x_BLd))), *rope)
        return self.o(attention(q, k, self.split(self.v(x_BLd)), mask).flatten(2))

    def to_context(self, x_BLd: Tensor, text_BSd: Tensor, image_BSd: Tensor | None, text_bias: Tensor | None) -> Tensor:
        """Attend to the text and, separately with the same queries, to the image tokens; the two are added."""
        q = self.split(self.norm_q(self.q(x_BLd)))
        out = attention(q, self.split(self.norm_k(self.k(text_BSd))), self.split(self.v(text_BSd)), text_bias)
        if image_BSd is not None:
            k = self.split(self.norm_k_img(self.k_img(image_BSd)))
            out = out + attention(q, k, self.split(self.v_img(image_BSd)))
        return self.o(out.flatten(2))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward; the first and the last modulated and gated by time."""

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
    ) -> Tensor:
        x = x_BLd
        # A row per distinct timestep, spread over the tokens only where it is used: clips with clean frames have two.
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + time_U6d).unbind(1)
        h = modulate(layer_norm(x, self.eps), shift1[which_BL], scale1[which_BL])
        x = x + gate1[which_BL] * self.self_attn.to_self(h, rope, mask)
        x = x + self.cross_attn.to_context(self.norm3(x.to(self.norm3.weight.dtype)), text_BSd, image_BSd, text_bias)
        h = modulate(layer_norm(x, self.eps), shift2[which_BL], scale2[which_BL])
        return x + gate2[which_BL] * self.ffn(h)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x (1 + scale) + shift``."""
    return torch.addcmul(shift, x, 1 + scale)


class Head(nn.Module):
    """The last modulated norm and the projection to patches."""

    def __init__(self, cfg: DitConfig):
        super().__init__()
        self.eps = cfg.eps
        self.modulation = nn.Parameter(torch.zeros(1, 2, cfg.dim))
        pt, ph, pw = cfg.patch
        self.head = nn.Linear(cfg.dim, cfg.out_dim * pt * ph * pw)

    def forward(self, x_BLd: Tensor, time_Ud: Tensor, which_BL: Tensor) -> Tensor:
        shift, scale = (self.modulation + time_Ud.unsqueeze(1)).unbind(1)
        return self.head(modulate(layer_norm(x_BLd, self.eps), shift[which_BL], scale[which_BL]))


class ImageEmbedding(nn.Module):
    """CLIP tokens -> transformer width; with learned positions where start and end image share the sequence."""

    def __init__(self, cfg: DitConfig):
        super().__init__()
        width = cfg.img_dim
        self.proj = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, cfg.dim), nn.LayerNorm(cfg.dim)
        )
        if cfg.img_tokens is not None:
            self.emb_pos = nn.Parameter(torch.zeros(1, cfg.img_tokens, width))

    def forward(self, clip_BSd: Tensor) -> Tensor:
        x = clip_BSd.float()
        if hasattr(self, "emb_pos"):
            x = x + self.emb_pos[:, : x.shape[1]]
        norm_in, linear_in, gelu, linear_out, norm_out = self.proj
        x = linear_out(gelu(linear_in(norm_in(x.to(norm_in.weight.dtype)))))
        return norm_out(x.to(norm_out.weight.dtype))


class PatchEmbedding(nn.Conv3d):
    """A convolution whose kernel is its stride, computed as one matrix product over patches."""

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        pt, ph, pw = self.kernel_size
        patches = rearrange(x_BCTHW, "b c (t pt) (h ph) (w pw) -> b (t h w) (c pt ph pw)", pt=pt, ph=ph, pw=pw)
        return F.linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias)


class WanDiT(nn.Module):
    """The transformer: noisy latent, timestep and conditions in, flow velocity ``noise - x0`` out."""

    def __init__(self, config: DitConfig):
        super().__init__()
        self.config = cfg = config
        self.patch_embedding = PatchEmbedding(cfg.in_dim, cfg.dim, cfg.patch, cfg.patch)
        self.text_embedding = nn.Sequential(
            nn.Linear(cfg.text_dim, cfg.dim), nn.GELU("tanh"), nn.Linear(cfg.dim, cfg.dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(cfg.freq_dim, cfg.dim), nn.SiLU(), nn.Linear(cfg.dim, cfg.dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(cfg.dim, cfg.dim * 6))
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.num_layers))
        self.head = Head(cfg)
        if cfg.img_dim is not None:
            self.img_emb = ImageEmbedding(cfg)

    def forward(
        self,
        x: Tensor | list[Tensor],
        t: Tensor,
        text: Tensor,
        clip: Tensor | None = None,
        walk: Walk = iter,
        text_bias: Tensor | None = None,
    ) -> Tensor | list[Tensor]:
        """Predict the velocity.

        Args:
            x: latents ``[B, in_dim, T, h, w]`` (condition channels already concatenated), or a list of
                ``[in_dim, T, h, w]`` of different sizes, which are padded to the longest and masked.
            t: timesteps in 0..1000, ``[B]``, or ``[B, L]`` with one per token.
            text: ``[B, S, text_dim]``; fewer than ``text_len`` rows are zero-padded to it before the embedding and
                attended without a mask, as the model was trained; more rows are attended as they are.
            clip: CLIP tokens ``[B, 257 or 514, img_dim]`` for models with an image branch.
            walk: yields the blocks one after another (see ``runtime/ports.py``).
            text_bias: added to the scores of the rows of ``text``, ``[B, S]``: ``log n`` makes a row weigh as much
                as n equal rows. ``text`` must then have at least ``text_len`` rows (0 in training).

        Returns:
            float32, ``[B, out_dim, T, h, w]`` or the list of such. Odd sides are padded to the patch and cut again.
        """
        samples = list(x) if isinstance(x, list) else None
        tokens_BLd, grids, sizes = self._embed(samples if samples is not None else x)
        rope, mask = self._positions(grids, tokens_BLd)
        e_Ud, e0_U6d, which_BL = self._time(t, tokens_BLd.shape[1])
        text_BSd = self.text_embedding(F.pad(text, (0, 0, 0, max(0, self.config.text_len - text.shape[1]))))
        image_BSd = self.img_emb(clip) if clip is not None else None
        bias = None if text_bias is None else text_bias[:, None, None]

        for block in walk(self.blocks):
            tokens_BLd = block(tokens_BLd, e0_U6d, which_BL, rope, text_BSd, image_BSd, mask, bias)

        patches_BLp = self.head(tokens_BLd, e_Ud, which_BL).float()
        if samples is None:
            return self._unpatch(patches_BLp, grids[0], sizes[0])
        return [self._unpatch(p[None], g, s)[0] for p, g, s in zip(patches_BLp, grids, sizes)]

    def _embed(self, x: Tensor | list[Tensor]) -> tuple[Tensor, list[tuple[int, int, int]], list[torch.Size]]:
        """Latents -> tokens ``[B, L, dim]`` (short samples zero-padded), each sample's patch grid and latent size."""
        batches = [x] if isinstance(x, Tensor) else [sample[None] for sample in x]
        sizes = [batch.shape[2:] for batch in batches]
        padded = [pad_to_patch(batch, self.config.patch) for batch in batches]
        grids = [tuple(s // p for s, p in zip(batch.shape[2:], self.config.patch)) for batch in padded]
        tokens = [self.patch_embedding(batch) for batch in padded]
        longest = max(one.shape[1] for one in tokens)
        return torch.cat([F.pad(one, (0, 0, 0, longest - one.shape[1])) for one in tokens]), grids, sizes

    def _positions(self, grids: list[tuple[int, int, int]], tokens: Tensor) -> tuple[Rope, Tensor | None]:
        """Rotary tables on the tokens' device; a key mask ``[B, 1, 1, L]`` where samples differ in length."""
        tables = [rope_table(grid, self.config.head_dim) for grid in grids]
        length = tokens.shape[1]
        if len(tables) == 1:
            return tuple(table.to(tokens.device) for table in tables[0]), None
        rope = tuple(
            torch.stack([F.pad(part, (0, 0, 0, length - part.shape[0])) for part in parts]).to(tokens.device)
            for parts in zip(*tables)
        )
        lengths = torch.tensor([cos.shape[0] for cos, _ in tables])
        if bool((lengths == length).all()):
            return rope, None
        mask = torch.arange(length) < lengths[:, None]
        return rope, mask[:, None, None].to(tokens.device)

    def _time(self, t: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Distinct timesteps -> embedding ``[U, dim]``, modulation ``[U, 6, dim]``, and which of them each token has,
        ``[B, 1 or L]``."""
        distinct_U, which = torch.unique(t[:, None] if t.ndim == 1 else t[:, :length], return_inverse=True)
        e = self.time_embedding(sinusoid(distinct_U, self.config.freq_dim))
        return e, self.time_projection(e).unflatten(-1, (6, -1)), which

    def _unpatch(self, patches: Tensor, grid: tuple[int, int, int], size: torch.Size) -> Tensor:
        """``[B, L, patch values]`` (channel fastest) -> ``[B, out_dim, T, h, w]``."""
        (f, h, w), (pt, ph, pw) = grid, self.config.patch
        out = rearrange(
            patches[:, : f * h * w],
            "b (f h w) (pt ph pw c) -> b c (f pt) (h ph) (w pw)",
            f=f, h=h, w=w, pt=pt, ph=ph, pw=pw,
        )  # fmt: skip
        return out[:, :, : size[0], : size[1], : size[2]]


def pad_to_patch(x_BCTHW: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Pad sides that are no multiple of the patch, wrapping around as native ComfyUI does."""
    missing = [-side % p for side, p in zip(x_BCTHW.shape[2:], patch)]
    if not any(missing):
        return x_BCTHW
    return F.pad(x_BCTHW, (0, missing[2], 0, missing[1], 0, missing[0]), mode="circular")
