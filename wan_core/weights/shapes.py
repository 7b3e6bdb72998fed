"""Tensor shapes -> the numbers of a network. One function a kind, all on official names."""

import json
import math
import re
from collections.abc import Iterable, Mapping

from ..configs import ClipVisionConfig, DitConfig, TaeConfig, Umt5Config, VaeConfig
from ..errors import ModelFileError

Shapes = Mapping[str, tuple[int, ...]]
Config = DitConfig | Umt5Config | ClipVisionConfig | VaeConfig | TaeConfig
HEAD_DIM = 128
MAX_LAYERS = 512
MAX_SIDE = 2**20


def file_config(metadata: Mapping[str, str]) -> dict[str, object]:
    """The ``config`` entry of the metadata: its ``transformer`` table (as ComfyUI reads it), or the entry itself."""
    text = metadata.get("config")
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    inner = found.get("transformer")
    return inner if isinstance(inner, dict) else found


def dit_config(shapes: Shapes, said: Mapping[str, object]) -> DitConfig:
    """Everything but the number of heads stands in the shapes; heads are 128 wide unless the metadata says more."""
    dim, in_dim, *patch = _shape(shapes, "patch_embedding.weight", 5)
    heads = _said(said, "num_heads") or _said(said, "num_attention_heads")
    if heads is None and dim % HEAD_DIM == 0:
        heads = dim // HEAD_DIM
    if not heads or dim % heads:
        raise ModelFileError(
            f"the number of attention heads cannot be told: width {dim} and "
            f"{'no num_heads in the metadata' if not heads else f'{heads} heads said by the metadata'}. Wan models "
            f'have heads of {HEAD_DIM}; other files carry {{"transformer": {{"num_heads": ...}}}} as "config" in '
            "their metadata."
        )
    config = DitConfig(
        dim=dim,
        ffn_dim=_shape(shapes, "blocks.0.ffn.0.weight", 2)[0],
        num_heads=heads,
        num_layers=_count(shapes, "blocks"),
        in_dim=in_dim,
        out_dim=_shape(shapes, "head.head.weight", 2)[0] // math.prod(patch),
        text_dim=_shape(shapes, "text_embedding.0.weight", 2)[1],
        freq_dim=_shape(shapes, "time_embedding.0.weight", 2)[1],
        patch=tuple(patch),
        img_dim=_shape(shapes, "img_emb.proj.0.weight", 1)[0] if _has(shapes, "img_emb") else None,
        img_tokens=_shape(shapes, "img_emb.emb_pos", 3)[1] if "img_emb.emb_pos" in shapes else None,
        ref_dim=_shape(shapes, "ref_conv.weight", 4)[1] if _has(shapes, "ref_conv") else None,
        camera_dim=_camera_dim(shapes) if _has(shapes, "control_adapter") else None,
        **_vace(shapes),
    )
    for name in ("text_dim", "freq_dim", "dim", "num_layers"):
        if _said(said, name) not in (None, getattr(config, name)):
            raise ModelFileError(
                f"the metadata says {name} {said[name]}, the tensors say {getattr(config, name)}. Download it again."
            )
    return config


