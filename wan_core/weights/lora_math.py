"""What each kind of LoRA does to a weight, in float32.

Every kind is a function ``(weight, parts, strength) -> what is added``, so that the order of several LoRAs does not
matter. Sources: Comfy-Org/ComfyUI ``comfy/weight_adapter`` (also which norm DoRA divides by), kohya-ss
and LyCORIS (ranks and alphas), huggingface/peft (magnitude vectors).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

ROWS = 256
"""Rows of a weight that are merged at once: 5 MB of float32 at a width of 5120."""
CARD_ROWS = 8192
"""The same on a card, where every start of a kernel costs."""

Parts = Mapping[str, Tensor]
"""Role (see ``lora_names.ENDINGS``) -> tensor, float32 on the device of the weight."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """``needs``: roles without which it cannot be; ``may``: roles it understands besides; ``added``: the function."""

    needs: tuple[str, ...]
    added: Callable[[Tensor, Parts, float], Tensor]
    may: tuple[str, ...] = ()


def scale_of(parts: Parts, rank: int | None) -> float:
    """``alpha / rank``; 1 where either is missing."""
    return parts["alpha"].item() / rank if "alpha" in parts and rank else 1.0


def _shaped(value: Tensor, weight: Tensor) -> Tensor:
    """``value`` in the shape of the weight. Rows stay rows: a transposed matrix is no change of this weight."""
    rows, wanted = (next((side for side in one.shape if side != 1), 1) for one in (value, weight))
    if rows != wanted:
        raise ValueError(f"{list(value.shape)} is no change of {list(weight.shape)}")
    return value.reshape(weight.shape)


def _low_rank(weight: Tensor, parts: Parts, strength: float) -> Tensor:
    up, down = parts["up"], parts["down"]
    scale = scale_of(parts, down.shape[0])
    if "mid" in parts:  # a convolution between the two: [rank, rank, ...]
        down = torch.einsum("ij...,jk->ik...", parts["mid"], down.flatten(1))
    product = _shaped(up.flatten(1) @ down.flatten(1), weight)
    return _decomposed(weight, product * scale, parts, strength)


def _hadamard(weight: Tensor, parts: Parts, strength: float) -> Tensor:
    factors = []
    for n in "12":
        a, b = parts[f"hada_w{n}_a"], parts[f"hada_w{n}_b"]
        core = parts.get(f"hada_t{n}")
        factors.append(a @ b if core is None else torch.einsum("ij...,jr,ip->pr...", core, b, a))
    if factors[0].shape != factors[1].shape:
        raise ValueError(f"{list(factors[0].shape)} and {list(factors[1].shape)} are no factors of one change")
    product = _shaped(factors[0] * factors[1], weight)
    return _decomposed(weight, product * scale_of(parts, parts["hada_w1_b"].shape[0]), parts, strength)


def _kronecker(weight: Tensor, parts: Parts, strength: float) -> Tensor:
    rank = None
    factors = []
    for n in "12":
        whole = parts.get(f"lokr_w{n}")
        if whole is None:
            a, b = parts[f"lokr_w{n}_a"], parts[f"lokr_w{n}_b"]
            rank = b.shape[0]
            core = parts.get("lokr_t2") if n == "2" else None
            whole = a @ b if core is None else torch.einsum("ij...,jr,ip->pr...", core, b, a)
        factors.append(whole)
    first, second = factors
    first = first.reshape((*first.shape, *(1 for _ in second.shape[first.ndim :])))
    product = _shaped(torch.kron(first.contiguous(), second.contiguous()), weight)
    return _decomposed(weight, product * scale_of(parts, rank), parts, strength)


def _decomposed(weight: Tensor, product: Tensor, parts: Parts, strength: float) -> Tensor:
    """DoRA, where the file has it: the sum is given the lengths that were learned; else the product as it is."""
    if "dora" not in parts and "magnitude" not in parts:
        return product.mul_(strength)
    moved = weight + product
    if "magnitude" in parts:  # PEFT: of the changed rows
        length = moved.flatten(1).norm(dim=1)
        wanted = parts["magnitude"].flatten() / length.clamp_min(torch.finfo(length.dtype).eps)
        moved = moved * wanted.reshape(-1, *(1 for _ in weight.shape[1:]))
    else:
        by_rows = parts["dora"].shape[0] == weight.shape[0]
        length = weight.flatten(1).norm(dim=1) if by_rows else moved.transpose(0, 1).flatten(1).norm(dim=1)
        shape = (-1, *(1 for _ in weight.shape[1:])) if by_rows else (1, -1, *(1 for _ in weight.shape[2:]))
        eps = torch.finfo(weight.dtype).eps
        moved = moved * (parts["dora"].reshape(shape) / (length.reshape(shape) + eps))
    return (moved - weight).mul_(strength)


def _difference(weight: Tensor, parts: Parts, strength: float) -> Tensor:
    (value,) = parts.values()
    return _shaped(value, weight) * strength


def _bias_of_up(weight: Tensor, parts: Parts, strength: float) -> Tensor:
    """PEFT scales the whole output of the upper half, its bias included."""
    rank = parts["up"].shape[1] if "up" in parts else None
    return _shaped(parts["up_bias"], weight) * (scale_of(parts, rank) * strength)


def _replacement(weight: Tensor, parts: Parts, strength: float) -> Tensor:
    return (_shaped(parts["set_weight"], weight) - weight) * strength


KINDS: dict[str, Kind] = {
    "low rank": Kind(
        needs=("up", "down"), may=("mid", "alpha", "dora", "magnitude"), added=_low_rank
    ),
    "hadamard": Kind(
        needs=("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        may=("hada_t1", "hada_t2", "alpha", "dora"),
        added=_hadamard,
    ),
    "kronecker": Kind(
        needs=(),
        may=(
            "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "alpha", "dora",
        ),
        added=_kronecker,
    ),
    "difference": Kind(needs=("diff",), added=_difference),
    "bias difference": Kind(needs=("diff_b",), added=_difference),
    "bias of up": Kind(needs=("up_bias",), may=("up", "alpha"), added=_bias_of_up),
    "modulation difference": Kind(needs=("diff_m",), added=_difference),
    "replacement": Kind(needs=("set_weight",), added=_replacement),
}  # fmt: skip
"""Kinds of change by name."""


class Source(Protocol):
    """Where the tensors of a change come from: an open LoRA file."""

    def stored(self, change: object, device: torch.device) -> Parts:
        """The tensors of a change on a device, as the file stores them; alpha, a number, on the CPU."""
        ...

    def parts(self, change: object, device: torch.device) -> Parts:
        """The same in float32."""
        ...


@dataclass(frozen=True)
class _Placed:
    """The tensors of one change on the device that computes."""

    tensors: Parts

    def stored(self, change: object, device: torch.device) -> Parts:
        return self.tensors

    def parts(self, change: object, device: torch.device) -> Parts:
        return {role: tensor.float() for role, tensor in self.tensors.items()}


@dataclass(frozen=True, kw_only=True)
class Worn:
    """One change of one tensor, ready to be added."""

    kind: str
    source: Source
    change: object
    strength: float

    def added(self, base: Tensor) -> Tensor:
        """What it adds to ``base`` (float32)."""
        return KINDS[self.kind].added(base, self.source.parts(self.change, base.device), self.strength)

    def placed(self, device: torch.device) -> "Worn":
        """The same with its tensors on a device already, as the file stores them."""
        return self.on(self.source.stored(self.change, device))

    def on(self, tensors: Parts) -> "Worn":
        """The same with these tensors, wherever they are."""
        return replace(self, source=_Placed(tensors))

    def factors(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Two matrices whose product it adds, whatever the weight; None where it is more than that."""
        if self.kind != "low rank":
            return None
        parts = self.source.parts(self.change, device)
        up, down = parts["up"], parts["down"]
        if up.ndim != 2 or down.ndim != 2 or not parts.keys() <= {"up", "down", "alpha"}:
            return None
        return up * (scale_of(parts, down.shape[0]) * self.strength), down


def merged(weight: Tensor, changes: Sequence[Worn], dtype: torch.dtype = torch.float32) -> Tensor:
    """``weight`` with all changes, summed in float32, in ``dtype``. Each is measured against the weight itself, so
    their order is no matter of meaning; that of the sum is the caller's."""
    active = [change for change in changes if change.strength]
    factors = [change.factors(weight.device) for change in active] if weight.ndim == 2 else [None]
    if all(pair is not None for pair in factors):
        return _with_products(weight, factors, dtype)
    base = weight.float()
    total = base.clone()
    for change in active:
        total += change.added(base)
    return total.to(dtype)


def _with_products(weight: Tensor, factors: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype) -> Tensor:
    """Some rows at a time, so that what is in float32 stays in the cache, or on a card takes little memory."""
    out = torch.empty_like(weight, dtype=dtype)
    step = ROWS if weight.device.type == "cpu" else CARD_ROWS
    for first in range(0, weight.shape[0], step):
        rows = slice(first, first + step)
        part = weight[rows].to(torch.float32, copy=True)  # never the weight itself
        for up, down in factors:
            part.addmm_(up[rows], down)
        out[rows] = part
    return out
