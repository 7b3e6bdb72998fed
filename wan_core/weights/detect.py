"""What a file is, from its header alone: kind, naming, prefix, network shape and the variants that it can be."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..configs import DitConfig
from ..errors import ModelFileError
from ..variants import VARIANTS, WanVariant
from . import keymaps, refusals, shapes
from .formats import COMPANIONS, Storage, storage
from .header import TensorInfo
from .shapes import Config

__all__ = ["Detected", "Storage", "detect", "official_names", "storage"]

# Tensors (without prefix) that together tell a kind and a naming.
MARKERS: dict[tuple[str, str], tuple[str, ...]] = {
    ("dit", "official"): ("blocks.0.self_attn.norm_q.weight", "blocks.0.modulation"),
    ("dit", "diffusers"): ("blocks.0.attn1.norm_q.weight", "blocks.0.scale_shift_table"),
    ("umt5", "official"): ("blocks.0.pos_embedding.embedding.weight",),
    ("umt5", "hf"): (
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
    ),
    ("clip_vision", "official"): ("transformer.0.attn.to_qkv.weight",),
    ("clip_vision", "hf"): ("vision_model.embeddings.class_embedding",),
    ("clip_vision", "open_clip"): ("transformer.resblocks.0.attn.in_proj_weight", "class_embedding"),
    ("vae", "official"): ("decoder.middle.0.residual.0.gamma",),
    ("vae", "diffusers"): ("decoder.mid_block.resnets.0.norm1.gamma",),
    ("tae", "official"): ("decoder.7.conv.weight", "decoder.22.bias"),
}
CONFIGS = {
    "dit": shapes.dit_config,
    "umt5": shapes.umt5_config,
    "clip_vision": shapes.clip_config,
    "vae": shapes.vae_config,
    "tae": shapes.tae_config,
}
TITLES = {
    "dit": "Wan model",
    "umt5": "umT5 text encoder",
    "clip_vision": "CLIP vision tower",
    "vae": "Wan VAE",
    "tae": "tiny VAE",
}


@dataclass(frozen=True, kw_only=True)
class Detected:
    """What was found. ``prefix`` stands before every name; ``variants`` is empty for anything but a ``dit``."""

    kind: str
    naming: str
    prefix: str
    config: Config
    variants: tuple[WanVariant, ...] = ()

    @property
    def slot(self) -> str:
        """The kind that it stands in for: a tiny VAE is loaded and computes where a VAE does."""
        return "vae" if self.kind == "tae" else self.kind


def detect(
    header: Mapping[str, TensorInfo],
    metadata: Mapping[str, str],
    name: str = "the file",
    kind: str | None = None,
) -> Detected:
    """Identify a model file.

    Args:
        header: tensor name -> type and shape.
        metadata: the text entries of the file.
        name: what messages call the file.
        kind: look for this kind first (files that hold several, all-in-one checkpoints).

    Raises:
        ModelFileError: it is something else, a kind or a quantisation that is not supported, or incomplete; the
            message says what it seems to be and what to use.
    """
    found = _kind(header, kind)
    if found is None:
        stripped = {_strip(one, keymaps.PREFIXES["dit"]) for one in header}
        refusals.refuse_not_yet(stripped, name)
        raise refusals.foreign_error(header, name)
    kind, naming, prefix = found
    inside = [one.removeprefix(prefix) for one in header if one.startswith(prefix)]
    if kind == "dit":
        refusals.refuse_not_yet(inside, name)
    try:
        storage({prefix + one: header[prefix + one] for one in inside}, metadata)
        sizes = official_shapes(header, kind, naming, prefix)
        config = shapes.check_sane(CONFIGS[kind](sizes, shapes.file_config(metadata)))
        variants = _variants(config) if isinstance(config, DitConfig) else ()
    except ModelFileError as error:
        raise ModelFileError(f"{name} ({TITLES[kind]}): {error}") from error
    return Detected(kind=kind, naming=naming, prefix=prefix, config=config, variants=variants)


def official_names(
    header: Mapping[str, TensorInfo], kind: str, naming: str, prefix: str
) -> tuple[dict[str, keymaps.Source], list[str]]:
    """our name -> :class:`~.keymaps.Source` with full names of the file; and the full names left over."""
    inside = [name.removeprefix(prefix) for name in header if name.startswith(prefix)]
    sources, unknown = keymaps.to_official(inside, kind, naming)
    full = {
        ours: keymaps.Source(names=tuple(prefix + name for name in source.names), op=source.op)
        for ours, source in sources.items()
    }
    return full, [prefix + name for name in unknown] + [name for name in header if not name.startswith(prefix)]


def official_shapes(
    header: Mapping[str, TensorInfo], kind: str, naming: str, prefix: str
) -> dict[str, tuple[int, ...]]:
    """our name -> shape after renaming and joining; scales and other companions of weights left out."""
    sources, _ = official_names(header, kind, naming, prefix)
    return {
        ours: joined_shape(ours, source, header)
        for ours, source in sources.items()
        if ours.rsplit(".", 1)[-1] not in COMPANIONS
    }


def joined_shape(ours: str, source: keymaps.Source, header: Mapping[str, TensorInfo]) -> tuple[int, ...]:
    """Shape that ``source`` gives; nothing is read."""
    parts = tuple(header[name].shape for name in source.names)
    try:
        return keymaps.OPS[source.op].shape(parts)
    except ValueError as error:
        raise ModelFileError(
            f"{ours!r} cannot be made of {', '.join(source.names)} with shapes {[list(part) for part in parts]}."
        ) from error


def _kind(header: Mapping[str, TensorInfo], first: str | None) -> tuple[str, str, str] | None:
    """(kind, naming, prefix) of the first entry of the marker table that fits."""
    entries = sorted(MARKERS.items(), key=lambda item: item[0][0] != first)
    for (kind, naming), markers in entries:
        for prefix in keymaps.PREFIXES[kind]:
            if all(prefix + marker in header for marker in markers):
                return kind, naming, prefix
    return None


def _strip(name: str, prefixes: tuple[str, ...]) -> str:
    prefix = next((one for one in sorted(prefixes, key=len, reverse=True) if one and name.startswith(one)), "")
    return name.removeprefix(prefix)


def _inputs(config: DitConfig) -> tuple[int | bool | None, ...]:
    """What decides which features a model has."""
    image = config.img_dim is not None, config.img_tokens
    return config.in_dim, config.out_dim, *image, config.ref_dim, config.camera_dim, config.vace_in_dim


def _variants(config: DitConfig) -> tuple[WanVariant, ...]:
    """Rows that the file can be: same inputs, and same size if any row has it; else resized rows."""
    rows = [row for row in VARIANTS if _inputs(row.dit) == _inputs(config)]
    exact = tuple(row for row in rows if row.dit == config)
    if exact:
        return exact
    if not rows:
        raise ModelFileError(_unknown_inputs(config))
    return tuple(replace(row, dit=config, title=f"{row.title} (custom size)") for row in rows if not row.exact)


def _unknown_inputs(config: DitConfig) -> str:
    known = {
        (16, 16): "T2V", (36, 16): "I2V and FLF2V", (48, 48): "TI2V", (48, 16): "Fun Control 2.1 (with images)",
        (52, 16): "Fun Control 2.2 (with a reference)", (32, 16): "Fun Camera 2.1 (with images and a camera)",
        (100, 48): "Fun InP 5B", (148, 48): "Fun Control 5B (with a reference)",
    }  # fmt: skip
    parts = {"an image": config.img_dim, "a reference": config.ref_dim, "a camera": config.camera_dim}
    has = ", ".join(f"{'with' if value is not None else 'without'} {name} branch" for name, value in parts.items())
    vace = ""
    if config.vace_in_dim is not None:
        vace = f" It has VACE blocks for a VACE context of {config.vace_in_dim} channels; known are 96 on a T2V model."
    listed = ", ".join(f"{title} {a} -> {b}" for (a, b), title in known.items())
    return (
        f"it takes {config.in_dim} and gives {config.out_dim} channels, {has}; known are {listed}.{vace} Choose one of "
        "those."
    )
