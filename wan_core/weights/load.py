"""Weights into a network: mapped by table, checked against shapes, assigned, and every tensor accounted for.

The network is built on the meta device; linear weights stay as the file stores them (mapped pages of the file where
the checkpoint maps) and are decoded at use, everything else is converted once.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..errors import ModelFileError, first_few
from ..runtime.linear import StoredLinear, storage_linears
from . import keymaps
from .checkpoint import Checkpoint
from .detect import TITLES, Detected, joined_shape, official_names
from .formats import (
    FP8,
    LAYER_FORMAT,
    UNUSED_SCALES,
    WEIGHT_SCALES,
    StoredWeight,
    check_scale,
    decode,
    read_layer_format,
)
from .header import DOWNLOAD_AGAIN, TensorInfo
from .precision import Policy

log = logging.getLogger(__name__)

# (kind, shell pattern of a name with or without prefix, why it is not needed).
IGNORED: tuple[tuple[str, str, str], ...] = (
    ("*", "scaled_fp8", "marks scaled fp8; the scales themselves are used"),
    ("dit", "model_type.*", "a marker that names the model"),
    ("dit", "*.norm_added_q.weight", "never used by the network"),
    ("umt5", "spiece_model", "the tokenizer, read by itself"),
    ("umt5", "encoder.embed_tokens.weight", "the same as shared.weight"),
    ("umt5", "decoder.*", "the text encoder's decoder half is not used"),
    ("umt5", "lm_head.*", "the text encoder's decoder half is not used"),
    ("umt5", "logit_scale", "a number that other text encoders use"),
    ("clip_vision", "textual.*", "the text half of CLIP is not used"),
    ("clip_vision", "text_model.*", "the text half of CLIP is not used"),
    ("clip_vision", "text_projection*", "the text half of CLIP is not used"),
    ("clip_vision", "log_scale", "the text half of CLIP is not used"),
    ("clip_vision", "logit_scale", "the text half of CLIP is not used"),
    ("clip_vision", "head", "only the last layer but one is used"),
    ("clip_vision", "post_norm.*", "only the last layer but one is used"),
    ("tae", "encoder.*", "a tiny VAE only decodes"),
    ("clip_vision", "vision_model.embeddings.position_ids", "a list of 0, 1, 2 ..."),
)
# Beginnings of the other parts of an all-in-one checkpoint.
OTHER_PARTS = ("model.diffusion_model.", "vae.", "first_stage_model.", "text_encoders.", "clip_vision.", "model_ema.")
OTHER_PART = "another part of an all-in-one checkpoint"
LAST_LAYER = "only the last layer but one is used"


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Every tensor of the file: ``used``, or ``ignored`` as (name, reason)."""

    used: int
    ignored: tuple[tuple[str, str], ...]

    @property
    def total(self) -> int:
        return self.used + len(self.ignored)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What goes where, settled before a weight is read. Sources carry full names of the file."""

    weights: dict[str, keymaps.Source]
    scales: dict[str, str]
    formats: dict[str, str]
    ignored: tuple[tuple[str, str], ...]


def load_module(module: nn.Module, checkpoint: Checkpoint, detected: Detected, policy: Policy) -> LoadReport:
    """Fill ``module`` from ``checkpoint``.

    Args:
        module: built on the meta device from ``detected.config``. Its ``nn.Linear`` become :class:`StoredLinear`.
        checkpoint: an open file.
        detected: what :func:`~.detect.detect` said of it.
        policy: compute dtypes (see :mod:`.precision`).

    Raises:
        ModelFileError: a tensor is missing, unknown, of another shape, or in an unknown format; nothing has been
            read then.
    """
    plan = check_load(module, checkpoint, detected)
    for name, layer in plan.formats.items():
        read_layer_format(name, read_raw(checkpoint, name), checkpoint.header[layer].dtype)
    storage_linears(module, policy.dtype_of)
    owners = _owners(module)
    for name, source in plan.weights.items():
        scale = plan.scales.get(name)
        _assign(
            owners[name],
            [_stored(checkpoint, part, scale) for part in source.names],
            keymaps.OPS[source.op],
            policy.dtype_of(name),
        )
    _check_filled(module, checkpoint.path.name)
    report = LoadReport(used=len(checkpoint.header) - len(plan.ignored), ignored=plan.ignored)
    log.info("%s: %d tensors used, %d not needed", checkpoint.path.name, report.used, len(report.ignored))
    return report


def check_load(module: nn.Module, checkpoint: Checkpoint, detected: Detected) -> Plan:
    """:func:`plan_load`, with the file's name in what it refuses."""
    try:
        return plan_load(module, checkpoint.header, detected)
    except ModelFileError as error:
        raise ModelFileError(f"{checkpoint.path.name}: {error}") from error


