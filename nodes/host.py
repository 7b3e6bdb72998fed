"""The only file that talks to ComfyUI: files, devices, memory, progress, notices and cancel.

Uses only what ComfyUI 0.3.64 and 0.33.0 both have, by keyword.
"""

import json
import logging
import os
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import comfy.model_management as mm
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer

from ..wan_core.errors import CapacityError, InputError, OutputError, gigabytes
from ..wan_core.media.names import check_below, check_new, is_inside
from ..wan_core.media.part import Place
from ..wan_core.media.read import CONTAINERS
from ..wan_core.runtime.memory import (
    ResidencyPlan,
    WeightSizes,
    Work,
    plan_residency,
    streamed_plan,
    whole_plan,
)
from ..wan_core.runtime.ports import Compute, Notify, Ports, Progress, no_progress
from ..wan_core.runtime.prompt_cache import PromptCache
from ..wan_core.runtime.rates import rates_of
from ..wan_core.runtime.residency import Resident
from ..wan_core.stages.preview import latent_to_rgb
from ..wan_core.variants import LATENTS
from ..wan_core.weights.precision import has_bf16

log = logging.getLogger(__name__)

NONE = "none"
PREVIEW_SIZE = 512


def add_model_folders(models: Path) -> None:
    """Let the host's loaders list the files of the pack's own ``models`` folder; a user's file of a name goes first."""
    for folder in ("diffusion_models", "text_encoders", "vae"):
        folder_paths.add_model_folder_path(folder, str(models / folder))


def model_files(folder: str) -> list[str]:
    """File names for a combo, as the host lists them."""
    return folder_paths.get_filename_list(folder)


def model_path(folder: str, name: str) -> Path:
    """The full path of a listed file; the host refuses names that it does not list."""
    return Path(folder_paths.get_full_path_or_raise(folder, name))


def vae_files() -> list[str]:
    """VAEs, and Wan's tiny ones where native loaders look for them."""
    names = model_files("vae")
    return [*names, *(name for name in model_files("vae_approx") if "taew" in name.lower() and name not in names)]


def vae_folder(name: str) -> str:
    """The folder of a listed VAE; a name that is in both is the one of ``vae``."""
    tiny = not folder_paths.get_full_path("vae", name) and folder_paths.get_full_path("vae_approx", name)
    return "vae_approx" if tiny else "vae"


def file_fingerprint(folder: str, *names: str) -> str:
    """Changes when one of the files does, so that a replaced file is loaded again."""
    parts = []
    for name in names:
        path = folder_paths.get_full_path(folder, name) if name and name != NONE else None
        stat = Path(path).stat() if path else None
        parts.append(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" if stat else str(name))
    return "|".join(parts)


# Names, looked up at each call: packs that choose among several cards put functions of their own in these places.
_DEVICES = {
    "dit": "get_torch_device",
    "umt5": "text_encoder_device",
    "clip_vision": "text_encoder_device",
    "vae": "vae_device",
}


def compute(kind: str) -> Compute:
    """Where the host wants this kind of model to compute."""
    device = torch.device(getattr(mm, _DEVICES[kind])())
    bf16 = has_bf16(device) if device.type == "cpu" else bool(mm.should_use_bf16(device=device))
    return Compute(device=device, bf16=bf16, mapped=not comfy.utils.DISABLE_MMAP)


def input_folder() -> Path:
    """Where users put what workflows read."""
    return Path(folder_paths.get_input_directory())


def output_folder() -> Path:
    """Where workflows write."""
    return Path(folder_paths.get_output_directory())


def input_videos() -> list[str]:
    """Videos in the input folder, as the host's own loader lists them."""
    root = input_folder()
    names = [name for name in os.listdir(root) if (root / name).is_file()] if root.is_dir() else []
    return sorted(name for name in names if Path(name).suffix.lower() in CONTAINERS)


def input_video(name: str) -> Path:
    """The path of a listed or an annotated name (``clip.mp4 [output]``), in the host's own folders and nowhere else.

    Raises:
        InputError: it is not there, or not below its folder.
    """
    plain, base = folder_paths.annotated_filepath(str(name))
    root = Path(base) if base is not None else input_folder()
    check_below(plain, "The video")
    path = root / plain
    if not (is_inside(root, path) and path.is_file()):
        raise InputError(f"There is no video {plain[:80]!r} in {root}. Put it there, press R, and choose it.")
    return path


def file_state(path: Path) -> str:
    """Changes when the file does."""
    stat = path.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}"


@dataclass(frozen=True, kw_only=True)
class SavePlace:
    """Where new files go, and what the page calls the folder."""

    place: Place
    subfolder: str


