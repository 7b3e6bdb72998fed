"""LoRA files: every tensor accounted for, and the changes that they make to a model."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..errors import MismatchError, ModelFileError, first_few
from .checkpoint import Checkpoint, open_checkpoint
from .header import DOWNLOAD_AGAIN, TensorInfo
from .lora_math import KINDS, Parts, Worn, scale_of
from .lora_names import read_name

Shapes = Mapping[str, tuple[int, ...]]

TARGETS = {
    "diff": "{}.weight", "set_weight": "{}.weight", "diff_b": "{}.bias", "up_bias": "{}.bias",
    "diff_m": "{}.modulation",
}  # fmt: skip
"""Role -> the tensor it changes; all other roles change the weight."""
SINGLE = {
    "diff": "difference", "diff_b": "bias difference", "up_bias": "bias of up", "diff_m": "modulation difference",
    "set_weight": "replacement",
}  # fmt: skip
"""Roles that are a change by themselves -> its kind."""
MAY_BE_INTEGERS = ("alpha", "reshape_weight")
HALVES = {"up": "its lower half (lora_down) is missing", "down": "its upper half (lora_up) is missing"}

FOREIGN: tuple[tuple[str, str], ...] = (
    (r"lora_te\d?_|text_encoder", "SD or SDXL (text encoder)"),
    (r"(lora_unet_)?(input|output|middle|down|up|mid)_blocks?_", "SD or SDXL"),
    (r"double_blocks|single_blocks|single_transformer_blocks", "Flux or Hunyuan Video"),
    (r"joint_blocks|context_block", "Stable Diffusion 3"),
    (r"transformer_blocks", "LTX, Qwen Image or another family"),
    (r"face_adapter|motion_encoder|pose_patch", "Wan Animate (not supported yet)"),
    (r"audio_injector|casual_audio", "Wan S2V (not supported yet)"),
)
"""What names of other models look like."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a file does to one tensor of the model: ``target`` is an official name, ``names`` role -> name in the
    file."""

    target: str
    kind: str
    names: dict[str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraFile:
    """A LoRA file, read by its header. ``unknown`` are names with nothing of Wan in them, ``broken`` (name, reason)
    those of which a part is missing. ``changes`` by side: ``None`` for either expert, ``low`` where names say so."""

    checkpoint: Checkpoint
    dialects: dict[str, int]
    changes: dict[str | None, list[Change]]
    unknown: list[str]
    broken: list[tuple[str, str]]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    sizes: dict[tuple[str, ...], float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.checkpoint.path.name

    @cached_property
    def width(self) -> int | None:
        """Width of the transformer that it was made for, where a tensor tells."""
        found = Counter(
            self.checkpoint.header[name].shape[axis]
            for change in self._all
            if re.search(r"(self|cross)_attn\.[qo]\.weight$", change.target)
            for role, axis in (("up", 0), ("down", 1), ("diff", 0))
            if (name := change.names.get(role)) and len(self.checkpoint.header[name].shape) > axis
        )
        return found.most_common(1)[0][0] if found else None

    @cached_property
    def has_clip(self) -> bool:
        """Changes the CLIP branch of Wan 2.1 image models."""
        return any(re.search(r"k_img|v_img|^img_emb", change.target) for change in self._all)

    @property
    def _all(self) -> list[Change]:
        return [change for changes in self.changes.values() for change in changes]

    def stored(self, change: Change, device: torch.device) -> Parts:
        """The tensors of a change as the file stores them, on ``device`` (alpha on the CPU); read from disk once."""
        for name in change.names.values():
            if name not in self.tensors:
                self.tensors[name] = self._read(name)
        return {
            role: self.tensors[name] if role == "alpha" else self.tensors[name].to(device)
            for role, name in change.names.items()
        }

    def parts(self, change: Change, device: torch.device) -> Parts:
        """The same in float32."""
        return {role: tensor.float() for role, tensor in self.stored(change, device).items()}

    def _read(self, name: str) -> Tensor:
        # A copy: a LoRA is small, and its file can be replaced while it is in use.
        tensor = self.checkpoint.get(name).clone()
        if not bool(torch.isfinite(tensor.float()).all()):
            raise ModelFileError(f"{self.name}: {name!r} holds values that are not finite. {DOWNLOAD_AGAIN}")
        return tensor


def open_lora(path: Path) -> LoraFile:
    """Read the header of a LoRA file (see :func:`read_lora`)."""
    return read_lora(open_checkpoint(path))


def read_lora(checkpoint: Checkpoint) -> LoraFile:
    """Account for every tensor of a LoRA, by names alone.

    Raises:
        ModelFileError: it cannot be read, or nothing in it is a LoRA of a Wan transformer; the message says what it
            seems to be.
    """
    groups: dict[tuple[str | None, str], dict[str, str]] = defaultdict(dict)
    dialects: Counter[str] = Counter()
    unknown, broken = [], []
    for name, info in checkpoint.header.items():
        part = read_name(name)
        if part is None:
            unknown.append(name)
        elif not (info.dtype.is_floating_point or part.role in MAY_BE_INTEGERS):
            broken.append((name, f"it is stored as {info.dtype}"))
        elif part.role in groups[part.dialect.side, part.module]:
            broken.append((name, "another name means the same tensor"))
        else:
            groups[part.dialect.side, part.module][part.role] = name
            dialects[part.dialect.title] += 1
    changes: dict[str | None, list[Change]] = defaultdict(list)
    for (side, module), names in groups.items():
        made, left = _changes(module, names)
        changes[side] += made
        broken += left
    if not dialects:
        raise _no_lora(checkpoint)
    return LoraFile(
        checkpoint=checkpoint, dialects=dict(dialects), changes=dict(changes), unknown=unknown, broken=broken
    )


def _no_lora(checkpoint: Checkpoint) -> ModelFileError:
    names, name = list(checkpoint.header), checkpoint.path.name
    family = next((what for pattern, what in FOREIGN if any(re.search(pattern, one) for one in names)), None)
    if family is not None:
        return ModelFileError(f"{name} is a LoRA or model of {family}, not of a Wan transformer. Choose a Wan LoRA.")
    return ModelFileError(
        f"{name} holds no LoRA of a Wan transformer (its tensors begin with {first_few(sorted(names), 3)[:200]}). "
        "Choose a Wan LoRA (not GLoRA, OFT or BOFT)."
    )


def _changes(module: str, names: dict[str, str]) -> tuple[list[Change], list[tuple[str, str]]]:
    """The parts of one module -> changes, and what is left over with the reason."""
    made = [
        Change(
            target=_target(module, role),
            kind=SINGLE[role],
            names={one: names[one] for one in (role, *KINDS[SINGLE[role]].may) if one in names},
        )
        for role in names
        if role in SINGLE
    ]
    left = {role: name for role, name in names.items() if role not in SINGLE}
    if "reshape_weight" in left:
        reason = "it changes the size of the tensor, which is not supported"
        return made, [(name, reason) for name in left.values()]
    for title, kind in KINDS.items():
        roles = {role: name for role, name in left.items() if role in (*kind.needs, *kind.may)}
        if title not in SINGLE.values() and _complete(title, roles):
            made.append(Change(target=f"{module}.weight", kind=title, names=roles))
            left = {role: name for role, name in left.items() if role not in roles}
    reason = next((HALVES[role] for role in left if role in HALVES), "the rest of it is missing")
    return made, [(name, reason) for name in left.values()]


def _target(module: str, role: str) -> str:
    """The tensor that a change by itself is of; some names are of a tensor already."""
    return module if module.endswith((".modulation", ".emb_pos")) else TARGETS[role].format(module)


def _complete(title: str, roles: Mapping[str, str]) -> bool:
    if title == "kronecker":
        return all(f"lokr_w{n}" in roles or {f"lokr_w{n}_a", f"lokr_w{n}_b"} <= set(roles) for n in "12")
    return bool(KINDS[title].needs) and set(KINDS[title].needs) <= set(roles)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A LoRA on one network: the changes that apply, and every other tensor by the reason why it does not."""

    file: LoraFile
    changes: tuple[Change, ...]
    ignored: dict[str, list[str]]

    def worn(self, strength: float) -> dict[str, tuple[Worn, ...]]:
        """The changes of each tensor of the model, ready to be added."""
        found: dict[str, tuple[Worn, ...]] = {}
        for change in self.changes:
            one = Worn(kind=change.kind, source=self.file, change=change, strength=strength)
            found[change.target] = (*found.get(change.target, ()), one)
        return found

    def only(self, blocks: frozenset[int]) -> "Fit":
        """The same with the changes of some transformer blocks alone."""
        inside = [change for change in self.changes if _block(change) in blocks]
        left = [name for change in self.changes if _block(change) not in blocks for name in change.names.values()]
        return replace(self, changes=tuple(inside), ignored=self.ignored | _unused({OUTSIDE: left}, inside))

    @property
    def applied(self) -> int:
        """Tensors of the file that are used."""
        return len({name for change in self.changes for name in change.names.values()})

    @property
    def total(self) -> int:
        return len(self.file.checkpoint.header)


