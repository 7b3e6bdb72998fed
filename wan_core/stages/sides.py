"""What comes off the wires -> what the transformer is given: each side checked, in its channels, on its device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..conditioning.camera import camera_context
from ..conditioning.clip_tokens import blank_context, clip_context
from ..conditioning.control import check_control, check_start, plain_channels
from ..conditioning.known_frames import concat_channels
from ..conditioning.reference import reference_latent
from ..conditioning.subjects import subject_frames
from ..conditioning.text import folded, text_context
from ..conditioning.vace import VaceContext, blank, pack
from ..errors import InputError, MismatchError
from ..models.dit import VaceControl
from ..models.dit_block import TextMemory
from ..models.nag import NegativeText
from ..runtime.ports import Ports
from ..sampling.sigmas import shift_sigma
from ..variants import Feature, WanVariant

MAX_STRENGTH = 1000.0
ROUNDING = 1e-6
"""Of noise levels that are computed in two ways."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One side (positive or negative) as it comes off the wires, or one of several entries of a side.

    text ``[1 or B, S, text_dim]``; known_latent ``[1, C, T, h, w]`` not normalised; known_mask ``[1, 4, T, h, w]``, 1
    known; clip: CLIP tokens ``[1 or 2, S, dim]``; control_latent ``[1, C, T, h, w]`` and reference ``[1, C, 1, h, w]``
    not normalised; camera ``[1, 24, T, H, W]`` in pixels; vace: contexts, added in turn; subjects: latent frames
    ``[1, C, n, h, w]`` behind the clip, not normalised. Of entries that count at a noise level the velocities are
    averaged with their ``strength``; one counts from ``start`` to ``end``, shares of the schedule as native ComfyUI's
    timestep ranges have them (with the run's shift).
    """

    text: Tensor
    known_latent: Tensor | None = None
    known_mask: Tensor | None = None
    clip: Tensor | None = None
    control_latent: Tensor | None = None
    reference: Tensor | None = None
    camera: Tensor | None = None
    vace: tuple[VaceContext, ...] = ()
    subjects: Tensor | None = None
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Side:
    """One entry of a side, checked and on the device."""

    text: Tensor
    text_bias: Tensor | None
    concat: Tensor | None
    clip: Tensor | None
    reference: Tensor | None = None
    camera: Tensor | None = None
    vace: tuple[tuple[VaceContext, Tensor], ...] = ()
    """Each with what the model takes."""
    subjects: Tensor | None = None
    strength: float = 1.0
    sigmas: tuple[float, float] = (1.0, 0.0)
    """Noise levels between which it counts."""
    skip: frozenset[int] = frozenset()
    negative: NegativeText | None = None
    memory: TextMemory | None = None
    """Of its text, through the run; None: each step reads the text again."""

    def counts_at(self, sigma: float) -> bool:
        first, last = self.sigmas
        return bool(self.strength) and last - ROUNDING <= sigma <= first + ROUNDING

    def controls_at(self, step: int, steps: int) -> tuple[VaceControl, ...]:
        """The VACE contexts that count in a step."""
        return tuple(
            VaceControl(context=packed, strength=context.strength)
            for context, packed in self.vace
            if context.counts_at(step, steps)
        )


def prepared(
    side: Condition, variant: WanVariant, x: Tensor, ports: Ports, shift: float = 1.0, made: Tensor | None = None
) -> Side:
    """One entry of a side for a latent ``x``. Refuses what the model does not take, and says what it misses.

    Args:
        shift: of the schedule, for entries that count in a part of it.
        made: the noise mask ``[B or 1, 1, T, h, w]``; where a picture comes without a mask it is its mask, as natively.
    """
    cfg, batch = variant.dit, x.shape[0]
    _check_weight(side)
    check_control(side.control_latent, variant)
    concat = control = None
    if Feature.CONTROL in variant.features:  # looked at first: a start image that comes with it has its size
        control = plain_channels(side.control_latent, variant.latent, x, "control video")
    if Feature.CONCAT in variant.features:
        if side.known_latent is None:
            ports.notify(
                f"{variant.title} is an image model and has no image: it will make the video from text alone. "
                "Connect a start_image to Wan Core Image to Video."
            )
        mask = side.known_mask
        if mask is None and made is not None:
            mask = 1 - made.expand(-1, 4, -1, -1, -1)
        concat = concat_channels(side.known_latent, mask, variant.latent, x)
    elif Feature.START in variant.features:  # trained without a mask: the one that native nodes add says no more
        concat = plain_channels(side.known_latent, variant.latent, x, "start image")
        check_start(side.known_mask, variant, ports.notify)
    elif side.known_latent is not None:
        remedy = "Choose an image-to-video model, or remove the image-to-video node."
        if Feature.FIRST_FRAME in variant.features:
            remedy = (
                f"It takes its picture in the latent: give the image-to-video node the {variant.latent.vae}, and no "
                "other model."
            )
        elif Feature.VACE in variant.features:
            remedy = "Give the picture to Wan Core VACE, as the first frame of control_video with a mask of 0 there."
        raise MismatchError(
            f"The conditioning carries an image, but {variant.title} takes none beside the text. {remedy}"
        )
    if side.known_mask is not None and side.known_latent is None:
        raise MismatchError("The conditioning carries a mask without an image. Remove the node that adds the mask.")
    if control is not None:
        if side.control_latent is None:
            ports.notify(f"{variant.title} has no control video: only the text leads it. Connect Wan Core Fun Control.")
        concat = torch.cat((control, concat), dim=1)
    reference = reference_latent(side.reference, variant, x, ports.notify)
    camera = camera_context(side.camera, variant, x)
    if Feature.CAMERA in variant.features and camera is None:
        ports.notify(f"{variant.title} has no camera path: connect Wan Core Camera Path, or it moves as it likes.")
    clip = None
    if Feature.CLIP in variant.features and side.clip is not None:
        clip = clip_context(side.clip.float(), cfg, batch).to(x.device)
    elif Feature.BLANK in variant.features and side.clip is None:
        clip = blank_context(cfg, batch).to(x.device)
    elif side.clip is not None:
        ports.notify(
            f"{variant.title} has no CLIP branch: the CLIP vision features are not used (harmless). Disconnect them."
        )
    elif Feature.CLIP in variant.features:
        ports.notify(f"{variant.title} runs without CLIP vision features; with them it follows the picture better.")
    text, bias, memory = text_context(side.text.float(), cfg, batch), None, None
    if x.device.type == "cpu":  # both are a fifth of a short clip's work there; on a card they cost more than they save
        (text, bias), memory = folded(text, cfg), TextMemory()
    vace = _vace(side, variant, x, ports)
    return Side(
        text=text.to(x.device), text_bias=bias, concat=concat, clip=clip, reference=reference, camera=camera, vace=vace,
        subjects=subject_frames(side.subjects, variant, x), strength=side.strength, memory=memory,
        sigmas=(shift_sigma(1 - side.start, shift), shift_sigma(1 - side.end, shift)),
    )  # fmt: skip


def _check_weight(side: Condition) -> None:
    if not 0 <= side.strength <= MAX_STRENGTH:  # true for NaN too
        raise InputError(
            f"The strength of a conditioning must be from 0 to {MAX_STRENGTH:g}; got {side.strength}. 1 is usual."
        )
    if not 0 <= side.start <= side.end <= 1:
        raise InputError(
            f"A conditioning counts from a start to a later end, both 0 to 1; got {side.start} and {side.end}. Use 0 "
            "and 1 for the whole run."
        )


def counting(entries: Sequence[Side], sigma: float, side: str, where: str) -> list[Side]:
    """The entries of a side that count at a noise level; none is an error, told before the run begins."""
    found = [one for one in entries if one.counts_at(sigma)]
    if not found:
        raise InputError(
            f"No entry of the {side} conditioning counts in {where} (noise level {sigma:.3f}). Widen the timestep "
            "ranges until together they cover the run, and give one of them a strength above 0."
        )
    return found


def averaged(velocities: Sequence[Tensor], entries: Sequence[Side]) -> Tensor:
    """Their velocities, weighted by strength; of one entry its own, to the bit."""
    if len(entries) == 1:
        return velocities[0]
    total = sum(one.strength for one in entries)
    return sum(velocity * (one.strength / total) for velocity, one in zip(velocities, entries, strict=True))


def _vace(side: Condition, variant: WanVariant, x: Tensor, ports: Ports) -> tuple[tuple[VaceContext, Tensor], ...]:
    if Feature.VACE not in variant.features:
        if side.vace:
            raise MismatchError(
                f"The conditioning carries a VACE context, but {variant.title} takes none. Choose a VACE model, add a "
                "VACE module to a T2V model in the loader, or remove the VACE node."
            )
        return ()
    if not side.vace:
        ports.notify(
            f"{variant.title} has no VACE context: it will make the video from text alone. Connect a VACE node, or "
            "use a T2V model, which needs less."
        )
    contexts = side.vace or (blank(variant.latent, x),)
    return tuple((context, pack(context, variant.latent, x)) for context in contexts)


def check_sides(positive: Sequence[Condition], negative: Sequence[Condition], ports: Ports) -> None:
    """A picture on one side only is guided away from or towards: nearly always a forgotten wire."""
    if not negative:
        return
    carried = {
        "known_latent": ("the image", "image-to-video"), "control_latent": ("the control video", "Fun Control"),
        "clip": ("CLIP vision features", "image"),
        "reference": ("the reference picture", "Fun Control"), "camera": ("the camera path", "camera"),
        "vace": ("VACE contexts", "VACE"), "subjects": ("the pictures of subjects", "subject"),
    }  # fmt: skip
    for name, (what, node) in carried.items():
        has = [any(_carries(one, name) for one in side) for side in (positive, negative)]
        if has[0] != has[1]:
            only = "positive" if has[0] else "negative"
            ports.notify(f"Only the {only} conditioning carries {what}. Connect both outputs of the {node} node.")


def _carries(one: Condition, name: str) -> bool:
    value = getattr(one, name)
    return value is not None and value != ()
