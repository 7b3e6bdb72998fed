"""Model files -> handles. Only headers are read here; weights follow when a stage first needs them."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from ..configs import ClipVisionConfig, DitConfig, TaeConfig, Umt5Config, VaeConfig
from ..errors import MismatchError, ModelFileError
from ..models.clip_vision import ClipVision
from ..models.tae import WanTAE
from ..models.umt5 import Umt5Encoder
from ..models.vace import build_dit
from ..models.vae import WanVAE
from ..runtime.memory import WeightSizes
from ..runtime.ports import Compute, Notify
from ..runtime.prompt_cache import file_identity
from ..runtime.residency import Resident, block_path, walked_places
from ..sampling.guidance_options import PLAIN, GuidanceOptions
from ..sampling.loras import AddedLora
from ..text.tokenizer import Tokenizer, load_tokenizer
from ..variants import LATENTS, LatentSpec, WanVariant
from ..weights import precision
from ..weights.checkpoint import PICKLE_SUFFIXES, Checkpoint, open_checkpoint
from ..weights.detect import Detected, detect, storage
from ..weights.load import LoadReport, check_load, load_module, read_raw
from ..weights.vace_module import join_vace
from .file_names import check_pair_names, choose_row, is_lone_expert

log = logging.getLogger(__name__)

CLASSES = {"dit": build_dit, "umt5": Umt5Encoder, "clip_vision": ClipVision, "vae": WanVAE, "tae": WanTAE}
SLOTS = {"dit": "diffusion model", "umt5": "text encoder", "clip_vision": "CLIP vision encoder", "vae": "VAE"}
LOADERS = {
    "dit": "the model loader (models/diffusion_models)",
    "umt5": "the text encoder loader (models/text_encoders)",
    "clip_vision": "the CLIP vision loader (models/clip_vision)",
    "vae": "the VAE loader (models/vae)",
}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a model is run, where the user does not leave it to the runtime."""

    budget_bytes: int | None = None
    """What weights and work may take on the device together; None: what is free."""
    attention: str = "auto"
    """A backend of ``runtime/attention.py``."""


@dataclass(frozen=True, kw_only=True)
class ModelHandle:
    """What the model wire carries: a variant and its one or two experts. Light and immutable."""

    variant: WanVariant
    high: Resident
    low: Resident | None = None
    loras: tuple[AddedLora, ...] = ()
    options: RunOptions = RunOptions()
    guidance: GuidanceOptions = PLAIN

    @property
    def name(self) -> str:
        return self.high.name if self.low is None else f"{self.high.name} + {self.low.name}"


@dataclass(frozen=True, kw_only=True)
class TextEncoderHandle:
    """A umT5 encoder with its tokenizer."""

    config: Umt5Config
    weights: Resident
    tokenizer: Callable[[], Tokenizer]
    identity: str = ""
    """A hash of its file; empty: what it makes is not kept."""


@dataclass(frozen=True, kw_only=True)
class VaeHandle:
    """A VAE and the latent space it belongs to; or a tiny one, which only decodes."""

    config: VaeConfig | TaeConfig
    spec: LatentSpec
    weights: Resident
    normalised: bool = False
    """It decodes what the transformer makes, not what the VAE does."""

    @property
    def is_tiny(self) -> bool:
        return isinstance(self.config, TaeConfig)

    @property
    def approximate(self) -> str:
        """What is said of a tiny one wherever it is used."""
        return (
            f"An approximate decoder: quick, softer than the VAE. For the final video decode with the {self.spec.vae}."
        )


@dataclass(frozen=True, kw_only=True)
class ClipVisionHandle:
    """The CLIP visual tower."""

    config: ClipVisionConfig
    weights: Resident