NO_CLIP = "CLIP cross-attention keys: this model has no CLIP branch, harmless"
OTHER_SIDE = "for the other expert of the pair"
OTHER_INPUTS = "the input layer of a model with other channels (image or control inputs)"
NOT_WAN = "no part of a Wan transformer"
OTHER_SHAPE = "of another shape than the model's"
NOT_THERE = "the model has no such tensor"
NO_VACE = "for VACE blocks, which the model does not have"
OUTSIDE = "outside the chosen blocks"
HARMLESS = (NO_CLIP, OTHER_SIDE, OUTSIDE)


def fit(file: LoraFile, shapes: Shapes, side: str | None, model_name: str) -> Fit:
    """Which changes of a file apply to a network of these ``shapes`` (official name -> shape).

    Args:
        side: ``high`` or ``low`` of a pair, None for a single model.
        model_name: what messages call the model.

    Raises:
        MismatchError: nothing applies; the message says what the LoRA was made for.
    """
    ignored: dict[str, list[str]] = defaultdict(list)
    applied = []
    # Where names speak of this expert, those that speak of none are the other's (diffusers' two prefixes).
    own = (side or "high") if (side or "high") in file.changes else None
    for of_side, changes in file.changes.items():
        for change in changes:
            reason = _why_not(file, change, shapes) if of_side == own else OTHER_SIDE
            if reason is None:
                applied.append(change)
            else:
                ignored[reason] += change.names.values()
    ignored = defaultdict(list, _unused(ignored, applied))
    if file.unknown:
        ignored[NOT_WAN] += file.unknown
    for name, reason in file.broken:
        ignored[reason].append(name)
    if not applied:
        raise MismatchError(_nothing_applies(file, shapes, ignored, model_name))
    return Fit(file=file, changes=tuple(applied), ignored=dict(ignored))


