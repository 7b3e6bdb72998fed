"""A LoRA trained in ComfyUI: a folder of clips -> encoded data -> a file in the loras folder.

Workflows come from strangers. So a data set is a folder below the host's input folder that the host lists itself, and
what a workflow can name is the plain name of a new file in the loras folder; nothing is ever overwritten.
"""

import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from comfy_api.latest import io

from ..wan_core.errors import InputError, MismatchError
from ..wan_core.grid import grid_of
from ..wan_core.media.names import RESERVED
from ..wan_core.runtime.ports import Ports
from ..wan_core.sampling.loras import constant
from ..wan_core.stages.load import ModelHandle
from ..wan_core.stages.lora import add_lora
from ..wan_core.training import TABLE, TARGETS
from .host import NONE, NodeRun, first_folder, input_folder, output_folder
from .wires import ClipWire, Model, VaeWire

if TYPE_CHECKING:
    from ..wan_core.training.data_set import DataSet
    from ..wan_core.training.lora_job import LoraRecipe

# The trainer itself is imported where a node runs: it would be a quarter of what the pack adds to the host's start.

CATEGORY = "Wan Core/6 train"
Data = io.Custom("WAN_CORE_TRAINING_DATA")
RUNS, ENCODED = "wan_core_training", "wan_core_training_data"
"""Folders of the runs and of encoded data sets, below the host's output folder."""
DEPTH = 3
"""Folders below the input folder that are looked into for data sets."""
EXPERTS = {"all": "all", "high noise": "high", "low noise": "low"}
POINTS = 200
"""Of a loss curve."""
CURVE_SECONDS = 2.0
_NAME = re.compile(r"\w[\w .+-]{0,79}")


def data_tables() -> list[str]:
    """``folder/metadata.csv`` of every data set below the host's input folder."""
    root = input_folder()
    found = []
    for place, folders, files in os.walk(root):
        inside = Path(place).relative_to(root)
        if TABLE in files and inside.parts:
            found.append((inside / TABLE).as_posix())
        folders[:] = sorted(one for one in folders if not one.startswith(".")) if len(inside.parts) < DEPTH else []
    return found


def checked_name(name: str) -> str:
    """A plain file name without ending.

    Raises:
        InputError: it is a path, or none that every system can have.
    """
    plain = name.strip().removesuffix(".safetensors")
    good = _NAME.fullmatch(plain) and plain[-1] not in ". " and plain.split(".")[0].lower() not in RESERVED
    if not good:
        raise InputError(
            f"{name[:60]!r} cannot be the name of a LoRA. Use letters, digits, '-', '_', '.' and blanks, at most 80, "
            "without folders; it is put into the loras folder."
        )
    return plain