def read_raw(checkpoint: Checkpoint, name: str) -> bytes:
    """The bytes of a uint8 tensor: an embedded tokenizer (``spiece_model``) or a description."""
    tensor = checkpoint.get(name)
    if tensor.dtype is not torch.uint8:
        raise ModelFileError(
            f"{checkpoint.path.name}: {name!r} should hold bytes but is {tensor.dtype}. {DOWNLOAD_AGAIN}"
        )
    return tensor.contiguous().numpy().tobytes()


def plan_load(module: nn.Module, header: Mapping[str, TensorInfo], detected: Detected) -> Plan:
    """Account for every tensor of the file and of the network, from names and shapes alone; nothing is read."""
    sources, left = official_names(header, detected.kind, detected.naming, detected.prefix)
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    weights, scales, formats, ignored, unknown = {}, {}, {}, [], []
    for ours, source in sources.items():
        base, _, ending = ours.rpartition(".")
        layer = f"{base}.weight"
        if ours in wanted:
            weights[ours] = source
        elif ending in WEIGHT_SCALES and layer in sources and len(source.names) == 1:
            scales[layer] = source.names[0]
            check_scale(source.names[0], header[source.names[0]], header[sources[layer].names[0]].shape)
        elif ending == LAYER_FORMAT and layer in sources:
            formats.update(dict.fromkeys(source.names, sources[layer].names[0]))
        elif ending in UNUSED_SCALES and layer in sources:
            ignored += [(name, UNUSED_SCALES[ending]) for name in source.names]
        elif reason := _reason(ours, detected, wanted):
            ignored += [(name, reason) for name in source.names]
        else:
            unknown += source.names
    for name in left:
        reason = _reason(name.removeprefix(detected.prefix), detected, wanted) or _outside(name, detected)
        ignored.append((name, reason)) if reason else unknown.append(name)
    _refuse(sorted(set(wanted) - set(weights)), unknown, detected)
    _check_shapes(weights, wanted, header)
    _check_scaled(scales, weights, ignored)
    return Plan(weights=weights, scales=scales, formats=formats, ignored=tuple(ignored))


def _reason(name: str, detected: Detected, wanted: Mapping[str, tuple]) -> str | None:
    """Why a tensor that the network does not have is no mistake, or None."""
    for kind, pattern, reason in IGNORED:
        if kind in ("*", detected.kind) and fnmatchcase(name, pattern):
            return reason
    last = f"transformer.{getattr(detected.config, 'num_layers', 0) - 1}."
    if detected.kind == "clip_vision" and name.startswith(last) and not any(key.startswith(last) for key in wanted):
        return LAST_LAYER
    return None


def _outside(name: str, detected: Detected) -> str | None:
    """The reason for a tensor of another part, where the file is an all-in-one checkpoint."""
    if not detected.prefix or name.startswith(detected.prefix):
        return None
    return OTHER_PART if name.startswith(OTHER_PARTS) else None