def _unused(groups: Mapping[str, Sequence[str]], applied: Sequence[Change]) -> dict[str, list[str]]:
    """The names that no applied change uses, each once: two changes may share a tensor (a weight's and its bias's)."""
    seen = {name for change in applied for name in change.names.values()}
    found: dict[str, list[str]] = defaultdict(list)
    for reason, names in groups.items():
        for name in names:
            if name not in seen:
                found[reason].append(name)
                seen.add(name)
    return dict(found)


def _block(change: Change) -> int | None:
    """The transformer block that it is in, None outside the blocks."""
    match = re.match(r"blocks\.(\d+)\.", change.target)
    return int(match.group(1)) if match else None


BARS = "▁▂▃▄▅▆▇█"


def block_sizes(found: Fit, shapes: Shapes) -> list[float]:
    """How much each transformer block is changed at strength 1 (Frobenius norm), the layers outside the blocks last.
    Whole tensors that are replaced are left out: what they change depends on the model's weights.

    Raises:
        ModelFileError: a value is not finite.
        MismatchError: nothing is changed at all.
    """
    squares: dict[int | None, float] = defaultdict(float)
    for change in found.changes:
        squares[_block(change)] += _size(found.file, change, shapes[change.target]) ** 2
    if not all(math.isfinite(square) for square in squares.values()):
        raise ModelFileError(f"{found.file.name} holds values that are too large to be true. {DOWNLOAD_AGAIN}")
    if not any(squares.values()) and all(change.kind != "replacement" for change in found.changes):
        raise MismatchError(
            f"{found.file.name} changes nothing: every change in it is zero, as before a training. Choose another file."
        )
    outside = [squares.pop(None)] if None in squares else []
    return [squares[block] ** 0.5 for block in range(max(squares, default=-1) + 1)] + [s**0.5 for s in outside]


