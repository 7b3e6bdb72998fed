"""One prediction at a time, for samplers that are not ours: they ask for a velocity whenever they like, and end when
they like. The device is held from the first prediction until :meth:`Predictor.close`."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from ..conditioning.clip_tokens import blank_context, clip_context
from ..conditioning.text import folded, text_context
from ..errors import InputError, MismatchError
from ..grid import PATCH_HW
from ..models.dit import VaceControl
from ..runtime.attention import using
from ..runtime.finite import check_finite
from ..runtime.memory import CHUNKS, Work
from ..runtime.ports import Ports
from ..runtime.residency import Changes, Resident
from ..runtime.stay import Stay, Stop
from ..sampling.loras import changes_at
from ..variants import Feature, WanVariant
from .load import ModelHandle
from .sample import ALMOST_ALL_NOISE, LORAS_FIRST, NOT_FINITE, extra_frames, work_of

SIDES = ("high", "low")
AHEAD = 64
"""Predictions that are laid out at once: how many a foreign sampler makes is not known before it is done."""
ROUNDING = 1e-5
"""Samplers compute the noise levels that they ask for; one that is this close to a step's is that step's."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a prediction is asked for.

    x ``[B, in_dim, T, h, w]`` with the condition channels; t in 0..1000, ``[B]``, or ``[B, T]`` one for each latent
    frame; text ``[B or 1, S, text_dim]``; clip ``[B or 1, S, img_dim]``; reference ``[B, C, h, w]``, subjects ``[B,
    C, n, h, w]``, vace contexts ``[1 or B, 96, T, h, w]``: normalised; camera ``[B, 24, T, H, W]`` in pixels.
    ``sigma``: the noise level, ``sigmas``: all of the run, where the caller knows them (LoRAs with a strength over the
    steps need them).
    """

    x: Tensor
    t: Tensor
    text: Tensor
    clip: Tensor | None = None
    reference: Tensor | None = None
    camera: Tensor | None = None
    vace: tuple[VaceControl, ...] = ()
    subjects: Tensor | None = None
    sigma: Tensor | float | None = None
    sigmas: Tensor | None = None


class Predictor:
    """The velocities of a model, or of one expert of a pair."""

    _holders: "WeakKeyDictionary[Resident, ref[Predictor]]" = WeakKeyDictionary()
    """Who holds the device with which weights: blocks of one model stream for one run only."""

    def __init__(self, model: ModelHandle, ports: Ports, *, side: str | None = None, boundary: float | None = None):
        """
        Args:
            model: the model; nothing of it is read yet.
            side: ``high`` or ``low``: that expert of a pair alone. None: both, changed by noise level.
            boundary: sigma at and above which the high-noise expert works; None: the model's own.
        """
        self.model, self._ports, self._side = model, ports, side
        self._boundary = model.variant.boundary if boundary is None else boundary
        self._stay: Stay | None = None
        self._open_for: tuple | None = None
        self._next = 0
        self._told: set[str] = set()

    @property
    def device(self) -> torch.device:
        return self.model.high.device

    @torch.no_grad()
    def predict(self, asked: Asked) -> Tensor:
        """Velocity (noise - x0), float32 ``[B, out_dim, T, h, w]``.

        Raises:
            MismatchError: text, CLIP tokens or another condition of another model or size.
            NonFiniteError: the model gave NaN.
            CapacityError: it does not fit.
        """
        cfg, (batch, _, frames, height, width) = self.model.variant.dit, asked.x.shape
        _check(asked, self.model.variant)
        level = float(asked.t.max()) / 1000
        side = self._expert(level)
        text, bias = text_context(asked.text.float(), cfg, batch), None
        if self.device.type == "cpu":
            text, bias = folded(text, cfg)
        features, clip = self.model.variant.features, None
        if Feature.CLIP in features and asked.clip is not None:
            clip = clip_context(asked.clip.float(), cfg, batch)
        elif asked.clip is not None:
            self._say(
                f"{self.model.variant.title} has no CLIP branch: the CLIP vision features are not used (harmless). "
                "Disconnect them."
            )
        elif Feature.BLANK in features:
            clip = blank_context(cfg, batch).to(asked.x.device)
        t = asked.t
        if t.ndim == 2:
            t = t.repeat_interleave(-(-height // PATCH_HW) * -(-width // PATCH_HW), dim=1)
        x = asked.x.float()
        x = x if asked.subjects is None else torch.cat((x, asked.subjects.to(x)), dim=2)
        number = self._open(tuple(x.shape), side, self._changes(side, asked), len(asked.vace))
        stay = self._stay

        def forward() -> Tensor:
            module, walk = stay.begin(number)
            made = module(
                x, t, text, clip, walk, bias, stay.plan.chunk, reference=asked.reference, camera=asked.camera,
                vace=asked.vace,
            )  # fmt: skip
            return made[:, :, :frames]

        try:
            with using(self.model.options.attention, self._ports.notify):
                velocity = stay.attempt(forward)
        except BaseException:
            self.close()  # a walk that did not end cannot be gone on with
            raise
        advice = LORAS_FIRST + NOT_FINITE if self.model.loras else NOT_FINITE
        check_finite(velocity, f"noise level {level:.3f}", self.model.name, advice)
        return velocity

    def smallest_work_bytes(self, batch: int, frames: int, height: int, width: int) -> int:
        """Memory that a prediction needs besides weights, at least; 0 where it is set aside already."""
        if self._open_for is not None:
            held, _, most, *size = self._open_for[0]
            if batch <= held and frames <= most and size == [height, width]:
                return 0
        return self._work(batch, frames, height, width).bytes_at(CHUNKS[-1], False)

    def close(self) -> None:
        """Give the device back: what streams is gone from it, whole weights stay with the host."""
        self._let_go()
        self._told.clear()

    def _let_go(self) -> None:
        stay, self._stay, self._open_for = self._stay, None, None
        if stay is not None:
            stay.close()

    def _say(self, sentence: str) -> None:
        """Once in a run."""
        if sentence not in self._told:
            self._told.add(sentence)
            self._ports.notify(sentence)

    def _expert(self, level: float) -> str:
        if self._side is not None or self.model.low is None:
            return self._side or "high"
        return "high" if level >= self._boundary else "low"

    def _changes(self, side: str, asked: Asked) -> Changes:
        """The LoRAs of this noise level. Steps are counted in the run that asks."""
        loras = self.model.loras
        strengths = [lora.strength_high if side == "high" else lora.strength_low for lora in loras]
        if all(one.is_constant for one in strengths):
            return changes_at(loras, side, 0, 1)
        if asked.sigma is None or asked.sigmas is None or len(asked.sigmas) < 2:
            raise InputError(
                "A LoRA has a strength over the steps, and this sampler does not tell its steps. Give the LoRA one "
                "strength, or use the Wan Core sampler."
            )
        if asked.sigmas[0] < ALMOST_ALL_NOISE or asked.sigmas[-1] > 0:
            self._say(
                "A LoRA's strength over the steps counts the steps of this sampler alone, not of the whole video."
            )
        steps = len(asked.sigmas) - 1
        step = int((asked.sigmas[:-1] >= float(asked.sigma) - ROUNDING).sum()) - 1
        return changes_at(loras, side, max(0, step), steps)

    def _open(self, shape: tuple[int, ...], side: str, changes: Changes, contexts: int) -> int:
        """Hold the device for such predictions; returns the number of the next."""
        wanted = (shape, side, changes, contexts)
        if self._covers(wanted) and self._next < AHEAD and not self._is_evicted(side):
            self._next += 1
            return self._next - 1
        self._let_go()
        first = self._weights(side)
        for weights in filter(None, (self.model.high, self.model.low)):
            holder = self._holders.get(weights, lambda: None)()
            if holder is not None and holder is not self:
                holder._let_go()
            self._holders[weights] = ref(self)
            if weights is not first and weights.where.type == "cpu":
                weights.wear({})  # what it wears at home is a copy of its weights
        stops = [Stop(weights=first, changes=changes)] * AHEAD
        if self._side is None and self.model.low is not None:  # the plan is for both
            other = SIDES[1 - SIDES.index(side)]
            stops.append(Stop(weights=self._weights(other), changes=changes_at(self.model.loras, other, 0, 1)))
        batch, _, *size = shape
        self._stay = Stay(stops, self._work(batch, *size, contexts), self._ports, self.model.options.budget_bytes)
        self._open_for, self._next = wanted, 1
        if not self._stay.plan.whole:
            self._say(self._stay.plan.describe())
        return 0

    def _covers(self, wanted: tuple) -> bool:
        """Whether the device is held for such predictions, or larger ones: the sides of guidance may differ."""
        if self._open_for is None:
            return False
        (held, *size), *same, most = self._open_for
        (batch, channels, frames, *area), *others, contexts = wanted
        larger = batch == held and frames <= size[1] and contexts <= most
        return larger and [channels, *area] == [size[0], *size[2:]] and same == others

    def _is_evicted(self, side: str) -> bool:
        """Whether a whole model has been taken off the device between two predictions, by what else a host loads."""
        return self._stay.plan.whole and self._weights(side).where != self.device

    def _weights(self, side: str) -> Resident:
        return self.model.high if side == "high" else self.model.low

    def _work(self, batch: int, frames: int, height: int, width: int, contexts: int = 1) -> Work:
        frames += extra_frames(self.model.variant)
        tokens = frames * -(-height // PATCH_HW) * -(-width // PATCH_HW)
        return work_of(self.model, batch, tokens, 1, contexts=contexts)


def _check(asked: Asked, variant: WanVariant) -> None:
    """What stands beside the latent must be the model's, of the latent's size."""
    cfg, side, own = variant.dit, variant.latent.stride_hw, variant.latent.channels
    _, channels, frames, height, width = asked.x.shape
    if channels != cfg.in_dim:
        raise MismatchError(
            f"The conditioning gives {variant.title} {channels - own} channels beside the noise; it takes "
            f"{cfg.in_dim - own}. Use the conditioning node of this model (Wan Core Image to Video, Fun Control or "
            "Camera Control)."
        )
    contexts = {f"VACE context {n}": one.context for n, one in enumerate(asked.vace, 1)}
    wanted = {
        "reference picture": (asked.reference, [own, height, width]),
        "camera path": (asked.camera, [24, frames, height * side, width * side]),
        **{what: (context, [cfg.vace_in_dim, frames, height, width]) for what, context in contexts.items()},
    }
    for what, (given, shape) in wanted.items():
        if given is not None and list(given.shape[1:]) != shape:
            raise MismatchError(
                f"The {what} is {list(given.shape[1:])}, the latent to sample needs {shape}. Give both nodes the same "
                "width, height, frames and VAE."
            )
    subjects = asked.subjects
    if subjects is not None and [subjects.shape[1], *subjects.shape[3:]] != [channels, height, width]:
        raise MismatchError(
            f"The pictures of subjects were encoded to {list(subjects.shape[1:])}, the latent to sample is "
            f"{[channels, frames, height, width]}. Give both nodes the same width, height and VAE."
        )