def load_model(
    path: Path,
    low_noise_path: Path | None = None,
    *,
    variant: str = "auto",
    compute: Compute,
    dtype: str = "auto",
    notify: Notify,
    module: Path | None = None,
    low_noise_module: Path | None = None,
) -> ModelHandle:
    """One file, or the high-noise and the low-noise file of a pair.

    Args:
        path: the model, or the high-noise expert.
        low_noise_path: the low-noise expert; makes the model a pair.
        variant: a row's name to choose among those that the file can be; ``auto`` chooses by pair and file name.
        compute: device and its abilities.
        dtype: ``auto`` (the precision policy), ``fp32``, ``bf16`` or ``fp16``.
        notify: told what was found.
        module: a file of VACE blocks that is added to the model; of a pair to the high-noise expert.
        low_noise_module: the same for the low-noise expert; None: ``module`` is added to both.
    """
    _check_modules(low_noise_path, module, low_noise_module, notify)
    high_file, high = _identify(path, "dit", compute.mapped, module)
    rows = [row for row in high.variants if (row.experts == 2) == (low_noise_path is not None)]
    if low_noise_path is None and is_lone_expert(path, high.variants, variant):
        rows = []
    low_weights = None
    if low_noise_path is not None:
        low_file, low = _identify(low_noise_path, "dit", compute.mapped, low_noise_module or module)
        if low.config != high.config:
            raise MismatchError(
                f"{_named(path, high)} and {_named(low_noise_path, low)} have different shapes and cannot be one "
                f"pair: {_differences(high.config, low.config)}. Choose the high-noise and the low-noise file of one "
                "model."
            )
        if not rows:
            raise MismatchError(
                f"{path.name} is {_titles(high.variants)}, which has a single model; leave the low-noise file at "
                "'none'."
            )
        check_pair_names(path, low_noise_path, rows, notify)
        low_weights = _resident(low_file, low, compute, dtype)
    elif not rows:
        # One expert of a pair by itself: usable in a graph that switches by hand, so allowed and said.
        rows = [replace(row, boundary=None) for row in high.variants if row.experts == 2]
        notify(
            f"{path.name} is one expert of a pair ({_titles(rows)}). Choose the other file as low_noise_model, or one "
            "expert does all steps."
        )
    row = choose_row(rows, variant, path)
    notify(row.title)
    return ModelHandle(variant=row, high=_resident(high_file, high, compute, dtype), low=low_weights)


def load_text_encoder(path: Path, *, compute: Compute, dtype: str = "auto") -> TextEncoderHandle:
    """A umT5 encoder. Its tokenizer comes from the file, or from ``spiece.model`` / ``tokenizer.json`` beside it."""
    checkpoint, found = _identify(path, "umt5", compute.mapped)
    source = _tokenizer_source(checkpoint, found)

    def tokenizer() -> Tokenizer:
        made = load_tokenizer(read_raw(checkpoint, source) if isinstance(source, str) else source)
        if made.vocab > found.config.vocab:
            raise MismatchError(
                f"The tokenizer has {made.vocab} pieces, the encoder {path.name} knows {found.config.vocab}: they do "
                "not belong together. Use the tokenizer of google/umt5-xxl."
            )
        return made

    weights = _resident(checkpoint, found, compute, dtype)
    identity = file_identity(checkpoint.files)
    return TextEncoderHandle(config=found.config, weights=weights, tokenizer=_once(tokenizer), identity=identity)


def load_vae(path: Path, *, compute: Compute, dtype: str = "auto", notify: Notify = log.info) -> VaeHandle:
    """A Wan 2.1 or 2.2 VAE or a tiny one, told apart by its latent channels."""
    checkpoint, found = _identify(path, "vae", compute.mapped)
    spec = LATENTS.get(found.config.z_dim)
    if spec is None:
        raise ModelFileError(
            f"{path.name} is a Wan VAE of {found.config.z_dim} latent channels; known are "
            f"{' and '.join(str(n) for n in LATENTS)}. Use the Wan 2.1 VAE, or for the 5B model the Wan 2.2 VAE."
        )
    normalised = found.kind == "tae" and _takes_normalised(path, checkpoint, notify)
    weights = _resident(checkpoint, found, compute, dtype)
    handle = VaeHandle(config=found.config, spec=spec, weights=weights, normalised=normalised)
    if handle.is_tiny:
        notify(handle.approximate)
    return handle


