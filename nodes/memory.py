"""How a model is run, for those who do not leave it to the runtime; and what a run would do, without running it."""

import json
import time
from dataclasses import replace

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..wan_core.errors import InputError, WanError, gigabytes
from ..wan_core.grid import grid_of
from ..wan_core.runtime.attention import AUTO, available_backends
from ..wan_core.stages.load import RunOptions
from ..wan_core.stages.sample import Settings, StartLatent
from ..wan_core.stages.vae import check_channels
from .host import NodeRun, machine
from .latent import size_inputs
from .native_wires import read_latent
from .preflight import check_decoder
from .sampling import MAX_STEPS
from .wires import ClipVisionWire, ClipWire, Model, VaeWire, vae_spec

GB = 1e9
MAX_GB = 1024.0


class Memory(io.ComfyNode):
    """A limit and an attention backend of one's own."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreMemory",
            display_name="Wan Core Memory",
            category="Wan Core/1 load",
            description="Not needed in normal use: limits the sampler's video memory, or chooses its attention.",
            inputs=[
                Model.Input("model"),
                io.Float.Input(
                    "budget_gb",
                    default=0.0, min=0.0, max=MAX_GB, step=0.1,
                    tooltip="The most video memory that the sampler takes for this model, in GB. 0: all that is free.",
                ),
                io.Combo.Input(
                    "attention",
                    options=available_backends(),
                    default=AUTO,
                    tooltip="What computes attention. auto: PyTorch's own, which is exact.",
                ),
            ],
            outputs=[Model.Output(display_name="model", tooltip="The model, to be run like this.")],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, budget_gb, attention) -> io.NodeOutput:
        run = NodeRun(cls)
        if not 0 <= budget_gb <= MAX_GB:  # true for NaN too
            raise InputError(f"budget_gb must be from 0 (all that is free) to {MAX_GB:.0f}; got {budget_gb}.")
        budget = int(budget_gb * GB) or None
        there = machine().budget_of(model.high.device)
        if budget is None:
            limit = "The runtime decides how much video memory the sampler takes"
        elif there is None:
            limit = f"{model.name} computes in the host's memory, where a budget has no effect"
        else:
            limit = f"The sampler takes at most {gigabytes(budget)}; now it could take {gigabytes(there)}"
        run.notify(f"{limit}. Attention: {attention}.")
        return run.output(replace(model, options=RunOptions(budget_bytes=budget, attention=attention)))


class Plan(io.ComfyNode):
    """What a run would do."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCorePlan",
            display_name="Wan Core Plan",
            category="Wan Core/3 sample",
            description="Shows what a run would take, memory and time, and what does not fit together. Runs nothing.",
            is_output_node=True,
            inputs=[
                Model.Input("model"),
                *size_inputs(),
                io.Int.Input("steps", default=0, min=0, max=MAX_STEPS, tooltip="0: the model's own (40 or 50)."),
                io.Float.Input(
                    "guidance",
                    default=0.0, min=0.0, max=30.0, step=0.1,
                    tooltip="0: the model's own. 1: no second pass, half the time.",
                ),
                io.Latent.Input("latent", optional=True, tooltip="Its size is taken instead of the widgets."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder, to be counted and checked."),
                io.Vae.Input("vae", optional=True, tooltip="The VAE, to be counted and checked."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="For Wan 2.1 image models."),
            ],
            outputs=[
                io.String.Output(display_name="text"),
                io.String.Output(display_name="data", tooltip="The same as JSON; bytes and seconds."),
                io.Image.Output(display_name="picture"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **kwargs):
        """What is free changes without a wire changing."""
        return time.time_ns()

    @classmethod
    def execute(
        cls, model, width, height, frames, batch_size, steps, guidance,
        latent=None, clip=None, vae=None, clip_vision=None,
    ) -> io.NodeOutput:  # fmt: skip
        # Imported where it runs: it would be a tenth of what the pack adds to the host's start.
        from ..wan_core.stages import plan as stage
        from ..wan_core.stages.plan_picture import plan_image

        run = NodeRun(cls)
        parts = stage.Parts(
            model=model,
            text_encoder=clip.handle if isinstance(clip, ClipWire) else None,
            vae=vae.handle if isinstance(vae, VaeWire) else None,
            clip_vision=clip_vision.handle if isinstance(clip_vision, ClipVisionWire) else None,
        )
        if latent is None:
            start = _empty(model.variant.latent, batch_size, width=width, height=height, frames=frames)
        else:
            start = read_latent(latent)
        settings = Settings(steps=steps, guidance_high=guidance)
        told = _problems(cls.hidden.prompt, run.node_id, model.variant, vae)
        made = stage.plan_run(parts, start, settings, machine(), told)
        run.notify(made.as_text())
        picture = torch.from_numpy(np.asarray(plan_image(made)).astype(np.float32) / 255)[None]
        shown = ui.PreviewImage(picture, cls=cls).as_dict() | {"text": list(run.notices)}
        return io.NodeOutput(made.as_text(), json.dumps(made.as_dict()), picture, ui=shown)


def _empty(spec, batch_size: int, **size: int) -> StartLatent:
    """A latent of that size that takes no memory."""
    grid = grid_of(spec, **size)
    return StartLatent(samples=torch.zeros(1).expand(batch_size, spec.channels, *grid.latent_shape))


def _problems(prompt: dict | None, node_id: str | None, variant, vae) -> list[str]:
    """What the samplers of this model will refuse in the nodes behind them, and a VAE that is not ours."""
    found = []
    try:
        if vae is not None and not isinstance(vae, VaeWire):
            check_channels(vae_spec(vae), variant.latent.channels)
        ours = (prompt or {}).get(node_id, {}).get("inputs", {}).get("model")
        for number, node in (prompt or {}).items():
            if node.get("class_type") == "WanCoreSampler" and node.get("inputs", {}).get("model") == ours:
                check_decoder(prompt, number, variant)
    except WanError as error:
        found.append(str(error))
    return found
