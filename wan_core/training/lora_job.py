"""One training of a LoRA from beginning to end, the same for the command line and for ComfyUI."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import InputError, MismatchError, TrainingError
from ..models.dit import WanDiT
from ..runtime.ports import Ports, no_progress
from ..runtime.residency import Resident
from ..stages.load import ModelHandle, TextEncoderHandle, VaeHandle
from ..variants import VARIANTS, Feature
from .clips import Clips
from .data_set import DataSet, fingerprint
from .dit_task import DitSettings
from .lock import locked
from .loop import LoopSettings, Watch, train
from .lora_task import FACTS, LoraSettings, LoraTask, add_trained_layers
from .optim import OptimSettings
from .show import Show, ShowSettings, is_image_model
from .state import whole_file

EVERYTHING_BYTES = 1 << 50
"""More than any device has."""


@dataclass(frozen=True, kw_only=True)
class LoraRecipe:
    """How a LoRA is trained. ``held``: clips that samples are made for, None: those that are learned."""

    lora: LoraSettings
    dit: DitSettings
    loop: LoopSettings
    optim: OptimSettings
    show: ShowSettings
    held: Clips | None = None
    compile: bool = False


def train_lora(
    model: ModelHandle,
    data: DataSet,
    out: Path,
    recipe: LoraRecipe,
    ports: Ports,
    target: Path | None = None,
    watch: Watch = lambda losses: None,
) -> Path:
    """Train a LoRA on a model of one expert, from the newest state in ``out`` if there is one.

    Args:
        model: it stays as it is.
        out: folder of the run: states, ``loss.png``, samples, ``lora.safetensors`` when it is finished.
        target: where the finished file goes too; a file that is there must be of the same training.
        watch: told the loss curve as it grows.

    Returns:
        The finished file.

    Raises:
        InputError, MismatchError: the model cannot be trained, or not with this data set.
        TrainingError: see :func:`train`; the folder is in use; ``target`` is another file.
    """
    check_model(model, recipe.dit)
    check_fit(model, data.vae, data.encoder)
    # A host may call from inference mode, whose tensors no gradient can pass.
    with torch.inference_mode(False), torch.enable_grad(), repeatable(model.high.device):
        dit = fresh_network(model.high)
        facts_model = fingerprint(model.high.name, dit)
        add_trained_layers(dit, recipe.lora, recipe.dit.seed)
        chosen = asdict(recipe.dit) | data.source() | {"lora": asdict(recipe.lora), "compile": recipe.compile}
        chosen |= {"model": facts_model, "text_encoder": data.text_key()}
        run = _run_id(chosen, recipe)
        if target is not None:
            _check_target(target, run)
        with locked(out):
            # The bar is that of the steps; mostly all is encoded already.
            clips = data.encoded(replace(ports, progress=no_progress), images=is_image_model(model.variant.dit))
            facts = asdict(recipe.lora) | {"base": model.high.name, "clips": len(clips), "run": run}
            facts["settings"] = asdict(recipe.dit)
            _bring(dit, model.high.device, data, ports)
            if recipe.compile:
                for block in dit.blocks:
                    block.compile()
            held = data.clips if recipe.held is None else recipe.held
            show = Show(data.vae, data.encoder, held, recipe.show, base=model, ports=ports)
            task = LoraTask(dit, clips, recipe.dit, facts=facts, show=show, check_cancel=ports.check_cancel)
            (path,) = train(task, out, recipe.loop, recipe.optim, chosen, ports, watch)
            return path if target is None else _published(path, target)


def fresh_network(weights: Resident) -> WanDiT:
    """A network of its own out of the same file: it is changed, and lives outside the inference mode that the one on
    the wire may have been read in. On the CPU, mapped, it takes no memory of its own."""
    return weights._build().train(False).requires_grad_(False)


def expert_of(model: ModelHandle, side: str) -> tuple[ModelHandle, tuple[float, float]]:
    """One expert by itself, and the noise levels that it works in.

    Args:
        side: ``all`` (of a single model), ``high`` or ``low``; for a pair, or a file of one that is loaded alone.

    Raises:
        InputError: the model has no such side.
    """
    row = next(row for row in VARIANTS if row.name == model.variant.name)
    if row.boundary is None and side != "all":
        raise InputError(f"{model.name} is a single model, which has no {side}-noise expert. Choose all.")
    if row.boundary is not None and side == "all":
        raise InputError(
            f"{model.name} is one expert of a pair. Choose high noise or low noise, whichever it is, or load both."
        )
    weights = model.low if side == "low" and model.low is not None else model.high
    alone = replace(model, high=weights, low=None, variant=replace(model.variant, boundary=None))
    if side == "all":
        return alone, (0.0, 1.0)
    return alone, (row.boundary, 1.0) if side == "high" else (0.0, row.boundary)


def check_model(model: ModelHandle, settings: DitSettings) -> None:
    """Refuse a model that carries more than its file, or computes in what cannot be trained in."""
    if model.loras:
        raise InputError(
            f"{model.name} has a LoRA on it; what is trained would fit only together with it. Connect the model as it "
            "comes from its loader."
        )
    if model.high.compute_dtype is torch.float16:
        raise InputError(
            f"{model.name} computes in fp16, in which gradients vanish. Load it with precision bf16 or fp32."
        )
    if settings.bf16 and model.high.compute_dtype is not torch.bfloat16:
        raise InputError(f"{model.name} computes in {model.high.compute_dtype}; bf16 training takes a bf16 model.")


def check_fit(model: ModelHandle, vae: VaeHandle, encoder: TextEncoderHandle) -> None:
    """Refuse files that do not belong together, and a model whose inputs the clips cannot give."""
    config = model.variant.dit
    if config.out_dim != vae.spec.channels:
        raise MismatchError(
            f"{model.name} makes latents of {config.out_dim} channels, {vae.weights.name} has {vae.spec.channels}. "
            f"Use the {model.variant.latent.vae}."
        )
    if config.text_dim != encoder.config.dim:
        raise MismatchError(
            f"{model.name} reads text of width {config.text_dim}, {encoder.weights.name} gives {encoder.config.dim}. "
            "Use the text encoder that the model was trained with."
        )
    features = model.variant.features
    if {Feature.CONTROL, Feature.CAMERA, Feature.VACE} & features or {Feature.CONCAT, Feature.FIRST_FRAME} <= features:
        raise InputError(
            f"{model.name} ({model.variant.title}) takes a control video, a camera path or a picture in two places, "
            "which a folder of clips does not give. Train on a T2V or I2V model of the same size: its layers have the "
            "same shapes, so the LoRA fits."
        )
    if Feature.CLIP in model.variant.features:
        raise InputError(
            f"{model.name} takes CLIP tokens of a picture, which are not trained here. Use a model without them "
            "(T2V, or the I2V of Wan 2.2)."
        )


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """On a card, only kernels that give the same bits each time, where there are such: a run that is broken off goes on
    as if it had not been."""
    if device.type == "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _bring(dit: nn.Module, device: torch.device, data: DataSet, ports: Ports) -> None:
    """The network to where it computes, and everything else off it: gradients need all the room. It is not in the
    host's list, so that nothing evicts it half-way."""
    if device.type != "cpu":
        ports.memory.release(data.vae.weights)
        ports.memory.release(data.encoder.weights)
        ports.memory.make_room(EVERYTHING_BYTES, device, empty=True)
    dit.to(device)


def _run_id(chosen: dict, recipe: LoraRecipe) -> str:
    """Two trainings of the same id give the same file."""
    everything = chosen | asdict(recipe.optim) | {"accumulate": recipe.loop.accumulate}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]


def _check_target(target: Path, run: str) -> None:
    if target.exists() and _trained_in(target) != run:
        raise TrainingError(
            f"{target.name} is there already and is not of this training (its settings or clips are others). Choose "
            "another name, or remove it."
        )


def _trained_in(path: Path) -> str | None:
    """The id of the training that a file is of."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})[FACTS])["run"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def _published(path: Path, target: Path) -> Path:
    with whole_file(target) as part:
        shutil.copyfile(path, part)
    return target
