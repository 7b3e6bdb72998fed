"""How weights are stored, and the one function that makes numbers of them.

Plain floats, plain fp8, and both generations of ComfyUI's scaled fp8 (Comfy-Org/ComfyUI ``comfy/utils.py``
``convert_old_quants`` and ``comfy/ops.py``). The effective weight is always ``weight * scale``. A format without an
entry here is refused by name.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ModelFileError
from .header import TensorInfo, parse_json_object

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16, *FP8)
COMFY_FP8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
MAX_LAYER_JSON = 65_536
USE_INSTEAD = "Use the fp8_scaled, fp8 or fp16 file of the model."

WEIGHT_SCALES = ("scale_weight", "weight_scale")
"""Last name parts that hold the scale of the weight beside them: legacy form, new form."""
LAYER_FORMAT = "comfy_quant"
UNUSED_SCALES = {
    "scale_input": "activation scale; activations are not quantised here",
    "input_scale": "activation scale; activations are not quantised here",
}
COMPANIONS = (*WEIGHT_SCALES, LAYER_FORMAT, *UNUSED_SCALES)

# Tensor names that only one quantisation uses.
FOREIGN_MARKS: tuple[tuple[str, str], ...] = (
    (r"\.weight_s_rel$|\.weight_codebook$", "asym_w4a8_int8"),
    (r"\.weight_scale_2$", "nvfp4"),
    (r"\.pre_quant_scale$", "a format with pre_quant_scale (awq or nvfp4)"),
    (r"\.absmax$|\.quant_map$|\.quant_state\.", "bitsandbytes 4-bit"),
    (r"\.SCB$", "bitsandbytes int8"),
    (r"\.qweight$|\.qzeros$", "GPTQ, AWQ or Nunchaku"),
)


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How a file stores its weights: ``plain``, ``fp8``, ``scaled-fp8-legacy`` or ``scaled-fp8-new``."""

    name: str
    dtype: torch.dtype
    """Type of most of the bytes."""


@dataclass(frozen=True)
class StoredWeight:
    """A weight as the file has it. ``scale`` is a scalar or one value per output row, or None."""

    data: Tensor
    scale: Tensor | None = None


def decode(stored: StoredWeight, dtype: torch.dtype) -> Tensor:
    """The weight in ``dtype``: ``data * scale``. Returns ``data`` itself where there is nothing to do."""
    weight = stored.data.to(dtype)
    if stored.scale is None:
        return weight
    return (weight * _aligned(stored.scale, weight)).to(dtype)


def check_scale(name: str, scale: TensorInfo, weight: tuple[int, ...]) -> None:
    """A scale has one value, or one per output row."""
    count = scale.nbytes // scale.dtype.itemsize
    rows = weight[0] if weight else 1
    shapes = ((rows,), (rows, *(1 for _ in weight[1:])))
    if scale.dtype not in (torch.float32, torch.bfloat16, torch.float16) or (count != 1 and scale.shape not in shapes):
        raise ModelFileError(
            f"the scale {name!r} has shape {list(scale.shape)} and type {scale.dtype} for a weight of shape "
            f"{list(weight)}; known are one value, or one per row, as a float. This is a quantisation that is not "
            f"supported yet (block scales: mxfp8 or nvfp4?). {USE_INSTEAD}"
        )


def _aligned(scale: Tensor, weight: Tensor) -> Tensor:
    """The scale in a shape that broadcasts over columns; a scalar stays float32 inside the product."""
    if scale.numel() == 1:
        return scale.reshape(()).float()
    return scale.reshape(-1, *(1 for _ in weight.shape[1:])).float()


def storage(header: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> Storage:
    """Say from the header how a file stores its weights.

    Raises:
        ModelFileError: it is quantised in a way that is not supported; the message names it.
    """
    _refuse_foreign(header, metadata)
    counts: Counter[torch.dtype] = Counter()
    for info in header.values():
        if info.dtype in FLOATS:
            counts[info.dtype] += info.nbytes
    if not counts:
        raise ModelFileError("the file holds no floating-point weights. It is no model that is known here.")
    dtype = max(counts, key=lambda one: counts[one])
    endings = {name.rsplit(".", 1)[-1] for name in header}
    if LAYER_FORMAT in endings or "weight_scale" in endings or "_quantization_metadata" in metadata:
        return Storage(name="scaled-fp8-new", dtype=dtype)
    if endings & {"scaled_fp8", "scale_weight"}:
        return Storage(name="scaled-fp8-legacy", dtype=dtype)
    return Storage(name="fp8" if dtype in FP8 else "plain", dtype=dtype)


def read_layer_format(name: str, raw: bytes, weight: torch.dtype) -> None:
    """Check one ``comfy_quant`` entry: a known fp8 format, and the weight really stored so."""
    if len(raw) > MAX_LAYER_JSON:
        raise ModelFileError(f"{name!r} is too large for the description of a layer. Download the file again.")
    _check_layer(name, parse_json_object(raw, name), weight)


def _check_layer(name: str, found: object, weight: torch.dtype | None) -> None:
    form = found.get("format") if isinstance(found, dict) else None
    if form not in COMFY_FP8 or found.get("convrot"):
        kind = f"{form} with convrot" if isinstance(found, dict) and found.get("convrot") else form
        raise ModelFileError(
            f"the quantisation {str(kind)[:60]!r} (of {name[:80]!r}) is not supported yet. {USE_INSTEAD}"
        )
    if weight is not None and weight not in FP8:
        raise ModelFileError(f"{name!r} says {form}, but the weight is stored as {weight}. Download the file again.")


def _refuse_foreign(header: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> None:
    """Formats that show in the names, the types or the metadata."""
    for name, info in header.items():
        mark = next((kind for pattern, kind in FOREIGN_MARKS if re.search(pattern, name)), None)
        if mark is None and name.endswith(".weight") and info.dtype in (torch.int8, torch.uint8):
            mark = "int8 (int8_tensorwise or convrot)" if info.dtype is torch.int8 else "packed 4-bit (nvfp4 or other)"
        if mark is None and name.endswith(".weight_scale") and info.dtype is torch.uint8:
            mark = "mxfp8"
        if mark is not None:
            raise ModelFileError(f"the quantisation {mark} (of {name[:80]!r}) is not supported yet. {USE_INSTEAD}")
    text = metadata.get("_quantization_metadata")
    if text is not None:
        layers = parse_json_object(text.encode(), "_quantization_metadata").get("layers")
        if not isinstance(layers, dict):
            raise ModelFileError("its _quantization_metadata has no 'layers'. Download the file again.")
        for name, found in layers.items():
            _check_layer(name, found, None)


def layer_format_json(form: str) -> bytes:
    """The ``comfy_quant`` entry of a layer, as a file carries it."""
    return json.dumps({"format": form}).encode()
