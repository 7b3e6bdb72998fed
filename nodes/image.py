"""Pictures -> what image models take."""

from dataclasses import replace

import torch
from comfy_api.latest import io

from ..wan_core.conditioning.known_frames import known_mask
from ..wan_core.errors import InputError
from ..wan_core.grid import Grid, grid_of, latent_frames, pixel_frames
from ..wan_core.stages import image
from ..wan_core.variants import LatentSpec
from .host import NodeRun
from .latent import size_inputs
from .native_wires import write_clip_vision, write_known_frames
from .wires import ClipVisionOutput, ClipVisionWire, Model, VaeWire, vae_spec

CATEGORY = "Wan Core/2 encode"


class CLIPVisionEncode(io.ComfyNode):
    """CLIP features of a start image, and of an end image for first-last-frame models."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreCLIPVisionEncode",
            display_name="Wan Core CLIP Vision Encode",
            category=CATEGORY,
            description="Encodes the picture for Wan 2.1 image models, prepared as the official code prepares it.",
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="The CLIP ViT-H image encoder."),
                io.Image.Input("start_image", tooltip="The picture as it is; it need not be resized first."),
                io.Image.Input("end_image", optional=True, tooltip="The last picture, for first-last-frame models."),
            ],
            outputs=[io.ClipVisionOutput.Output(display_name="CLIP vision output")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip_vision, start_image, end_image=None) -> io.NodeOutput:
        run = NodeRun(cls)
        pictures = [start_image[:1]] if end_image is None else [start_image[:1], end_image[-1:]]
        if isinstance(clip_vision, ClipVisionWire):
            tokens = [image.encode_image(clip_vision.handle, picture, run.ports) for picture in pictures]
        else:
            outputs = [clip_vision.encode_image(picture, crop=False) for picture in pictures]
            tokens = [output.penultimate_hidden_states for output in outputs]
        # Start and end follow each other in one sequence, as native first-last-frame nodes join them.
        return run.output(ClipVisionOutput(torch.cat(tokens, dim=1)))


class ImageToVideo(io.ComfyNode):
    """A start image, an end image or both -> conditioning and an empty latent of the same size."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreImageToVideo",
            display_name="Wan Core Image to Video",
            category=CATEGORY,
            description="Makes a video begin with a picture, end with one, or both.",
            inputs=[
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Vae.Input("vae", tooltip="The VAE of the model: Wan 2.1, or Wan 2.2 for the 5B."),
                *size_inputs(),
                io.Image.Input("start_image", optional=True, tooltip="The first frame (or the first few)."),
                io.Image.Input("end_image", optional=True, tooltip="The last frame (or the last few)."),
                io.ClipVisionOutput.Input(
                    "clip_vision_output", optional=True, tooltip="For Wan 2.1 image models; Wan 2.2 takes none."
                ),
                Model.Input(
                    "model",
                    optional=True,
                    tooltip="Only Fun InP 5B needs it: the VAE alone cannot tell how that model takes pictures.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(display_name="latent"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, positive, negative, vae, width, height, frames, batch_size,
        start_image=None, end_image=None, clip_vision_output=None, model=None,
    ) -> io.NodeOutput:  # fmt: skip
        if start_image is None and end_image is None:
            raise InputError(
                "Connect a start_image, an end_image or both; without a picture use Wan Core Empty Latent."
            )
        run, spec = NodeRun(cls), vae_spec(vae)
        grid = grid_of(spec, width=width, height=height, frames=frames)
        pictures = {"start_image": start_image, "end_image": end_image}
        first, last = (
            None if picture is None else image.fit(picture, grid, what, run.notify)
            for what, picture in pictures.items()
        )
        first, last = _known_counts(first, last, grid, run)
        beside, clean = not spec.clean_frames, spec.clean_frames
        if model is not None:
            beside, clean = image.takes_pictures(model.variant, spec)
        if not beside:
            sides, latent = [positive, negative], _clean_latent(vae, grid, first, last, run)
        else:
            known = _known_latent(vae, grid, first, last, run)
            mask = known_mask(grid, *(0 if x is None else len(x) for x in (first, last)))
            sides = [write_known_frames(side, known, mask) for side in (positive, negative)]
            latent = {"samples": torch.zeros(1, spec.channels, *grid.latent_shape)}
            if clean and first is not None:
                latent = clean_first_frame(spec, grid, known)
        if clip_vision_output is not None:
            tokens = clip_vision_output.penultimate_hidden_states
            sides = [write_clip_vision(side, tokens) for side in sides]
        return run.output(*sides, {name: x.repeat(batch_size, 1, 1, 1, 1) for name, x in latent.items()})


def _known_counts(first: torch.Tensor | None, last: torch.Tensor | None, grid: Grid, run: NodeRun):
    """Pictures that the clip has frames for; more than that is cut, and told."""
    counts = [0 if x is None else len(x) for x in (first, last)]
    if sum(counts) <= grid.frames:
        return first, last
    if all(counts):
        raise InputError(
            f"start_image has {counts[0]} pictures and end_image {counts[1]}, the clip {grid.frames} frames. Give "
            "fewer pictures, or make the clip longer."
        )
    run.notify(f"Of {sum(counts)} pictures {grid.frames} are used: the clip has no more frames.")
    return None if first is None else first[: grid.frames], None if last is None else last[-grid.frames :]


def _known_latent(vae, grid: Grid, first: torch.Tensor | None, last: torch.Tensor | None, run: NodeRun):
    if isinstance(vae, VaeWire):
        return image.known_latent(vae.handle, grid, first, last, run.ports)
    return vae.encode(image.known_pictures(grid, first, last))


def clean_first_frame(spec: LatentSpec, grid: Grid, known: torch.Tensor) -> dict:
    """An empty LATENT whose first frame is given: that of ``known``, ``[1, C, T, h, w]`` not normalised."""
    # What is not given is zero to the model, not on the wire: that is what a partial denoise starts from natively.
    samples = spec.denormalise(torch.zeros(1, spec.channels, *grid.latent_shape))
    samples[:, :, :1] = known[:, :, :1]
    noise_mask = torch.ones(1, 1, *grid.latent_shape)
    noise_mask[:, :, :1] = 0
    return {"samples": samples, "noise_mask": noise_mask}


def _clean_latent(vae, grid: Grid, first: torch.Tensor | None, last: torch.Tensor | None, run: NodeRun) -> dict:
    """The 5B model takes its start image as clean latent frames, marked by the latent's noise mask as native does."""
    if first is None or last is not None:
        raise InputError(
            "The 5B model takes a start_image and no end_image. Use an FLF2V or a Wan 2.2 14B I2V model; for Fun InP "
            "5B connect the model here too."
        )
    known = latent_frames(len(first))
    short = replace(grid, frames=pixel_frames(known), latent_frames=known)
    spec = vae_spec(vae)
    # What is not given is zero to the model, not on the wire: that is what a partial denoise starts from natively.
    samples = spec.denormalise(torch.zeros(1, spec.channels, *grid.latent_shape))
    if short.frames < len(first):
        run.notify(f"Of {len(first)} pictures {short.frames} are used: the 5B model takes 4n+1.")
    samples[:, :, :known] = _known_latent(vae, short, first[: short.frames], None, run)
    noise_mask = torch.ones(1, 1, *grid.latent_shape)
    noise_mask[:, :, :known] = 0
    return {"samples": samples, "noise_mask": noise_mask}