def _takes_normalised(path: Path, checkpoint: Checkpoint, notify: Notify) -> bool:
    """Tiny VAEs of both scales have the same layers: madebyollin's (``taew2_1``, published in fp16) take normalised
    latents, LightX2V's (``lighttaew2_1``, in fp32) those of a LATENT. The name tells them apart; without one the number
    format, as in Comfy-Org/ComfyUI ``comfy/sd.py``; where it is another than was published, that is said."""
    name, is_half = path.name.lower(), storage(checkpoint.header, checkpoint.metadata).dtype is torch.float16
    normalised = "light" not in name if "taew" in name else is_half
    if "taew" not in name or normalised != is_half:
        read = "taew2, of normalised latents" if normalised else "lighttaew2, of latents as they are"
        notify(
            f"{path.name} is read as {read}; its name and its number format together do not say so. If the colours are "
            "wrong, it is the other: use the file, and its name, as it was published."
        )
    return normalised


def vae_channels(path: Path) -> int | None:
    """Latent channels of a VAE file, from its header alone; None for a pickle, which has no header to read."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return None
    with open_checkpoint(path) as checkpoint:
        found = detect(checkpoint.header, checkpoint.metadata, name=path.name, kind="vae")
    return found.config.z_dim if found.slot == "vae" else None


def load_clip_vision(path: Path, *, compute: Compute, dtype: str = "auto") -> ClipVisionHandle:
    """The CLIP ViT-H visual tower of Wan 2.1 image models."""
    checkpoint, found = _identify(path, "clip_vision", compute.mapped)
    return ClipVisionHandle(config=found.config, weights=_resident(checkpoint, found, compute, dtype))


def _check_modules(low: Path | None, module: Path | None, low_module: Path | None, notify: Notify) -> None:
    """VACE modules go with the experts that there are."""
    if low_module is not None and (low is None or module is None):
        what = "no low_noise_model" if low is None else "module_name is 'none'"
        raise MismatchError(
            f"low_noise_module is {low_module.name}, but {what}. A single model takes its module as module_name; a "
            "pair takes one for each expert."
        )
    if low is not None and module is not None and low_module is None:
        notify(f"The VACE module {module.name} is added to both experts; low_noise_module takes one of its own.")


def _identify(path: Path, slot: str, mapped: bool = True, module: Path | None = None) -> tuple[Checkpoint, Detected]:
    """Open a file and make sure that it is what the slot takes; with a VACE module, both as one."""
    checkpoint = open_checkpoint(path, mapped)
    found = detect(checkpoint.header, checkpoint.metadata, name=path.name, kind=slot)
    if found.slot != slot:
        raise ModelFileError(
            f"{path.name} is a Wan {SLOTS[found.slot]} file, not a {SLOTS[slot]}. Load it with {LOADERS[found.slot]}."
        )
    if module is not None:
        checkpoint = join_vace(checkpoint, found, open_checkpoint(module, mapped))
        found = detect(checkpoint.header, checkpoint.metadata, name=f"{path.name} with {module.name}", kind=slot)
    return checkpoint, found


def _resident(checkpoint: Checkpoint, found: Detected, compute: Compute, dtype: str) -> Resident:
    file_dtype = storage(checkpoint.header, checkpoint.metadata).dtype
    policy = precision.policy(found.slot, file_dtype, compute.device.type, compute.bf16, dtype)
    blank = _blank(found)
    plan = check_load(blank, checkpoint, found)  # an incomplete file is refused now, not when it is first used

    def build() -> torch.nn.Module:
        module = _blank(found)
        _log_unused(checkpoint.path.name, load_module(module, checkpoint, found, policy))
        checkpoint.close()  # what the module holds stays mapped; what it does not need goes
        return module

    size = sum(info.nbytes for name, info in checkpoint.header.items() if name.startswith(found.prefix))
    sizes = weight_sizes(
        blank, {name: checkpoint.header[source.names[0]].dtype for name, source in plan.weights.items()}, policy
    )
    return Resident(checkpoint.path.name, size, compute.device, build, policy.compute, sizes)


def weight_sizes(blank: torch.nn.Module, stored: Mapping[str, torch.dtype], policy: precision.Policy) -> WeightSizes:
    """Bytes of each block and of the rest, from the shapes of a network and the dtypes in its file's header."""
    places, at_home = walked_places(blank), getattr(blank, "stays_home", ())
    blocks, rest = [0] * len(places), 0
    for name, tensor in blank.state_dict().items():
        itemsize = policy.dtype_of(name).itemsize
        if tensor.ndim != 4:  # two-dimensional convolutions are decoded when they are loaded
            itemsize = min(stored[name].itemsize, itemsize)
        nbytes = tensor.numel() * itemsize
        place = places.get(block_path(name))
        if place is not None:
            blocks[place] += nbytes
        elif not name.startswith(tuple(at_home)):
            rest += nbytes
    return WeightSizes(blocks=tuple(blocks), rest=rest)


