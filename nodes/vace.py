"""A control clip, its mask and reference pictures -> what VACE models take."""

import torch
from comfy_api.latest import io

from ..wan_core.conditioning.vace import MAX_STRENGTH, VaceContext
from ..wan_core.errors import InputError, MismatchError
from ..wan_core.grid import grid_of
from ..wan_core.stages import vace as vace_stage
from ..wan_core.variants import LATENT_21
from .host import NodeRun
from .latent import size_inputs
from .native_wires import REFERENCES, write_vace
from .wires import clip_encoder, vae_spec


class Vace(io.ComfyNode):
    """One VACE context; several nodes in a row make several."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreVace",
            display_name="Wan Core VACE",
            category="Wan Core/2 encode",
            description="Gives a VACE model a clip to follow, change or go on with, and pictures of what to show. "
            "Chain several for several controls.",
            inputs=[
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE."),
                *size_inputs(),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=MAX_STRENGTH, step=0.01,
                    tooltip="How strongly the clip is followed. 1: as the model was trained.",
                ),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.001,
                    tooltip="Share of the sampler's steps after which this counts.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.001,
                    tooltip="Share of the sampler's steps until which this counts.",
                ),
                io.Image.Input(
                    "control_video", optional=True,
                    tooltip="Depth, pose or another clip to follow, or a clip of which the mask says what changes. "
                    "Without it everything is made anew.",
                ),
                io.Mask.Input(
                    "control_masks", optional=True,
                    tooltip="1 (white): made anew, or followed; 0 (black): kept as it is. Without it: 1 everywhere.",
                ),
                io.Image.Input(
                    "reference_image", optional=True,
                    tooltip="Pictures of what to show, of any size; they are fitted on white.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(
                    display_name="latent", tooltip="Of the clip and its reference pictures: of the last VACE node."
                ),
                io.Int.Output(
                    display_name="trim_latent",
                    tooltip="For a native decoder: what TrimVideoLatent cuts off. Wan Core VAE Decode does it itself.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, positive, negative, vae, width, height, frames, batch_size, strength, start_percent, end_percent,
        control_video=None, control_masks=None, reference_image=None,
    ) -> io.NodeOutput:  # fmt: skip
        if start_percent >= end_percent:
            raise InputError(
                f"start_percent must be below end_percent; got {start_percent:g} and {end_percent:g}. Use 0 and 1 for "
                "the whole run."
            )
        run, spec = NodeRun(cls), vae_spec(vae)
        if spec.clean_frames:
            raise MismatchError(
                f"VACE models work in the latents of the {LATENT_21.vae}; connected is the {spec.vae}. Use the former."
            )
        grid = grid_of(spec, width=width, height=height, frames=frames)
        made = vace_stage.make_context(
            clip_encoder(vae, grid, run.ports), grid, spec,
            video=control_video, masks=control_masks, references=reference_image, notify=run.notify,
        )  # fmt: skip
        context = VaceContext(
            latent=made.latent, mask=made.mask, strength=strength, start=start_percent, end=end_percent
        )
        (positive, trim), (negative, _) = (
            write_vace(side, context, made.references, spec) for side in (positive, negative)
        )
        samples = torch.zeros(
            batch_size, spec.channels, trim + grid.latent_frames, grid.latent_height, grid.latent_width
        )
        latent = {"samples": samples, **({REFERENCES: (trim, samples.shape[2])} if trim else {})}
        return run.output(positive, negative, latent, trim)