def save_place(prefix: str, width: int = 0, height: int = 0, make: bool = True) -> SavePlace:
    """Where the host wants files of this prefix: below its output folder, from the first free number on.

    Args:
        width, height: of the picture, for ``%width%`` and ``%height%`` in the prefix.
        make: False: only check it; nothing is made.

    Raises:
        InputError: the prefix leads out of the output folder, or cannot be a file's name.
        OutputError: the folder cannot be made or read.
    """
    prefix, root = str(prefix).replace("\\", "/"), output_folder()
    check_new(prefix, "The file name's prefix")
    if not is_inside(root, (root / prefix).parent):
        raise InputError(f"{prefix!r} leads out of the output folder {root} by a link. Choose a prefix below it.")
    if not make:
        return SavePlace(place=Place(folder=root, name=Path(prefix).name), subfolder="")
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, str(root), width, height)
    except OSError as error:
        raise OutputError(
            f"The folder for {prefix!r} cannot be made or read in {root} ({error.strerror or error}). Change its "
            "permissions, or the prefix."
        ) from error
    return SavePlace(place=Place(folder=Path(folder), name=name, counter=counter), subfolder=subfolder)


def job_tags(node: type[io.ComfyNode]) -> dict[str, str]:
    """What native nodes write into a video, so that the page can open its workflow; nothing with --disable-metadata."""
    if args.disable_metadata or node.hidden is None:
        return {}
    values = dict(node.hidden.extra_pnginfo or {})
    if node.hidden.prompt is not None:
        values["prompt"] = node.hidden.prompt
    return {str(key): json.dumps(value) for key, value in values.items()}


def first_folder(kind: str) -> Path:
    """The folder of a kind of model files in which new ones are made."""
    return Path(folder_paths.get_folder_paths(kind)[0])


class HostModel:
    """Our whole weights in the host's list of loaded models, so that ``/free`` and native nodes can evict them.

    The smallest object that ``load_models_gpu`` accepts; the host keeps only weak references to it. Weights move as a
    whole; those that do not fit whole are streamed, and live on the device for the time of one run only.
    """

    parent = None

    def __init__(self, weights: Resident):
        self._weights = weakref.ref(weights)  # the weights hold this object; a strong link back would keep both alive
        self.model = weights.module
        self.load_device = weights.device
        self.offload_device = torch.device("cpu")

    @property
    def weights(self) -> Resident:
        weights = self._weights()
        if weights is None:
            raise ReferenceError("the model has been dropped")
        return weights

    def is_dynamic(self) -> bool:
        return False

    def is_clone(self, other) -> bool:
        return other is self

    def model_size(self) -> int:
        return self.weights.sizes().total

    def loaded_size(self) -> int:
        return self.weights.sizes().total if self.weights.where == self.load_device else 0

    def current_loaded_device(self) -> torch.device:
        return self.weights.where

    def model_dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def model_patches_to(self, device_or_dtype) -> None:
        pass

    def model_patches_models(self) -> list:
        return []

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False) -> int:
        """All or nothing: the host has freed what it could, and what then does not fit is refused in a sentence."""
        before, device = self.loaded_size(), torch.device(device_to)
        missing, free = self.model_size() - before, mm.get_free_memory(device)
        if device.type != "cpu" and missing > free:
            raise CapacityError(
                f"{self.weights.name} needs {gigabytes(missing)} on {device}, where {gigabytes(free)} of "
                f"{gigabytes(mm.get_total_memory(device))} are free. Close other programs on it, or use an fp8 file."
            )
        self.weights.move_to(device)
        return self.loaded_size() - before

    def partially_unload(self, device_to, memory_to_free=0, *args, **kwargs) -> int:
        freed = self.loaded_size()
        self._go_home()
        return freed

    def detach(self, unpatch_all=True) -> None:
        if unpatch_all:
            self._go_home()

    def _go_home(self) -> None:
        self.weights.go_home()

    def cleanup(self) -> None:
        pass


class HostMemory:
    """Places weights through the host's own manager, and plans what it cannot hold whole."""

    def place(self, weights: Resident, activation_bytes: int, certain: bool = True) -> torch.nn.Module:
        self._refuse_if_impossible(weights, activation_bytes if certain else 0)
        if not isinstance(weights.registered, HostModel):
            weights.registered = HostModel(weights)
        mm.load_models_gpu([weights.registered], memory_required=activation_bytes)
        return weights.module

    def plan(
        self, weights: Sequence[Resident], sizes: WeightSizes, work: Work, budget_bytes: int | None
    ) -> ResidencyPlan:
        """Whole where it fits beside the host's reserve once all others have made room; else streamed."""
        first, device = weights[0], weights[0].device
        if mm.is_device_cpu(device):
            return whole_plan(sizes, len(weights), work)
        budget = device_budget(device)
        budget = budget if budget_bytes is None else min(budget, budget_bytes)
        rates = rates_of(device, first.compute_dtype)
        plan = plan_residency(sizes, len(weights), work, budget, rates, first.name)
        if mm.vram_state == mm.VRAMState.NO_VRAM and sizes.blocks:
            return streamed_plan(sizes, len(weights), work, 0, plan.chunk, plan.together)
        return plan

    def make_room(self, nbytes: int, device: torch.device, empty: bool = False) -> None:
        if not mm.is_device_cpu(device):
            mm.free_memory(nbytes + mm.extra_reserved_memory(), device)
        if empty:
            mm.soft_empty_cache()

    def free_bytes(self, device: torch.device) -> int | None:
        return None if mm.is_device_cpu(device) else max(0, mm.get_free_memory(device) - mm.extra_reserved_memory())

    def release(self, weights: Resident) -> None:
        weights.go_home()

    def _refuse_if_impossible(self, weights: Resident, activation_bytes: int) -> None:
        """Say so before the work starts when even an empty device would be too small."""
        needed = weights.sizes().total + activation_bytes
        total = mm.get_total_memory(weights.device)
        if needed > total:
            raise CapacityError(
                f"{weights.name} needs {gigabytes(needed)} ({gigabytes(weights.sizes().total)} weights, about "
                f"{gigabytes(activation_bytes)} to work in) on {weights.device}, which has {gigabytes(total)} "
                f"({gigabytes(mm.get_free_memory(weights.device))} free now). Use fewer frames or a smaller size, or a "
                "smaller or fp8 model file."
            )