def _log_unused(name: str, report: LoadReport) -> None:
    """Every tensor that was not needed, by reason."""
    for reason, count in Counter(reason for _, reason in report.ignored).items():
        log.info("%s: %d tensors not needed: %s", name, count, reason)


class _WithoutValues(TorchFunctionMode):
    """Modules are built without drawing initial values: on the meta device that would import half a compiler."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _blank(found: Detected) -> torch.nn.Module:
    """The network of a file, with shapes and no data."""
    with torch.device("meta"), _WithoutValues():
        return CLASSES[found.kind](found.config)


@lru_cache(maxsize=8)
def dit_shapes(config: DitConfig) -> dict[str, tuple[int, ...]]:
    """Official name -> shape of every tensor of a transformer."""
    with torch.device("meta"), _WithoutValues():
        return {name: tuple(tensor.shape) for name, tensor in build_dit(config).state_dict().items()}


@lru_cache(maxsize=8)
def dit_places(config: DitConfig) -> dict[str, int]:
    """Path of every block of a transformer -> its number in the order in which they are walked."""
    with torch.device("meta"), _WithoutValues():
        return walked_places(build_dit(config))


def _titles(rows: Sequence[WanVariant]) -> str:
    return " or ".join(row.title for row in rows)


def _named(path: Path, found: Detected) -> str:
    """A file of a pair, and what it is."""
    return f"{path.name} ({_titles([row for row in found.variants if row.experts == 2] or found.variants)})"


def _differences(a, b) -> str:
    pairs = ((name, getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)
    return ", ".join(f"{name} {x} and {y}" for name, x, y in pairs if x != y)


def _tokenizer_source(checkpoint: Checkpoint, found: Detected) -> str | Path:
    """The tensor of the file that holds the tokenizer, or the file beside it; neither is read yet."""
    name = f"{found.prefix}spiece_model" if f"{found.prefix}spiece_model" in checkpoint.header else "spiece_model"
    if name in checkpoint.header:
        return name
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    places = [folder, folder / "google" / "umt5-xxl", folder.parent / "tokenizer", folder / "tokenizer"]
    for place in places:
        for file in ("spiece.model", "tokenizer.json"):
            if (place / file).is_file():
                return place / file
    raise ModelFileError(
        f"{checkpoint.path.name} carries no tokenizer (no 'spiece_model' in it), and there is no spiece.model or "
        f"tokenizer.json in {folder}. Use umt5_xxl_fp8_e4m3fn_scaled.safetensors, or put spiece.model of "
        "google/umt5-xxl beside the file."
    )


def _once(make: Callable[[], Tokenizer]) -> Callable[[], Tokenizer]:
    made: list[Tokenizer] = []

    def get() -> Tokenizer:
        if not made:
            made.append(make())
        return made[0]

    return get
