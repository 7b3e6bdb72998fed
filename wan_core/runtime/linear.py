"""The one place where a stored weight becomes numbers for a matrix product: fetch -> decode -> LoRA -> use."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..weights.formats import StoredWeight, decode
from ..weights.lora_math import Worn, merged
from .pointwise import gelu_tanh

FEW_ROWS = 256
"""Up to here a product with the weight on the left is faster on a CPU."""


def _cpu_linear() -> Callable | None:
    """oneDNN's linear layer with what follows it fused in (bias, GELU), where this PyTorch has it and the CPU has
    instructions for bfloat16 in it: on others (AVX2) oneDNN refuses such a layer."""
    if not torch.backends.mkldnn.is_available():
        return None
    takes_bf16 = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if takes_bf16 is None or not takes_bf16():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_ON_CPU = _cpu_linear()


def _is_fast_on_cpu(x: Tensor) -> bool:
    """Where oneDNN's bfloat16 products gain by it; they know no autograd."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and not torch.is_grad_enabled()


class StoredLinear(nn.Module):
    """A linear layer whose weight stays as the file has it and is decoded for each use.

    Takes the place of an ``nn.Linear`` after construction, so that models know nothing of storage. ``weight`` and
    ``bias`` keep their names; ``weight_scale`` (float, a scalar or one per output row) is None where there is none.
    ``worn`` are LoRA changes of a weight that is stored in fewer bits than it computes in: they are added at each use,
    so that the storage stays as small as it is.
    """

    def __init__(self, linear: nn.Linear, compute_dtype: torch.dtype):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.register_buffer("weight_scale", None, persistent=False)
        self.compute_dtype = compute_dtype
        self.worn: tuple[Worn, ...] = ()

    @property
    def is_narrow(self) -> bool:
        """Stored in fewer bits than it computes in."""
        return self.weight.element_size() < self.compute_dtype.itemsize or self.weight_scale is not None

    def resolved(self) -> Tensor:
        """The weight as it is used, in the compute dtype."""
        stored = StoredWeight(self.weight, self.weight_scale)
        if not self.worn:
            return decode(stored, self.compute_dtype)
        return merged(decode(stored, torch.float32), self.worn, self.compute_dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` of any float dtype -> ``[..., out_features]`` in the compute dtype."""
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        x, weight = x.to(self.compute_dtype), self.resolved()
        if x.device.type == "cpu" and x.numel() == self.in_features and x.dtype == torch.float32:
            # A product of one row is rounded by where the weight lies in memory (seen on AMD processors): a mapped file
            # and a copy of it would differ. Two rows are not.
            return F.linear(x.reshape(1, -1).repeat(2, 1), weight, bias)[:1].reshape(*x.shape[:-1], self.out_features)
        if _ON_CPU is None or not _is_fast_on_cpu(x):
            return F.linear(x, weight, bias)
        rows = x.flatten(0, -2)
        if bias is None and len(rows) <= FEW_ROWS:
            return torch.mm(weight, rows.t()).t().unflatten(0, x.shape[:-1])
        return _ON_CPU(x, weight, bias, "none", [], "")

    def with_gelu(self, x: Tensor) -> Tensor:
        """:meth:`forward`, then GELU in its tanh form; on CUDA inside the matrix product, before it is rounded."""
        if self.bias is not None and _ON_CPU is not None and _is_fast_on_cpu(x.to(self.compute_dtype)):
            bias = self.bias.to(self.compute_dtype)
            return _ON_CPU(x.to(self.compute_dtype), self.resolved(), bias, "gelu", [], "tanh")
        if not x.is_cuda or self.bias is None or torch.is_grad_enabled():
            return gelu_tanh(self(x))
        rows = x.to(self.compute_dtype).flatten(0, -2)
        bias = self.bias.to(self.compute_dtype)
        out = torch._addmm_activation(bias, rows, self.resolved().t(), use_gelu=True)
        return out.unflatten(0, x.shape[:-1])

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.weight.dtype} -> {self.compute_dtype}"


def storage_linears(module: nn.Module, compute_dtype_of: Callable[[str], torch.dtype]) -> nn.Module:
    """Replace every ``nn.Linear`` below ``module`` by a :class:`StoredLinear`, in place.

    Args:
        compute_dtype_of: full name of the layer's weight -> dtype to compute in.
    """
    for path, parent in list(module.named_modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                full = ".".join(part for part in (path, name, "weight") if part)
                setattr(parent, name, StoredLinear(child, compute_dtype_of(full)))
    return module
