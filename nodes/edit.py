"""Changing a clip where a mask says so, and pictures of who is to be in one."""

import torch
from comfy_api.latest import io

from ..wan_core.conditioning.subjects import nothing_of
from ..wan_core.errors import MismatchError
from ..wan_core.grid import grid_of
from ..wan_core.sampling.given import stretched
from ..wan_core.stages import inpaint
from ..wan_core.stages import vace as vace_stage
from ..wan_core.variants import LATENTS
from .host import NodeRun
from .latent import size_inputs
from .native_wires import read_latent, references_before, write_subjects
from .wires import clip_encoder, vae_spec


class InpaintMask(io.ComfyNode):
    """What of a latent is made anew, frame by frame."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreInpaintMask",
            display_name="Wan Core Inpaint Mask",
            category="Wan Core/2 encode",
            description="Marks what of an encoded clip is made anew; the rest stays as it is, in every frame as its "
            "mask says.",
            inputs=[
                io.Latent.Input("latent", tooltip="The encoded clip."),
                io.Mask.Input(
                    "mask",
                    tooltip="1 (white): made anew; 0 (black): kept. One for each frame of the clip, or one for all.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, latent, mask) -> io.NodeOutput:
        run, samples = NodeRun(cls), read_latent(latent).samples
        if samples.shape[1] not in LATENTS:
            raise MismatchError(
                f"The latent has {samples.shape[1]} channels; Wan's have {' or '.join(map(str, LATENTS))}. Encode the "
                "clip with a Wan VAE."
            )
        before = references_before(latent)
        _, _, frames, *size = samples.shape
        made = inpaint.latent_mask(mask, (frames - before, *size), LATENTS[samples.shape[1]], run.notify)
        made = torch.cat((made.new_ones(1, 1, before, *size), made), dim=2)
        there = latent.get("noise_mask")
        if there is not None:
            inpaint.check_noise_mask(there)
            made = made * stretched(there, frames, *size).to(made)
            run.notify("The latent had a noise mask already: what either of them keeps is kept.")
        return run.output({**latent, "noise_mask": made})


class SubjectPictures(io.ComfyNode):
    """Pictures of subjects for Phantom models."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreSubjectPictures",
            display_name="Wan Core Subject Pictures",
            category="Wan Core/2 encode",
            description="Gives a Phantom model pictures of who or what is in the video.",
            inputs=[
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE."),
                *size_inputs(),
                io.Image.Input(
                    "images", tooltip="One to four pictures of any size, a subject each; they are fitted on white."
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(
                    display_name="negative", tooltip="Without the subjects: guidance makes both text and them stronger."
                ),
                io.Latent.Output(display_name="latent"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, positive, negative, vae, width, height, frames, batch_size, images) -> io.NodeOutput:
        run, spec = NodeRun(cls), vae_spec(vae)
        if spec.clean_frames:
            raise MismatchError(f"Phantom models work in the latents of the Wan 2.1 VAE; this is the {spec.vae}.")
        grid = grid_of(spec, width=width, height=height, frames=frames)
        encode = clip_encoder(vae, grid, run.ports)
        subjects = torch.cat(vace_stage.encode_references(encode, images, grid, "images"), dim=2)
        samples = torch.zeros(batch_size, spec.channels, *grid.latent_shape)
        return run.output(
            write_subjects(positive, subjects),
            write_subjects(negative, nothing_of(subjects, spec)),
            {"samples": samples},
        )
