"""Optimizers by name, their learning rate over a run, and the moving average of the weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Named = Mapping[str, nn.Parameter]


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """``optimizer``: ``adamw``, or ``muon`` (matrices by Muon, everything else by AdamW). ``warmup`` in steps;
    ``lr_end`` is the fraction of ``lr`` that a cosine ends at."""

    optimizer: str = "muon"
    lr: float = 1e-3
    lr_end: float = 0.03
    warmup: int = 100
    weight_decay: float = 0.01
    beta2: float = 0.99
    clip: float = 1.0
    ema: float = 0.998


def lr_at(step: int, steps: int, settings: OptimSettings) -> float:
    """Linear warm-up, then a cosine down to ``lr_end * lr``. ``step`` counts from 0."""
    rise = min(1.0, (step + 1) / max(1, settings.warmup))
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))
    return settings.lr * rise * (settings.lr_end + (1 - settings.lr_end) * fall)


class Optimizer:
    """AdamW, or Muon (Jordan 2024) with AdamW for what is no matrix. Convolution kernels are matrices over their
    output channels."""

    def __init__(self, parameters: Named, settings: OptimSettings):
        self.settings = settings
        self.parameters = dict(parameters)
        flat = {
            name: nn.Parameter(parameter.detach().view(parameter.shape[0], -1))
            for name, parameter in parameters.items()
            if settings.optimizer == "muon" and is_hidden_matrix(name, parameter)
        }
        self._flat = flat  # two-dimensional windows on the parameters' own memory
        rest = {name: parameter for name, parameter in parameters.items() if name not in flat}
        self._parts: list[tuple[dict[str, nn.Parameter], torch.optim.Optimizer]] = []
        if rest:
            betas = (0.9, settings.beta2)
            adamw = torch.optim.AdamW(
                list(rest.values()), lr=settings.lr, betas=betas, weight_decay=settings.weight_decay, fused=True
            )
            self._parts.append((rest, adamw))
        if flat:
            muon = torch.optim.Muon(
                list(flat.values()),
                lr=settings.lr,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self._parts.append((flat, muon))

    def clip(self) -> float:
        """Clip the gradients; returns their norm before."""
        return float(nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip))

    def step(self, lr: float) -> None:
        """Take one step and clear the gradients."""
        for name, window in self._flat.items():
            grad = self.parameters[name].grad
            window.grad = None if grad is None else grad.reshape(window.shape)
        for _, optimizer in self._parts:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for parameter in self.parameters.values():
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """``<parameter>/<value>`` -> tensor."""
        return {
            f"{name}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
            for named, optimizer in self._parts
            for name, parameter in named.items()
            for key, value in optimizer.state[parameter].items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        for full, value in state.items():
            name, key = full.rsplit("/", 1)
            for named, optimizer in self._parts:
                if name in named:
                    optimizer.state[named[name]][key] = value.to(named[name].device, copy=True)


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """A weight between hidden layers: no embedding, no first or last layer, no bias, norm or modulation."""
    ends = ("embedding", "head", "modulation", "patch", "encoder.conv1")
    return (
        parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) > 1 and not any(e in name for e in ends)
    )


class Average:
    """Exponential moving average of the weights; young averages forget faster."""

    def __init__(self, parameters: Named, decay: float):
        self.decay = decay
        self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def update(self, parameters: Named, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.values.values()), [p.detach() for p in parameters.values()], 1 - decay)
