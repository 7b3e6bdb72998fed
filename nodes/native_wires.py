"""CONDITIONING and LATENT, ComfyUI's own wires: read into what ``wan_core`` takes, and written as native nodes do."""

import torch
from torch import Tensor

from ..wan_core.conditioning.vace import VaceContext, with_empty_references
from ..wan_core.errors import InputError, MismatchError
from ..wan_core.runtime.ports import Notify
from ..wan_core.stages.sample import StartLatent
from ..wan_core.stages.sides import Condition
from ..wan_core.variants import LATENTS, LatentSpec
from .host import host_ports
from .wires import ClipVisionOutput

_VACE = ("vace_frames", "vace_mask", "vace_strength")
VACE_OURS = "wan_core_vace"
"""Beside native ComfyUI's lists, one entry a context: (start, end, reference pictures)."""
_HONOURED = {
    "concat_latent_image", "concat_mask", "concat_mask_index", "clip_vision_output", "reference_latents",
    "camera_conditions", "time_dim_concat", "strength", "start_percent", "end_percent", "clip_start_percent",
    "clip_end_percent", *_VACE, VACE_OURS,
}  # fmt: skip
_INERT = {"pooled_output", "attention_mask"}
_NEUTRAL = {"set_area_to_bounds": False}
BEHIND = "behind Wan Core Model to MODEL"


def read_conditioning(conditioning: list, side: str) -> list[Condition]:
    """CONDITIONING -> the entries that the sampler takes; whatever it does not know is refused by name, never
    dropped."""
    if not conditioning:
        raise InputError(f"The {side} conditioning has no entry. Connect a Text Encode node.")
    return [_read_entry(cross_attn, extra, side) for cross_attn, extra in conditioning]


def _read_entry(cross_attn: Tensor, extra: dict, side: str) -> Condition:
    unknown = [
        key
        for key, value in extra.items()
        if value is not None and key not in _HONOURED | _INERT and not (key in _NEUTRAL and value == _NEUTRAL[key])
    ]
    if unknown:
        raise MismatchError(
            f"The {side} conditioning carries {', '.join(sorted(unknown))}, which the Wan Core sampler does not know. "
            f"Remove the node that adds it, or sample with native KSampler {BEHIND}."
        )
    mask = extra.get("concat_mask")
    output = extra.get("clip_vision_output")
    control, known = _halves(extra.get("concat_latent_image"))
    _check_mask_index(extra.get("concat_mask_index"), control, side)
    return Condition(
        text=cross_attn,
        known_latent=known,
        known_mask=None if mask is None else 1.0 - _four_channels(mask),
        clip=None if output is None else output.penultimate_hidden_states,
        control_latent=control,
        reference=_last_reference(extra.get("reference_latents"), side),
        camera=extra.get("camera_conditions"),
        vace=read_vace(extra, side),
        subjects=extra.get("time_dim_concat"),
        strength=float(extra.get("strength", 1.0)),
        start=max(extra.get("start_percent", 0.0), extra.get("clip_start_percent", 0.0)),
        end=min(extra.get("end_percent", 1.0), extra.get("clip_end_percent", 1.0)),
    )


