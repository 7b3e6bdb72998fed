"""The precision policy: file dtype x device -> compute dtype, and which parts stay float32. One table.

Source of the choices: Wan-Video/Wan2.1 ``wan/modules/model.py`` (autocast bf16 with float32 islands) and
``wan/modules/t5.py``; umT5 leaves the range of fp16, so an fp16 file of it never computes in fp16.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from ..errors import InputError

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
FILE_DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    "fp32": (torch.float32, torch.float64),
    "fp16": (torch.float16,),
    "bf16": (torch.bfloat16,),
    "fp8": (torch.float8_e4m3fn, torch.float8_e5m2),
}
REQUESTS: dict[str, torch.dtype] = {"fp32": FP32, "bf16": BF16, "fp16": FP16}
NAMES = {dtype: name for name, dtype in REQUESTS.items()}

ISLANDS: dict[str, tuple[str, ...]] = {
    "dit": (
        "patch_embedding.*",
        "vace_patch_embedding.*",
        "time_embedding.*",
        "time_projection.*",
        "*modulation",
        "*norm*",
        "head.*",
        "img_emb.proj.0.*",
        "img_emb.proj.4.*",
        "img_emb.emb_pos",
    ),
    "umt5": ("*norm*",),
    "clip_vision": ("*norm*", "cls_embedding", "pos_embedding"),
    "vae": (),
}
"""Parameters (shell patterns) that are kept and computed in float32, whatever is asked for."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the policy. ``bf16`` is whether the device multiplies bfloat16 natively; None: either."""

    kind: str
    file: tuple[str, ...]
    device: str
    bf16: bool | None
    compute: torch.dtype


ALL = tuple(FILE_DTYPES)
POLICY: tuple[Row, ...] = (
    Row(kind="dit", file=("fp32", "fp16"), device="cpu", bf16=None, compute=FP32),
    Row(kind="dit", file=("bf16", "fp8"), device="cpu", bf16=True, compute=BF16),
    Row(kind="dit", file=("bf16", "fp8"), device="cpu", bf16=False, compute=FP32),
    Row(kind="dit", file=("fp32", "bf16", "fp8"), device="gpu", bf16=True, compute=BF16),
    Row(kind="dit", file=("fp32", "bf16", "fp8"), device="gpu", bf16=False, compute=FP16),
    Row(kind="dit", file=("fp16",), device="gpu", bf16=None, compute=FP16),
    Row(kind="umt5", file=("fp32",), device="cpu", bf16=None, compute=FP32),
    Row(kind="umt5", file=("fp16", "bf16", "fp8"), device="cpu", bf16=True, compute=BF16),
    Row(kind="umt5", file=("fp16", "bf16", "fp8"), device="cpu", bf16=False, compute=FP32),
    Row(kind="umt5", file=ALL, device="gpu", bf16=True, compute=BF16),
    Row(kind="umt5", file=ALL, device="gpu", bf16=False, compute=FP32),
    Row(kind="clip_vision", file=ALL, device="cpu", bf16=None, compute=FP32),
    Row(kind="clip_vision", file=ALL, device="gpu", bf16=None, compute=FP16),
    Row(kind="vae", file=ALL, device="cpu", bf16=None, compute=FP32),
    Row(kind="vae", file=ALL, device="gpu", bf16=True, compute=BF16),
    Row(kind="vae", file=ALL, device="gpu", bf16=False, compute=FP32),
)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What one model computes in."""

    compute: torch.dtype
    islands: tuple[str, ...]

    def dtype_of(self, name: str) -> torch.dtype:
        """Compute dtype of the parameter ``name``."""
        return FP32 if any(fnmatchcase(name, pattern) for pattern in self.islands) else self.compute


def policy(kind: str, file_dtype: torch.dtype, device_type: str, bf16: bool, request: str = "auto") -> Policy:
    """The policy for one model.

    Args:
        kind: ``dit``, ``umt5``, ``clip_vision`` or ``vae``.
        file_dtype: what most of the file is stored in.
        device_type: ``cpu``; anything else is a GPU.
        bf16: the device multiplies bfloat16 natively (see :func:`has_bf16`).
        request: ``auto``, or ``fp32``, ``bf16``, ``fp16`` to override the compute dtype; islands stay float32.

    Raises:
        InputError: the request is none of these.
    """
    if request != "auto" and request not in REQUESTS:
        raise InputError(f"the compute type {request!r} is not known. Use auto, {', '.join(REQUESTS)}.")
    if kind == "umt5" and request == "fp16":
        raise InputError("umT5 cannot compute in fp16: its values leave the range of fp16. Use auto, bf16 or fp32.")
    compute = REQUESTS[request] if request != "auto" else _look_up(kind, file_dtype, device_type, bf16)
    return Policy(compute=compute, islands=ISLANDS[kind])


def policy_table() -> list[tuple[str, str, str, str, str]]:
    """All lines as text: kind, file dtypes, device, native bf16 (yes, no, any), compute dtype."""
    native = {True: "yes", False: "no", None: "any"}
    return [(row.kind, ", ".join(row.file), row.device, native[row.bf16], NAMES[row.compute]) for row in POLICY]


def has_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 in hardware; older PyTorch versions that cannot tell say no on a CPU."""
    if device.type == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in checks)
    if device.type == "cuda" and torch.version.hip is None:
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return True


def _look_up(kind: str, file_dtype: torch.dtype, device_type: str, bf16: bool) -> torch.dtype:
    file = next(name for name, dtypes in FILE_DTYPES.items() if file_dtype in dtypes)
    device = "cpu" if device_type == "cpu" else "gpu"
    return next(
        row.compute
        for row in POLICY
        if row.kind == kind and file in row.file and row.device == device and row.bf16 in (None, bf16)
    )