def _size(file: LoraFile, change: Change, shape: tuple[int, ...]) -> float:
    """Frobenius norm of what a change adds to a weight of zeros; of DoRA, of the product alone."""
    key = tuple(change.names.values())
    parts = dict(file.parts(change, torch.device("cpu")))  # also makes sure that all of it can be read
    if key in file.sizes or change.kind == "replacement":
        return file.sizes.get(key, 0.0)
    for role in ("dora", "magnitude"):
        parts.pop(role, None)
    if change.kind == "low rank" and "mid" not in parts and len(parts["down"]) <= min(parts["up"].shape[0], *shape[:1]):
        up, down = parts["up"].flatten(1), parts["down"].flatten(1)
        squares = ((up.T @ up) * (down @ down.T)).sum().clamp_min(0)
        file.sizes[key] = abs(scale_of(parts, len(down))) * float(squares.sqrt())
    else:
        file.sizes[key] = float(KINDS[change.kind].added(torch.zeros(shape), parts, 1.0).norm())
    return file.sizes[key]


def bars(sizes: Sequence[float]) -> str:
    """A small picture of numbers: one bar each, the largest full."""
    top = max(sizes, default=0) or 1
    return "".join(BARS[min(len(BARS) - 1, int(size / top * len(BARS)))] for size in sizes)


def _why_not(file: LoraFile, change: Change, shapes: Shapes) -> str | None:
    wanted = shapes.get(change.target)
    if wanted is None:
        if change.target.startswith("vace_"):
            return NO_VACE
        return NO_CLIP if re.search(r"k_img|v_img|^img_emb", change.target) else NOT_THERE
    header = file.checkpoint.header
    if _fits({role: header[name] for role, name in change.names.items()}, change.kind, wanted):
        return None
    return OTHER_INPUTS if change.target == "patch_embedding.weight" else OTHER_SHAPE


def _fits(parts: Mapping[str, TensorInfo], kind: str, wanted: tuple[int, ...]) -> bool:
    """Whether the tensors of a change make one of the wanted shape."""
    return _makes(tuple((role, info.shape) for role, info in parts.items()), kind, wanted)


@lru_cache(maxsize=4096)
def _makes(parts: tuple[tuple[str, tuple[int, ...]], ...], kind: str, wanted: tuple[int, ...]) -> bool:
    """The same of (role, shape), tried on shapes without data; once for all layers of the same sizes."""
    shapes = dict(parts)
    if math.prod(shapes.pop("alpha", ())) != 1:
        return False
    # No side of a good file is longer than the weight's longest: the work stays in proportion to the weight.
    if any(side > max(wanted, default=1) for shape in shapes.values() for side in shape):
        return False
    try:
        with torch.device("meta"):
            made = {role: torch.empty(shape) for role, shape in shapes.items()}
            return tuple(KINDS[kind].added(torch.empty(wanted), made, 1.0).shape) == wanted
    except (RuntimeError, ValueError, IndexError):
        return False


def _nothing_applies(file: LoraFile, shapes: Shapes, ignored: Mapping[str, Sequence[str]], model_name: str) -> str:
    causes = "; ".join(f"{len(names)} {reason}" for reason, names in ignored.items())
    width, total = shapes["blocks.0.self_attn.q.weight"][0], len(file.checkpoint.header)
    made_for = f" It was made for a {base_title(file)}; {model_name} is {width} wide." if file.width != width else ""
    return (
        f"{file.name}: none of its {total} tensors applies to {model_name} ({causes}).{made_for} Choose another LoRA "
        "or model."
    )


WIDTHS = {1536: "1.3B", 3072: "5B", 5120: "14B"}


def base_title(file: LoraFile) -> str:
    """What the shapes say the LoRA was made for."""
    size = WIDTHS.get(file.width, f"model {file.width} wide" if file.width else "model of unknown size")
    return f"{size} image-to-video or first-last-frame model of Wan 2.1" if file.has_clip else size


def describe(found: Fit) -> str:
    """One sentence for the node: what was applied, and by group what was not and why."""
    what = f"{' and '.join(found.file.dialects)}; {base_title(found.file)}"
    text = f"{found.file.name}: applied {found.applied:,} of {found.total:,} tensors ({what})"
    groups = [
        f"{len(names):,} {'ignored' if reason in HARMLESS else 'not applied'}: {reason}"
        for reason, names in found.ignored.items()
    ]
    return "; ".join([text, *groups]) + "."
