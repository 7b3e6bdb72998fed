"""The CLIP visual tower of Wan 2.1 image models (open-clip XLM-RoBERTa-large ViT-H/14), up to its last but one block.

Source: Wan-Video/Wan2.1, ``wan/modules/clip.py``; parameter names are the official ones below ``visual.``. The last
block, the post norm and the projection have no part in what Wan reads and are not built.
Shape letters: B batch, H/W pixels, L tokens (class token and patches), d width.

Precision: linear layers compute in the dtype they were given; norms and the residual stream are float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configs import ClipVisionConfig
from ..runtime.attention import attention
from .layers import Walk

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Statistics of CLIP's training pictures, RGB in 0..1 (openai/CLIP, ``clip/clip.py``)."""


class LayerNorm(nn.LayerNorm):
    """Layer norm in float32, whatever the dtype of its input and parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class Attention(nn.Module):
    """Self-attention; the rows of ``to_qkv`` are queries, keys and values, a third each."""

    def __init__(self, cfg: ClipVisionConfig):
        super().__init__()
        self.heads = cfg.num_heads
        self.to_qkv = nn.Linear(cfg.dim, cfg.dim * 3)
        self.proj = nn.Linear(cfg.dim, cfg.dim)

    def forward(self, x_BLd: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x_BLd).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.proj(attention(q, k, v).flatten(2))


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, cfg: ClipVisionConfig):
        super().__init__()
        self.norm1 = LayerNorm(cfg.dim, eps=cfg.eps)
        self.attn = Attention(cfg)
        self.norm2 = LayerNorm(cfg.dim, eps=cfg.eps)
        self.mlp = nn.Sequential(nn.Linear(cfg.dim, cfg.mlp_dim), nn.GELU(), nn.Linear(cfg.mlp_dim, cfg.dim))

    def forward(self, x_BLd: Tensor) -> Tensor:
        x_BLd = x_BLd + self.attn(self.norm1(x_BLd))
        return x_BLd + self.mlp(self.norm2(x_BLd))


class ClipVision(nn.Module):
    """Pictures in, penultimate tokens out."""

    walked = "transformer"
    """The list of blocks that ``walk`` is given."""

    def __init__(self, config: ClipVisionConfig):
        super().__init__()
        self.config = cfg = config
        self.patch_embedding = nn.Conv2d(3, cfg.dim, cfg.patch_size, cfg.patch_size, bias=False)
        self.cls_embedding = nn.Parameter(torch.zeros(1, 1, cfg.dim))
        self.pos_embedding = nn.Parameter(torch.zeros(1, cfg.num_tokens, cfg.dim))
        self.pre_norm = LayerNorm(cfg.dim, eps=cfg.eps)
        self.transformer = nn.ModuleList(Block(cfg) for _ in range(cfg.num_layers - 1))

    def forward(self, pixels_B3HW: Tensor, walk: Walk = iter) -> Tensor:
        """Encode.

        Args:
            pixels_B3HW: square pictures of ``config.image_size``, as :func:`preprocess` makes them.
            walk: yields the blocks one after another (see ``runtime/ports.py``).

        Returns:
            ``[B, num_tokens, dim]``, float32, class token first; not normalised.
        """
        patches_BdHW = self.patch_embedding(pixels_B3HW.to(self.patch_embedding.weight.dtype))
        patches_BLd = patches_BdHW.flatten(2).transpose(1, 2).float()
        cls_B1d = self.cls_embedding.float().expand(patches_BLd.shape[0], -1, -1)
        x_BLd = self.pre_norm(torch.cat([cls_B1d, patches_BLd], dim=1) + self.pos_embedding.float())
        for block in walk(self.transformer):
            x_BLd = block(x_BLd)
        return x_BLd


def preprocess(images_B3HW: Tensor, size: int) -> Tensor:
    """Pictures as the official code prepares them: squeezed to a square, bicubic without antialiasing, normalised.

    Args:
        images_B3HW: RGB in -1..1, any size.
        size: side of the square in pixels (224 for ViT-H).
    """
    square = F.interpolate(images_B3HW, size=(size, size), mode="bicubic", align_corners=False)
    return _normalise(square * 0.5 + 0.5)


def preprocess_native(images_BHWC: Tensor, size: int, crop: bool) -> Tensor:
    """Pictures as native ComfyUI prepares them: bicubic with antialiasing, rounded to 8 bits, normalised.

    Source: Comfy-Org/ComfyUI, ``comfy/clip_model.py``.

    Args:
        images_BHWC: RGB in 0..1, any size; further channels are dropped.
        size: side of the square in pixels.
        crop: scale the shorter side to ``size`` and cut the centre, instead of squeezing.

    Returns:
        ``[B, 3, size, size]``.
    """
    images = images_BHWC[..., :3].movedim(-1, 1)
    height, width = images.shape[2:]
    if (height, width) != (size, size):
        scale = size / min(height, width)
        target = (round(scale * height), round(scale * width)) if crop else (size, size)
        images = F.interpolate(images, size=target, mode="bicubic", antialias=True)
        top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
        images = images[:, :, top : top + size, left : left + size]
    return _normalise((images * 255).clamp(0, 255).round() / 255)


def _normalise(images_B3HW: Tensor) -> Tensor:
    mean, std = (images_B3HW.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images_B3HW - mean) / std
