"""The Wan diffusion transformer: one class for every base variant, its numbers from :class:`DitConfig`.

Source: Wan-Video/Wan2.1 and Wan-Video/Wan2.2, ``wan/modules/model.py``; parameter names are the official ones.
Shape letters: B batch, L tokens, S context tokens, H heads, D head dim, C latent channels, T latent frames, h/w
latent height and width.

Precision: linear layers compute in the dtype they were given; modulation, norm statistics and the residual stream
follow the float32 parameters (see ``wan_core/weights/precision.py``), by ordinary type promotion.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import ref

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..configs import DitConfig
from ..runtime.pointwise import norm_modulate
from .control import CameraAdapter, ReferenceEmbedding
from .dit_block import Block, Negative, Piece, Rope, TextMemory, runs
from .layers import Walk
from .nag import NegativeText
from .rope import rope_on, rope_table, sinusoid


class Head(nn.Module):
    """The last modulated norm and the projection to patches."""

    def __init__(self, cfg: DitConfig):
        super().__init__()
        self.eps = cfg.eps
        self.modulation = nn.Parameter(torch.zeros(1, 2, cfg.dim))
        pt, ph, pw = cfg.patch
        self.head = nn.Linear(cfg.dim, cfg.out_dim * pt * ph * pw)

    def forward(self, x_BLd: Tensor, time_Ud: Tensor, which_BL: Tensor, chunk: int | None = None) -> Tensor:
        shift, scale = (self.modulation + time_Ud.unsqueeze(1)).transpose(0, 1).contiguous()
        pieces = [Piece(x_BLd, which_BL, (), where) for where in runs(x_BLd.shape[1], chunk)]
        made = [
            self.head(norm_modulate(piece.x, shift, scale, piece.which, self.eps, torch.float32)) for piece in pieces
        ]
        return made[0] if len(made) == 1 else torch.cat(made, dim=1)


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

    walked = "blocks"
    """The list of blocks that ``walk`` is given."""

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
        if cfg.ref_dim is not None:
            self.ref_conv = ReferenceEmbedding(cfg)
        if cfg.camera_dim is not None:
            self.control_adapter = CameraAdapter(cfg)
        self._timed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._read: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def forward(
        self,
        x: Tensor | list[Tensor],
        t: Tensor,
        text: Tensor,
        clip: Tensor | None = None,
        walk: Walk = iter,
        text_bias: Tensor | None = None,
        chunk: int | None = None,
        reference: Tensor | None = None,
        camera: Tensor | None = None,
        vace: Sequence["VaceControl"] = (),
        skip: frozenset[int] = frozenset(),
        negative: NegativeText | None = None,
        memory: TextMemory | None = None,
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
                as n equal rows. ``text`` is not padded then.
            chunk: tokens that are worked on at once where the result does not depend on it but for rounding; None: all.
            reference: latent of a reference picture ``[B, ref_dim, h, w]``; one ``x`` of one size then.
            camera: camera embedding ``[B, 24, T, H, W]`` in pixels, on any device; one ``x`` of one size then.
            vace: contexts for a model with VACE blocks.
            skip: numbers of blocks that are left out.
            negative: a negative prompt that cross-attention is guided away from.
            memory: what blocks have made of this ``text`` before, and where they leave it; None: nothing is kept.

        Returns:
            float32, ``[B, out_dim, T, h, w]`` or the list of such. Odd sides are padded to the patch and cut again.
        """
        inputs = Inputs(
            x=x, t=t, text=text, clip=clip, text_bias=text_bias, reference=reference, camera=camera, vace=vace,
            skip=skip, negative=negative, memory=memory,
        )  # fmt: skip
        return self.together([inputs], walk, chunk)[0]

    def together(
        self, inputs: Sequence["Inputs"], walk: Walk = iter, chunk: int | None = None
    ) -> list[Tensor | list[Tensor]]:
        """Several predictions, each block doing all of them before the next: its weights are needed once.

        Every one is computed by itself, to the same bits as :meth:`forward`.
        """
        passes = [self._begin(one) for one in inputs]
        numbers = {block: number for number, block in enumerate(self.blocks)}
        for block in walk(self.in_order()):
            for one in passes:
                if numbers.get(block) in one.skip:
                    self._leave_out(one)
                else:
                    self._advance(block, one, chunk)
        return [self._finish(one, chunk) for one in passes]

    def in_order(self) -> Sequence[nn.Module]:
        """The blocks as they are walked."""
        return self.blocks

    def _leave_out(self, one: "_Pass") -> None:
        """What else goes with a block that a prediction does not pass through."""

    def _advance(self, block: nn.Module, one: "_Pass", chunk: int | None) -> None:
        """Take a prediction through a block."""
        one.tokens_BLd = one.through(block, one.tokens_BLd, chunk)

    def _begin(self, inputs: "Inputs") -> "_Pass":
        """Everything before the blocks."""
        x, text, clip = inputs.x, inputs.text, inputs.clip
        tokens_BLd, grids, sizes = self._embed(x)
        e_Ud, e0_U6d, which_BL = self._time(inputs.t, tokens_BLd.shape[1])
        if inputs.camera is not None:
            tokens_BLd = self.control_adapter.add(tokens_BLd, inputs.camera)
        spans, ahead = grids, 0
        if inputs.reference is not None:
            tokens_BLd, which_BL, ahead = self._with_reference(inputs.reference, tokens_BLd, which_BL)
            spans = [(frames + 1, height, width) for frames, height, width in grids]
        rope, mask = self._positions(spans, tokens_BLd)
        return _Pass(
            tokens_BLd=tokens_BLd,
            e_Ud=e_Ud,
            e0_U6d=e0_U6d,
            which_BL=which_BL,
            rope=rope,
            text_BSd=self._text(text, inputs.text_bias),
            image_BSd=self.img_emb(clip) if clip is not None else None,
            mask=mask,
            bias=_on_scores(inputs.text_bias),
            grids=grids,
            sizes=sizes,
            is_list=isinstance(x, list),
            ahead=ahead,
            skip=inputs.skip,
            negative=None if inputs.negative is None else self._negative(inputs.negative),
            memory=inputs.memory,
        )

    def _text(self, text_BSD: Tensor, text_bias: Tensor | None) -> Tensor:
        """The prompt's rows, zero-padded unless a bias says what they weigh, in the transformer's width. Every step of
        a run asks with the same tensor: the answer is kept as long as it lives and the weights are the same."""
        missing = 0 if text_bias is not None else max(0, self.config.text_len - text_BSD.shape[1])
        kept: _Kept | None = self._read.get(text_BSD)
        state = missing, _version(text_BSD)
        if kept is not None and kept.state == state and kept.is_of(self.text_embedding):
            return kept.result
        result = self.text_embedding(F.pad(text_BSD, (0, 0, 0, missing)) if missing else text_BSD)
        if not torch.is_grad_enabled():
            self._read[text_BSD] = _Kept(self.text_embedding, state, result)
        return result

    def _negative(self, given: NegativeText) -> Negative:
        text_BSd = self._text(given.text, given.text_bias)
        return Negative(text_BSd=text_BSd, bias=_on_scores(given.text_bias), nag=given.nag)

    def _with_reference(self, latent_BChw: Tensor, tokens_BLd: Tensor, which_BL: Tensor) -> tuple[Tensor, Tensor, int]:
        """Tokens with those of the reference in front, as a frame at time 0 with the clip's own timestep."""
        first = self.ref_conv(pad_to_patch(latent_BChw.unsqueeze(2), self.config.patch).squeeze(2))
        if which_BL.shape[1] > 1:
            which_BL = torch.cat((which_BL[:, -1:].expand(-1, first.shape[1]), which_BL), dim=1)
        return torch.cat((first.to(tokens_BLd.dtype), tokens_BLd), dim=1), which_BL, first.shape[1]

    def _finish(self, done: "_Pass", chunk: int | None) -> Tensor | list[Tensor]:
        """Everything after them."""
        patches_BLp = self.head(done.tokens_BLd, done.e_Ud, done.which_BL, chunk).float()[:, done.ahead :]
        if not done.is_list:
            return self._unpatch(patches_BLp, done.grids[0], done.sizes[0])
        return [self._unpatch(p[None], g, s)[0] for p, g, s in zip(patches_BLp, done.grids, done.sizes)]

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
        length = tokens.shape[1]
        if len(grids) == 1:
            return rope_on(grids[0], self.config.head_dim, tokens.device), None
        tables = [rope_table(grid, self.config.head_dim) for grid in grids]
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
        if t in self._timed:
            return self._timed[t]  # both sides of guidance are asked with one tensor
        distinct_U, which = torch.unique(t[:, None] if t.ndim == 1 else t[:, :length], return_inverse=True)
        e = self.time_embedding(sinusoid(distinct_U, self.config.freq_dim))
        made = e, self.time_projection(e).unflatten(-1, (6, -1)), which
        if not torch.is_grad_enabled():
            self._timed[t] = made  # as long as the tensor lives
        return made

    def _unpatch(self, patches: Tensor, grid: tuple[int, int, int], size: torch.Size) -> Tensor:
        """``[B, L, patch values]`` (channel fastest) -> ``[B, out_dim, T, h, w]``."""
        (f, h, w), (pt, ph, pw) = grid, self.config.patch
        out = rearrange(
            patches[:, : f * h * w],
            "b (f h w) (pt ph pw c) -> b c (f pt) (h ph) (w pw)",
            f=f, h=h, w=w, pt=pt, ph=ph, pw=pw,
        )  # fmt: skip
        return out[:, :, : size[0], : size[1], : size[2]]