def _halves(latent: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What native nodes put beside the noise -> the latent of a control video, and of known frames. Two latents side
    by side are both, one is known frames."""
    if isinstance(latent, Tensor) and latent.ndim == 5 and latent.shape[1] in [2 * channels for channels in LATENTS]:
        return latent.chunk(2, dim=1)
    return None, latent


def _last_reference(references: list | None, side: str) -> Tensor | None:
    """Native nodes append to a list, of which native Wan models take the last."""
    if references is None:
        return None
    if not isinstance(references, list) or not references:
        raise InputError(
            f"The {side} conditioning carries reference_latents that are no list of latents. Remove the node that adds "
            "them."
        )
    if len(references) > 1:
        host_ports().notify(f"Of {len(references)} reference pictures the last one is used: Wan takes one.")
    return references[-1]


def _check_mask_index(index: int | None, control: Tensor | None, side: str) -> None:
    """Native nodes say behind which channel the mask stands; the model's own order is what counts here."""
    if index and (control is None or index != control.shape[1]):
        raise MismatchError(
            f"The {side} conditioning puts its mask behind channel {index}; Wan models have it in front of the known "
            "frames and behind a control video. Use Wan Core Fun Control, or sample with the native KSampler."
        )


def read_vace(extra: dict, side: str) -> tuple[VaceContext, ...]:
    """The VACE contexts of one side, from native nodes or ours, in the order in which they were added."""
    frames, masks, strengths = (extra.get(name) for name in _VACE)
    if frames is None:
        if masks is not None or strengths is not None:
            raise MismatchError(
                f"The {side} conditioning carries vace_mask or vace_strength without vace_frames, which the Wan Core "
                "sampler does not know. Remove the node that adds it, or sample with the native KSampler."
            )
        return ()
    masks = [None] * len(frames) if masks is None else masks
    strengths = [1.0] * len(frames) if strengths is None else strengths
    if not len(frames) == len(masks) == len(strengths):
        raise MismatchError(
            f"The {side} conditioning carries {len(frames)} VACE contexts, {len(masks)} masks and {len(strengths)} "
            "strengths. Remove the node that changes one of them."
        )
    return tuple(
        VaceContext(latent=latent, mask=mask, strength=float(strength), start=start, end=end)
        for latent, mask, strength, (start, end, _) in zip(frames, masks, strengths, _vace_ours(extra), strict=True)
    )


def _vace_ours(extra: dict) -> list[tuple[float, float, int]]:
    """Our entry of each context; those of native nodes count throughout, with no reference picture known of."""
    count = len(extra.get("vace_frames") or ())
    ours = list(extra.get(VACE_OURS) or ())[:count]
    return ours + [(0.0, 1.0, 0)] * (count - len(ours))


def write_vace(conditioning: list, context: VaceContext, references: int, spec: LatentSpec) -> tuple[list, int]:
    """Add a context to CONDITIONING, after those that are there, and make room for the most reference pictures of any.

    Returns:
        The conditioning, and the number of latent frames before the clip.
    """
    made, before = [], references
    for cross_attn, extra in conditioning:
        entries = [*_vace_ours(extra), (context.start, context.end, references)]
        most = max(count for *_, count in entries)
        values = {name: [*(extra.get(name) or ())] for name in _VACE}
        for name, value in zip(_VACE, (context.latent, context.mask, context.strength)):
            values[name].append(value)
        pairs = [
            with_empty_references(latent, mask, most - count, spec)
            for latent, mask, (*_, count) in zip(*(values[name] for name in _VACE[:2]), entries, strict=True)
        ]
        values["vace_frames"], values["vace_mask"] = ([*each] for each in zip(*pairs))
        lengths = [latent.shape[2] for latent in values["vace_frames"]]
        if len(set(lengths)) > 1:
            raise MismatchError(
                f"The VACE contexts have {', '.join(map(str, lengths))} latent frames. Give every VACE node the same "
                "number of frames, and native ones the same number of reference pictures."
            )
        values[VACE_OURS] = [(start, end, most) for start, end, _ in entries]
        made.append([cross_attn, {**extra, **values}])
        before = max(before, most)
    return made, before


def _four_channels(mask: Tensor) -> Tensor:
    if mask.ndim != 5:
        raise MismatchError(
            f"The mask of the image conditioning is {list(mask.shape)}; a video's is [batch, 1 or 4, frames, height, "
            "width]. Use an image-to-video node instead of one for pictures."
        )
    return mask if mask.shape[1] == 4 else mask.mean(dim=1, keepdim=True).repeat(1, 4, 1, 1, 1)


def write_known_frames(conditioning: list, latent: Tensor, known_mask: Tensor) -> list:
    """Add known frames to CONDITIONING as native image-to-video nodes do (there 1 means: to be made)."""
    return _with_values(conditioning, {"concat_latent_image": latent, "concat_mask": 1.0 - known_mask})


def write_control(conditioning: list, control: Tensor, known: Tensor, known_mask: Tensor) -> list:
    """Add a control video and known frames to CONDITIONING as native Fun Control nodes do."""
    beside = torch.cat((control, known), dim=1)
    index = {"concat_mask_index": control.shape[1]}
    return _with_values(conditioning, {"concat_latent_image": beside, "concat_mask": 1.0 - known_mask, **index})


def write_reference(conditioning: list, latent: Tensor) -> list:
    """Add a reference picture ``[1, C, 1, h, w]`` to CONDITIONING, behind any that is there, as native nodes do."""
    return [[cross, {**more, "reference_latents": [*more.get("reference_latents", []), latent]}] for cross, more in
            conditioning]  # fmt: skip


def write_subjects(conditioning: list, latent: Tensor) -> list:
    """Add pictures of subjects ``[1, C, n, h, w]`` to CONDITIONING as the native Phantom node does."""
    return _with_values(conditioning, {"time_dim_concat": latent})


def write_camera(conditioning: list, embedding: Tensor) -> list:
    return _with_values(conditioning, {"camera_conditions": embedding})


def write_clip_vision(conditioning: list, tokens: Tensor) -> list:
    return _with_values(conditioning, {"clip_vision_output": ClipVisionOutput(tokens)})


def _with_values(conditioning: list, values: dict) -> list:
    return [[cross_attn, {**extra, **values}] for cross_attn, extra in conditioning]


REFERENCES = "wan_core_references"
"""In a LATENT: (latent frames of reference pictures before the clip, latent frames in all)."""
_LATENT_INERT = {"downscale_ratio_spacial", "downscale_ratio_temporal", "fps", "type", REFERENCES}


def read_latent(latent: dict) -> StartLatent:
    """LATENT -> what the sampler starts from."""
    unknown = sorted(set(latent) - _LATENT_INERT - {"samples", "noise_mask", "batch_index"})
    if unknown:
        raise MismatchError(
            f"The latent carries {', '.join(unknown)}, which the Wan Core sampler does not know. Remove the node that "
            "adds it, or sample with the native KSampler."
        )
    samples = latent.get("samples")
    if not isinstance(samples, Tensor) or samples.is_nested:
        kind = "several tensors" if isinstance(samples, Tensor) else f"a {type(samples).__name__}"
        raise MismatchError(
            f"The latent holds {kind}, not one tensor of a video. Connect a Wan Core Empty Latent, or encode a clip."
        )
    return StartLatent(
        samples=samples.unsqueeze(2) if samples.ndim == 4 else samples,
        noise_mask=latent.get("noise_mask"),
        batch_index=latent.get("batch_index"),
    )


def references_before(latent: dict) -> int:
    """Latent frames of reference pictures before the clip; 0 where another node (TrimVideoLatent) has cut frames."""
    count, total = latent.get(REFERENCES) or (0, 0)
    return count if latent["samples"].ndim == 5 and latent["samples"].shape[2] == total else 0


def without_references(latent: dict, notify: Notify) -> Tensor:
    """The samples of the clip alone: latent frames of reference pictures before it are cut off, and that is said."""
    samples, before = latent["samples"], references_before(latent)
    if before:
        notify(f"The {before} latent frames of reference pictures before the clip are cut off.")
        samples = samples[:, :, before:]
    return samples


def write_latent(source: dict, samples: Tensor, fps: int) -> dict:
    """The sampled LATENT; everything native that the source carried goes on, and the fps with it."""
    kept = {key: value for key, value in source.items() if not key.startswith("downscale_ratio")}
    return {**kept, "samples": samples, "fps": fps}