def _camera_dim(shapes: Shapes) -> int:
    """Channels that the camera adapter takes: 24 times a whole square of pixels."""
    width = _shape(shapes, "control_adapter.conv.weight", 4)[1]
    if width % 24 or math.isqrt(width // 24) ** 2 != width // 24:
        raise ModelFileError(
            f"its camera adapter takes {width} channels; known are 1536 (folded by 8) and 6144 (by 16). Use a Fun "
            "Camera model of Wan 2.1 or 2.2."
        )
    return width


def _vace(shapes: Shapes) -> dict[str, object]:
    """VACE blocks are spread evenly over the main blocks, as ComfyUI reads them: their number says which."""
    if not (_has(shapes, "vace_blocks") or _has(shapes, "vace_patch_embedding")):
        return {}
    blocks, count = _count(shapes, "blocks"), _count(shapes, "vace_blocks")
    if count > blocks:
        raise ModelFileError(f"it has {count} VACE blocks for {blocks} blocks. Download it again.")
    step = blocks // count
    return {
        "vace_layers": tuple(range(0, count * step, step)),
        "vace_in_dim": _shape(shapes, "vace_patch_embedding.weight", 5)[1],
    }


def umt5_config(shapes: Shapes, said: Mapping[str, object]) -> Umt5Config:
    """All of it stands in the shapes. A relative bias in the first layer only is T5, not umT5."""
    vocab, dim = _shape(shapes, "token_embedding.weight", 2)
    layers = _count(shapes, "blocks")
    if vocab == 32128 or (layers > 1 and "blocks.1.pos_embedding.embedding.weight" not in shapes):
        raise ModelFileError(
            f"this is a T5 text encoder (vocabulary {vocab}, one relative position table for all layers), not umT5. "
            "Use umt5_xxl_fp8_e4m3fn_scaled.safetensors or umt5_xxl_fp16.safetensors."
        )
    buckets, heads = _shape(shapes, "blocks.0.pos_embedding.embedding.weight", 2)
    return Umt5Config(
        vocab=vocab,
        dim=dim,
        dim_attn=_shape(shapes, "blocks.0.attn.q.weight", 2)[0],
        dim_ffn=_shape(shapes, "blocks.0.ffn.gate.0.weight", 2)[0],
        num_heads=heads,
        num_layers=layers,
        num_buckets=buckets,
    )


def check_sane(config: Config) -> Config:
    """Refuse numbers that no network has, before one is built of them."""
    wrong = {name: value for name, value in vars(config).items() if type(value) is int and not 0 < value <= MAX_SIDE}
    if wrong:
        raise ModelFileError(f"its tensors make a network of impossible size ({wrong}). Download it again.")
    heads, width = getattr(config, "num_heads", 1), getattr(config, "dim_attn", getattr(config, "dim", 1))
    if width % heads:
        raise ModelFileError(f"a width of {width} cannot be shared by {heads} attention heads. Download it again.")
    return config


_OTHER_CLIPS = {(1024, 24): "CLIP ViT-L", (1664, 48): "CLIP ViT-bigG", (1152, 27): "SigLIP", (768, 12): "CLIP ViT-B"}


def clip_config(shapes: Shapes, said: Mapping[str, object]) -> ClipVisionConfig:
    """Shapes do not tell the number of heads: ViT-H (1280 wide) has heads of 80; other files say it in their
    metadata (``num_heads``), else 16 wide is assumed, as in the tiny files of the tests."""
    dim, _, patch, _ = _shape(shapes, "patch_embedding.weight", 4)
    layers = _count(shapes, "transformer")
    if (dim, layers) in _OTHER_CLIPS:
        raise ModelFileError(
            f"this is {_OTHER_CLIPS[dim, layers]} ({layers} layers of width {dim}); Wan image models were trained "
            "with CLIP ViT-H (clip_vision_h.safetensors)."
        )
    side = math.isqrt(max(_shape(shapes, "pos_embedding", 3)[1] - 1, 0))
    return ClipVisionConfig(
        image_size=side * patch,
        patch_size=patch,
        dim=dim,
        mlp_dim=_shape(shapes, "transformer.0.mlp.0.weight", 2)[0],
        out_dim=shapes["head"][-1] if "head" in shapes else ClipVisionConfig.out_dim,
        num_heads=_said(said, "num_heads") or dim // (80 if dim == 1280 else 16) or 1,
        num_layers=layers,
    )


def vae_config(shapes: Shapes, said: Mapping[str, object]) -> VaeConfig:
    """Walks the encoder: residual blocks up to each resampler are one level. Nested groups are VAE 2.2."""
    dim, channels = _shape(shapes, "encoder.conv1.weight", 5)[:2]
    nested = any(name.startswith("encoder.downsamples.0.downsamples.") for name in shapes)
    levels = _nested_levels(shapes) if nested else _flat_levels(shapes)
    mult = tuple(width // dim for width, _, _ in levels)
    if not levels or not all(mult) or channels % 3 or math.isqrt(channels // 3) ** 2 != channels // 3:
        raise ModelFileError(
            f"its encoder is built in an unknown way ({channels} input channels, level widths "
            f"{[width for width, _, _ in levels]}). Use the Wan 2.1 or the Wan 2.2 VAE."
        )
    return VaeConfig(
        dim=dim,
        dec_dim=_shape(shapes, "decoder.head.2.weight", 5)[1] // mult[0],
        z_dim=_shape(shapes, "conv2.weight", 5)[0],
        dim_mult=mult,
        num_res_blocks=levels[0][1],
        temporal_downsample=tuple(temporal for _, _, temporal in levels[:-1]),
        patch=math.isqrt(channels // 3),
        shortcuts=nested,
    )


_TINY = "taew2_1 or lighttaew2_1, for the 5B model taew2_2 or lighttaew2_2"


def tae_config(shapes: Shapes, said: Mapping[str, object]) -> TaeConfig:
    """Tiny autoencoders of other models have the same layers: latent channels and pixel channels tell them apart."""
    if "decoder.1.conv.0.weight" in shapes:
        raise ModelFileError(
            f"this is a 'super' decoder, which is built in another way and not supported. Use {_TINY}."
        )
    inputs = [_shape(shapes, f"decoder.{i}.weight", 4) for i in (1, 8, 14, 20, 22)]
    z_dim, channels = inputs[0][1], inputs[-1][0]
    if (z_dim, channels) not in ((16, 3), (48, 12)):
        raise ModelFileError(
            f"it takes {z_dim} and gives {channels} channels; those of Wan 2.1 take 16 and give 3, of Wan 2.2 48 and "
            f"12. Use {_TINY}."
        )
    widths = tuple(shape[1] for shape in inputs[1:])
    return TaeConfig(z_dim=z_dim, widths=widths, patch=math.isqrt(channels // 3))


Level = tuple[int, int, bool]  # width, residual blocks, halves the time axis


def _flat_levels(shapes: Shapes) -> list[Level]:
    parts = [f"encoder.downsamples.{i}" for i in range(_count(shapes, "encoder.downsamples"))]
    levels: list[Level] = []
    begin = 0
    for i, part in enumerate(parts):
        if f"{part}.resample.1.weight" in shapes or i == len(parts) - 1:
            end = i if f"{part}.resample.1.weight" in shapes else i + 1
            levels.append((_width(shapes, parts[begin:end]), end - begin, f"{part}.time_conv.weight" in shapes))
            begin = i + 1
    return levels


def _nested_levels(shapes: Shapes) -> list[Level]:
    levels: list[Level] = []
    for n in range(_count(shapes, "encoder.downsamples")):
        group = f"encoder.downsamples.{n}.downsamples"
        parts = [f"{group}.{i}" for i in range(_count(shapes, group))]
        blocks = [part for part in parts if f"{part}.residual.6.weight" in shapes]
        temporal = any(f"{part}.time_conv.weight" in shapes for part in parts)
        levels.append((_width(shapes, blocks), len(blocks), temporal))
    return levels


def _width(shapes: Shapes, blocks: list[str]) -> int:
    return _shape(shapes, f"{blocks[-1]}.residual.6.weight", 5)[0] if blocks else 0


def _shape(shapes: Shapes, name: str, dims: int) -> tuple[int, ...]:
    """Shape of a tensor that every model of the kind has."""
    if name not in shapes:
        raise ModelFileError(f"the tensor {name!r} is missing; the file is incomplete. Download it again.")
    if len(shapes[name]) != dims or 0 in shapes[name]:
        raise ModelFileError(f"{name!r} has shape {list(shapes[name])} where {dims} dimensions belong.")
    return shapes[name]


def _has(shapes: Iterable[str], first: str) -> bool:
    return any(name.startswith(f"{first}.") for name in shapes)


def _count(shapes: Iterable[str], group: str) -> int:
    """Number of members ``group.0``, ``group.1`` ... : the highest index and one."""
    pattern = re.compile(rf"{re.escape(group)}\.(\d{{1,6}})\.")
    count = 1 + max((int(m.group(1)) for name in shapes if (m := pattern.match(name))), default=-1)
    if not 0 < count <= MAX_LAYERS:
        raise ModelFileError(f"it has {count} parts '{group}.N'; models have 1 to {MAX_LAYERS}. Download it again.")
    return count


def _said(said: Mapping[str, object], name: str) -> int | None:
    """A positive whole number from the metadata, or None."""
    value = said.get(name)
    return value if type(value) is int and value > 0 else None
