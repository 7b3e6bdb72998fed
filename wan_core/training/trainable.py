"""Networks out of model files, with weights that can be trained."""

from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from ..runtime.linear import StoredLinear
from ..runtime.residency import Resident
from ..weights.formats import StoredWeight, decode

Network = TypeVar("Network", bound=nn.Module)


def trainable(network: Network, weights: Resident) -> Network:
    """``network`` with the values of a loaded file in float32; gradients on.

    Raises:
        TrainingError: the file is quantised; its rounding would be what is trained.
    """
    values: dict[str, Tensor] = {}
    for path, module in weights.module.named_modules():
        if isinstance(module, StoredLinear) and module.weight.dtype.itemsize < 2:
            raise TrainingError(
                f"{weights.name} is stored in {module.weight.dtype}. Train from the bf16, fp16 or fp32 file."
            )
        for name, value in module.named_parameters(path, recurse=False):
            values[name] = decode(StoredWeight(value.detach(), None), torch.float32)
    network.load_state_dict(values)
    return network.train().requires_grad_(True)


def check_exists(path: Path, option: str) -> None:
    if not path.exists():
        raise TrainingError(f"{option} {path} does not exist.")