class _Kept:
    """What layers made of a tensor, and the state that both were in: the weights may be others by now, or changed where
    they are, or wear other LoRAs."""

    def __init__(self, layers: nn.Module, state: tuple, result: Tensor):
        self.state, self.result = state, result
        self._weights = [(ref(weight), _version(weight)) for weight in layers.parameters()]
        self._worn = [[ref(one) for one in getattr(layer, "worn", ())] for layer in layers]

    def is_of(self, layers: nn.Module) -> bool:
        if torch.is_grad_enabled():
            return False
        weights, worn = list(layers.parameters()), [getattr(layer, "worn", ()) for layer in layers]
        same = [len(was) == len(now) for was, now in zip(self._worn, worn, strict=True)]
        return (
            len(weights) == len(self._weights)
            and all(was() is now and version == _version(now) for (was, version), now in zip(self._weights, weights))
            and all(same)
            and all(was() is now for old, new in zip(self._worn, worn) for was, now in zip(old, new))
        )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What :meth:`WanDiT.forward` takes, for :meth:`WanDiT.together`."""

    x: Tensor | list[Tensor]
    t: Tensor
    text: Tensor
    clip: Tensor | None = None
    text_bias: Tensor | None = None
    reference: Tensor | None = None
    camera: Tensor | None = None
    vace: Sequence["VaceControl"] = ()
    skip: frozenset[int] = frozenset()
    negative: NegativeText | None = None
    memory: TextMemory | None = None


@dataclass(frozen=True, kw_only=True)
class VaceControl:
    """A VACE context ``[1 or B, 96, T, h, w]`` of the latent's size, and how strong it is."""

    context: Tensor
    strength: float = 1.0