def device_budget(device: torch.device) -> int:
    """What a run may take: all that is free, or is when every model that the host has loaded there makes room, less
    the host's reserve (``--reserve-vram``)."""
    loaded = sum(one.model_loaded_memory() for one in mm.current_loaded_models if one.device == device)
    return max(0, int(mm.get_free_memory(device) + loaded - mm.extra_reserved_memory()))


def _notify_running_node(sentence: str) -> None:
    """For calls that native nodes make on our objects: the sentence shows on the node that is running."""
    log.info("%s", sentence)
    context = get_executing_context()
    if context is not None:
        _show_text(sentence, context.node_id)


def _show_text(text: str, node_id: str | None) -> None:
    server = getattr(PromptServer, "instance", None)
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id, server.client_id)


def host_ports(notify: Notify = _notify_running_node, progress: Progress = no_progress) -> Ports:
    """The host's memory and cancel button."""
    return Ports(
        memory=HostMemory(),
        check_cancel=mm.throw_exception_if_processing_interrupted,
        notify=notify,
        progress=progress,
        prompts=kept_prompts(),
    )


@lru_cache(maxsize=1)
def kept_prompts() -> PromptCache:
    """Text encodings, in the host's user folder: they outlive a restart."""
    return PromptCache(Path(folder_paths.get_user_directory()) / "wan_core" / "prompts")


class NodeRun:
    """One execution of one node: the ports it hands to wan_core, and the sentences told on the way."""

    def __init__(self, node: type[io.ComfyNode]):
        self.node_id = node.hidden.unique_id if node.hidden else None
        self.notices: list[str] = []
        self._began = time.monotonic()
        self._bar: comfy.utils.ProgressBar | None = None
        self._before = 0
        self.picture: Image.Image | None = None
        """Shown beside the bar where there is no latent to show."""
        self.ports = host_ports(notify=self.notify, progress=self.progress)

    def notify(self, sentence: str) -> None:
        """Show a sentence on the node and in the log."""
        if sentence in self.notices:
            return
        log.info("%s", sentence)
        self.notices.append(sentence)
        self._show(self.notices)

    def progress(self, done: int, total: int, x0: torch.Tensor | None) -> None:
        """The host's progress bar and the time left, with a still preview where there is something to show.

        Work that goes on from an earlier run begins with more than 1 done.
        """
        if self._bar is None:
            self._bar, self._before = comfy.utils.ProgressBar(total), done - 1
        preview = None if self.picture is None else ("JPEG", self.picture, PREVIEW_SIZE)
        if x0 is not None and x0.shape[1] in LATENTS:
            preview = ("JPEG", Image.fromarray(latent_to_rgb(x0, LATENTS[x0.shape[1]])), PREVIEW_SIZE)
        self._bar.update_absolute(done, total, preview)
        left_s = (time.monotonic() - self._began) / (done - self._before) * (total - done)
        self._show([*self.notices, f"{done} of {total}, {_duration(left_s)} left"] if done < total else self.notices)

    def _show(self, lines: list[str]) -> None:
        if lines:
            _show_text("\n".join(lines), self.node_id)

    def output(self, *values, ui: dict | None = None) -> io.NodeOutput:
        """The node's result; what was told travels in the history too, for those who use the API.

        ``ui``: what the page shows besides.
        """
        shown = {**(ui or {}), **({"text": list(self.notices)} if self.notices else {})}
        return io.NodeOutput(*values, ui=shown or None)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def machine():
    """What a plan of a run asks of this machine."""
    from ..wan_core.stages.plan import Machine

    return Machine(
        memory=HostMemory(),
        budget_of=lambda device: None if mm.is_device_cpu(device) else device_budget(device),
        rates_of=rates_of,
        host_bytes=int(mm.get_total_memory(torch.device("cpu"))),
        mapped=not comfy.utils.DISABLE_MMAP,
    )