def _refuse(missing: list[str], unknown: list[str], detected: Detected) -> None:
    if missing:
        raise ModelFileError(
            f"{len(missing)} tensors of the {TITLES[detected.kind]} are missing ({first_few(missing)}). The file is "
            f"incomplete or of another model. {DOWNLOAD_AGAIN}"
        )
    if unknown:
        raise ModelFileError(
            f"{len(unknown)} tensors have no place in the {TITLES[detected.kind]} ({first_few(unknown)}). The file is "
            "of another model, or of a kind that is not supported yet."
        )


def _check_shapes(weights: Mapping[str, keymaps.Source], wanted: Mapping[str, tuple], header: Mapping) -> None:
    shapes = {name: joined_shape(name, source, header) for name, source in weights.items()}
    wrong = [name for name, shape in shapes.items() if shape != wanted[name]]
    if wrong:
        listed = first_few((f"{n} is {list(shapes[n])}, not {list(wanted[n])}" for n in wrong), limit=3)
        raise ModelFileError(f"{len(wrong)} tensors have another shape: {listed}. {DOWNLOAD_AGAIN}")


def _check_scaled(scales: Mapping[str, str], weights: Mapping[str, keymaps.Source], ignored: list) -> None:
    """A scale has to belong to one whole weight; scales of weights that are not needed go with them."""
    for layer, name in list(scales.items()):
        if layer not in weights:
            ignored.append((name, "scale of a weight that is not needed"))
        elif len(weights[layer].names) != 1:
            raise ModelFileError(f"{name!r} scales a weight that is stored in parts; this is not supported yet.")


def _owners(module: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """full name -> (module, attribute), prepared beforehand: names from files are only looked up in it."""
    return {
        f"{path}.{name}" if path else name: (child, name)
        for path, child in module.named_modules()
        for name in (*child._parameters, *child._buffers)
    }


def _stored(checkpoint: Checkpoint, name: str, scale: str | None) -> StoredWeight:
    factor = None if scale is None else checkpoint.get(scale)
    if factor is not None and not bool(torch.isfinite(factor.float()).all()):
        raise ModelFileError(f"{checkpoint.path.name}: the scale {scale!r} is not finite. {DOWNLOAD_AGAIN}")
    return StoredWeight(checkpoint.get(name), factor)


def _assign(owner: tuple[nn.Module, str], parts: Iterable[StoredWeight], op: keymaps.Op, dtype: torch.dtype) -> None:
    """One tensor into its place, with the dtype that its use asks for."""
    module, attribute = owner
    parts = list(parts)
    tensor: Tensor
    scale = parts[0].scale
    if isinstance(module, StoredLinear) and attribute == "weight":
        tensor = _kept(op.join(tuple(part.data for part in parts)), dtype, scale)
        module.weight_scale = None if scale is None else scale.float().reshape(() if scale.numel() == 1 else (-1, 1))
    elif isinstance(module, nn.Embedding) and scale is None and parts[0].data.dtype not in FP8:
        tensor = _kept(op.join(tuple(part.data for part in parts)), dtype, scale)  # looked up, then cast by its user
    else:
        tensor = op.join(tuple(decode(part, dtype) for part in parts))
    if attribute in module._buffers:
        module._buffers[attribute] = tensor
    else:
        module._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)


def _kept(tensor: Tensor, dtype: torch.dtype, scale: Tensor | None) -> Tensor:
    """As stored; only what is wider than it computes in is narrowed, once instead of at every use."""
    return tensor.to(dtype) if scale is None and tensor.element_size() > dtype.itemsize else tensor


def _check_filled(module: nn.Module, file_name: str) -> None:
    """Nothing may be left without data, buffers that no file carries included."""
    empty = [name for name, t in (*module.named_parameters(), *module.named_buffers()) if t.is_meta]
    if empty:
        raise ModelFileError(f"{file_name}: no values for {first_few(empty)}. This is a defect of the loader.")