@dataclass(kw_only=True)
class _Pass:
    """One prediction on its way through the blocks."""

    tokens_BLd: Tensor
    e_Ud: Tensor
    e0_U6d: Tensor
    which_BL: Tensor
    rope: Rope
    text_BSd: Tensor
    image_BSd: Tensor | None
    mask: Tensor | None
    bias: Tensor | None
    grids: list[tuple[int, int, int]]
    sizes: list[torch.Size]
    is_list: bool
    ahead: int = 0
    """Tokens in front that are no part of the clip."""
    vace: object | None = None
    skip: frozenset[int] = frozenset()
    negative: Negative | None = None
    memory: TextMemory | None = None

    def through(self, block: nn.Module, x_BLd: Tensor, chunk: int | None) -> Tensor:
        """``x_BLd`` after a block, in the company of this prediction's text, time and positions."""
        cut = () if chunk is None else (chunk,)
        more = {} if self.negative is None else {"negative": self.negative}
        more |= {} if self.memory is None else {"text_memory": self.memory}
        return block(
            x_BLd, self.e0_U6d, self.which_BL, self.rope, self.text_BSd, self.image_BSd, self.mask, self.bias, *cut,
            **more,
        )  # fmt: skip


def _version(tensor: Tensor) -> int | None:
    """Counts changes of a tensor in place; inference mode does not, and there nothing changes them so."""
    return None if tensor.is_inference() else tensor._version


def _on_scores(bias_BS: Tensor | None) -> Tensor | None:
    """A bias of rows as it is added to scores, ``[B, 1, 1, S]``."""
    return None if bias_BS is None else bias_BS[:, None, None]


def pad_to_patch(x_BCTHW: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Pad sides that are no multiple of the patch, wrapping around as native ComfyUI does."""
    missing = [-side % p for side, p in zip(x_BCTHW.shape[2:], patch)]
    if not any(missing):
        return x_BCTHW
    return F.pad(x_BCTHW, (0, missing[2], 0, missing[1], 0, missing[0]), mode="circular")
