"""Empty latents, and pictures <-> latents."""

import torch
from comfy_api.latest import io

from ..wan_core.grid import MAX_FRAMES, MAX_SIDE, grid_of
from ..wan_core.stages import vae as vae_stage
from .host import NodeRun
from .native_wires import without_references
from .wires import Model, VaeWire, vae_spec


def size_inputs() -> list[io.WidgetInput]:
    """Width, height, frames and batch, in steps that cannot express an invalid size of the Wan 2.1 VAE."""
    return [
        io.Int.Input(
            "width", default=832, min=16, max=MAX_SIDE, step=16, tooltip="Pixels; multiples of 16 (5B model: 32)."
        ),
        io.Int.Input(
            "height", default=480, min=16, max=MAX_SIDE, step=16, tooltip="Pixels; multiples of 16 (5B model: 32)."
        ),
        io.Int.Input(
            "frames", default=81, min=1, max=MAX_FRAMES, step=4, tooltip="4n+1: 1, 5, 9 ... 81. 1 makes a picture."
        ),
        io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="How many videos at once; each takes memory."),
    ]


class EmptyLatent(io.ComfyNode):
    """Where a video from text starts."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreEmptyLatent",
            display_name="Wan Core Empty Latent",
            category="Wan Core/2 encode",
            description="The size and length of a video made from text alone.",
            inputs=[Model.Input("model", tooltip="Decides the latent space."), *size_inputs()],
            outputs=[io.Latent.Output(display_name="latent")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, width, height, frames, batch_size) -> io.NodeOutput:
        spec = model.variant.latent
        grid = grid_of(spec, width=width, height=height, frames=frames)
        samples = torch.zeros(batch_size, spec.channels, *grid.latent_shape)
        return NodeRun(cls).output({"samples": samples})


class VAEEncode(io.ComfyNode):
    """Pictures -> LATENT."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreVAEEncode",
            display_name="Wan Core VAE Encode",
            category="Wan Core/2 encode",
            description="Encodes a clip, four frames at a time. Frames beyond 4n+1 are not seen.",
            inputs=[
                io.Image.Input("images", tooltip="The frames of one clip; sides must be multiples of 16 (5B: 32)."),
                io.Vae.Input("vae"),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images, vae) -> io.NodeOutput:
        run, spec = NodeRun(cls), vae_spec(vae)
        grid_of(spec, width=images.shape[2], height=images.shape[1], frames=1)
        unseen = (len(images) - 1) % spec.stride_t
        if unseen:
            run.notify(f"The last {unseen} of {len(images)} frames are not encoded: a clip is 4n+1 frames long.")
        if not isinstance(vae, VaeWire):
            return run.output({"samples": vae.encode(images)})
        return run.output({"samples": vae_stage.encode(vae.handle, images[None], run.ports)})


class VAEDecode(io.ComfyNode):
    """LATENT -> pictures."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreVAEDecode",
            display_name="Wan Core VAE Decode",
            category="Wan Core/4 decode",
            description="Decodes the video a few frames at a time. Connect fps to Create Video.",
            inputs=[io.Latent.Input("samples"), io.Vae.Input("vae")],
            outputs=[
                io.Image.Output(display_name="images"),
                io.Float.Output(display_name="fps", tooltip="Frames a second that the model was made for."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, samples, vae) -> io.NodeOutput:
        run, spec = NodeRun(cls), vae_spec(vae)
        latent = without_references(samples, run.notify)
        vae_stage.check_channels(spec, latent.shape[1])
        if isinstance(vae, VaeWire):
            frames = vae_stage.decode(vae.handle, latent, run.ports)
        else:
            frames = vae.decode(latent)
        return run.output(frames.flatten(0, 1), float(samples.get("fps", spec.fps)))