class TrainingData(io.ComfyNode):
    """Clips and captions, encoded once."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreTrainingData",
            display_name="Wan Core Training Data",
            category=CATEGORY,
            description="Reads a folder of videos or images with captions, and encodes them once for training.",
            inputs=[
                io.Clip.Input("clip", tooltip="From Wan Core Load Text Encoder."),
                io.Vae.Input("vae", tooltip="From Wan Core Load VAE: the VAE of the model that is trained."),
                io.Combo.Input(
                    "data",
                    options=[NONE, *data_tables()],
                    default=NONE,
                    tooltip="A folder below ComfyUI's input folder, with metadata.csv: columns file_name and text.",
                ),
                *_size_widgets(),
                io.Boolean.Input(
                    "skip_bad",
                    default=False,
                    tooltip="Go on without clips that cannot be used. Off: everything that is wrong is listed.",
                ),
            ],
            outputs=[Data.Output(display_name="data", tooltip="For Wan Core Train LoRA.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, data=None, **kwargs):
        if data not in data_tables():
            return []
        from ..wan_core.training.clips import contents

        table = input_folder() / data
        return [*contents(table.parent), table.stat().st_mtime_ns]

    @classmethod
    def execute(cls, clip, vae, data, width, height, frames, skip_bad) -> io.NodeOutput:
        run = NodeRun(cls)
        if not (isinstance(clip, ClipWire) and isinstance(vae, VaeWire)):
            raise MismatchError(
                "Training takes the text encoder and the VAE from Wan Core Load Text Encoder and Wan Core Load VAE; "
                "native loaders' are not read here."
            )
        if data not in data_tables():
            raise InputError(
                f"{data} is no data set below {input_folder()}. Make a folder there with {TABLE} (file_name,text) and "
                "the videos or images that it names, press R, and choose it."
            )
        from ..wan_core.training.clips import ClipSize, FolderClips
        from ..wan_core.training.data_set import DataSet

        grid_of(vae.handle.spec, width=width, height=height, frames=frames)
        size = ClipSize(width=width, height=height, frames=frames)
        folder = Path(data).parent
        with torch.inference_mode(False):
            clips = FolderClips(input_folder() / folder, size, skip_bad)
            made = DataSet(
                name=folder.as_posix(),
                folder=input_folder() / folder,
                clips=clips,
                size=size,
                vae=vae.handle,
                encoder=clip.handle,
                path=output_folder() / ENCODED / folder / f"{width}x{height}x{frames}.safetensors",
            )
            made.encoded(run.ports, images=False)
        for name, reason in clips.skipped[:10]:
            run.notify(f"Left out {name}: {reason}.")
        run.notify(f"{len(clips)} clips of {width}x{height}, {frames} frames; {len(clips.skipped)} left out.")
        return run.output(made)


def _size_widgets() -> list[io.WidgetInput]:
    tip = "Clips are scaled to cover this size, and their centre is cut."
    return [
        io.Int.Input("width", default=832, min=16, max=4096, step=16, tooltip=tip),
        io.Int.Input("height", default=480, min=16, max=4096, step=16, tooltip=tip),
        io.Int.Input("frames", default=17, min=1, max=1001, step=4, tooltip="4n+1; the first so many. Images: 1."),
    ]


class TrainLoRA(io.ComfyNode):
    """A LoRA on one model, or one on each expert of a pair."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreTrainLoRA",
            display_name="Wan Core Train LoRA",
            category=CATEGORY,
            description="Trains a LoRA into the loras folder. After a cancel, the next run goes on where it was.",
            is_output_node=True,
            inputs=[
                Model.Input("model", tooltip="From Wan Core Load Model; it stays as it is."),
                Data.Input("data", tooltip="From Wan Core Training Data."),
                io.String.Input("name", default="my_lora", tooltip="Of the file in the loras folder; a new one."),
                io.Combo.Input(
                    "expert",
                    options=list(EXPERTS),
                    default="all",
                    tooltip="Of a Wan 2.2 pair: both, one LoRA each, or one of them. all: of a single model.",
                ),
                *_recipe_widgets(),
            ],
            outputs=[
                Model.Output(display_name="model", tooltip="The model with the new LoRA on it."),
                io.Image.Output(display_name="loss curve", tooltip="One picture for each LoRA."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, name=None):
        """A name that comes by wire is not known yet; it is checked when the node runs."""
        try:
            checked_name("unknown" if name is None else name)
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model, data, name, expert, **widgets) -> io.NodeOutput:
        from ..wan_core.training.lora_job import train_lora

        run = NodeRun(cls)
        jobs = _jobs(model, checked_name(name), EXPERTS[expert])
        paths, curves = {}, []
        for number, job in enumerate(jobs):
            watch = _Watch(run, number * widgets["steps"], len(jobs) * widgets["steps"])
            out = output_folder() / RUNS / job.name
            target = first_folder("loras") / f"{job.name}.safetensors"
            recipe = _recipe(data, job, **widgets)
            paths[job.side] = train_lora(job.model, data, out, recipe, watch.ports, target, watch)
            curves.append(watch.curve())
            run.notify(f"{target.name} is in the loras folder; {watch.last()}. Its run is in output/{RUNS}/{job.name}.")
        full = constant(1.0)
        sides = (*paths.values(), None) if model.low is None else (paths.get("high"), paths.get("low"))
        worn = add_lora(model, *sides, strength=full, strength_low=full, notify=lambda text: None)
        return run.output(worn, torch.stack(curves))


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One LoRA of a node: of which expert, over which noise levels, under which name."""

    side: str
    model: ModelHandle
    sigma: tuple[float, float]
    name: str


def _jobs(model: ModelHandle, name: str, side: str) -> list[_Job]:
    from ..wan_core.training.lora_job import expert_of

    both = side == "all" and model.low is not None
    jobs = []
    for one in ("high", "low") if both else (side,):
        alone, sigma = expert_of(model, one)
        full = name if one == "all" else f"{name}_{one}_noise"
        jobs.append(_Job(side=one, model=alone, sigma=sigma, name=full))
    return jobs


def _recipe_widgets() -> list[io.WidgetInput]:
    # fmt: off
    return [
        io.Int.Input("steps", default=1000, min=1, max=1_000_000,
                     tooltip="Of each LoRA. A longer run is another one, under another name."),
        io.Float.Input("learning_rate", default=1e-4, min=1e-8, max=1.0, step=1e-6, round=False,
                       tooltip="The highest; it rises at first and falls along a cosine."),
        io.Int.Input("rank", default=16, min=1, max=1024, tooltip="Size of the LoRA."),
        io.Float.Input("alpha", default=0.0, min=0.0, max=1024.0, step=0.5,
                       tooltip="The change is alpha / rank * up @ down. 0: as the rank."),
        io.String.Input("targets", default=", ".join(TARGETS), tooltip="Layers of a block that are changed."),
        io.Int.Input("batch", default=1, min=1, max=1024, tooltip="Clips a step."),
        io.Int.Input("seed", default=0, min=0, max=2**32 - 1, tooltip="Equal seeds, equal files."),
        io.Float.Input("shift", default=3.0, min=0.01, max=100.0, step=0.1,
                       tooltip="Above 1: more of the high noise levels."),
        io.Float.Input("drop_text", default=0.1, min=0.0, max=1.0, step=0.01,
                       tooltip="Share of captions left out, for guidance."),
        io.Boolean.Input("checkpointing", default=True, tooltip="Much less memory for a third more time."),
        io.Int.Input("save_every", default=100, min=1, max=1_000_000,
                     tooltip="Steps between states: what a crash can cost. Cancel loses nothing."),
        io.Int.Input("sample_every", default=0, min=0, max=1_000_000,
                     tooltip="Steps between sample videos in the run's folder, of four captions. 0: none."),
    ]
    # fmt: on


def _recipe(data: "DataSet", job: _Job, **w) -> "LoraRecipe":
    """What the command line would make of the same numbers; the model's loader has chosen the precision."""

    from ..wan_core.training.dit_task import DitSettings
    from ..wan_core.training.flow import SigmaSettings
    from ..wan_core.training.loop import LoopSettings
    from ..wan_core.training.lora_job import LoraRecipe
    from ..wan_core.training.lora_task import LoraSettings
    from ..wan_core.training.optim import OptimSettings
    from ..wan_core.training.phases import Phase
    from ..wan_core.training.show import ShowSettings

    targets = tuple(part for part in re.split(r"[\s,]+", w["targets"]) if part)
    return LoraRecipe(
        lora=LoraSettings(rank=w["rank"], alpha=w["alpha"] or float(w["rank"]), targets=targets),
        dit=DitSettings(
            phases=(Phase(frames=data.size.frames, batch=w["batch"], steps=w["steps"]),),
            sigma=SigmaSettings(shift=w["shift"], low=job.sigma[0], high=job.sigma[1]),
            drop_text=w["drop_text"],
            bf16=job.model.high.compute_dtype is torch.bfloat16,
            checkpoint=w["checkpointing"],
            seed=w["seed"],
        ),
        loop=LoopSettings(
            steps=w["steps"],
            save_every=w["save_every"],
            sample_every=w["sample_every"],
            log_every=max(1, w["steps"] // POINTS),
        ),
        optim=OptimSettings(optimizer="adamw", lr=w["learning_rate"]),
        show=ShowSettings(),
    )


class _Watch:
    """Shows one training on its node: the bar over all of the node's LoRAs, and the loss curve."""

    def __init__(self, run: NodeRun, before: int, total: int):
        self._run, self._before, self._total = run, before, total
        self._losses: list[tuple[int, float]] = []
        self._drawn = 0.0
        self.ports: Ports = replace(run.ports, progress=self._progress)

    def __call__(self, losses: list[tuple[int, float]]) -> None:
        self._losses = losses
        if len(losses) > 1 and time.monotonic() - self._drawn > CURVE_SECONDS:
            from ..wan_core.training.curve import curve_image

            self._run.picture, self._drawn = curve_image(losses), time.monotonic()

    def _progress(self, done: int, total: int, x0: None) -> None:
        self._run.progress(self._before + done, self._total, None)

    def curve(self) -> torch.Tensor:
        """``[H, W, 3]`` in 0..1."""
        from ..wan_core.training.curve import curve_image

        return torch.from_numpy(np.asarray(curve_image(self._losses)).copy()).float() / 255

    def last(self) -> str:
        """The loss in words."""
        return f"loss {self._losses[-1][1]:.4f} at the end" if self._losses else "no loss was logged"
