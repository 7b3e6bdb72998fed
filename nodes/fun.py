"""Wan Fun: a control video, a reference picture, a camera path -> conditioning."""

import torch
from comfy_api.latest import io

from ..wan_core.conditioning.camera import MAX_SPEED, MOTIONS, camera_embedding, camera_path
from ..wan_core.conditioning.known_frames import known_mask
from ..wan_core.errors import InputError
from ..wan_core.grid import MAX_FRAMES, MAX_SIDE, Grid, grid_of
from ..wan_core.stages import image
from ..wan_core.variants import LatentSpec
from .host import NONE, NodeRun
from .image import clean_first_frame
from .latent import size_inputs
from .native_wires import write_camera, write_clip_vision, write_control, write_known_frames, write_reference
from .wires import vae_spec

CATEGORY = "Wan Core/2 encode"
CLIP_TIP = "For Wan 2.1 Fun models; Wan 2.2 takes none."


def _outputs() -> list:
    return [
        io.Conditioning.Output(display_name="positive"),
        io.Conditioning.Output(display_name="negative"),
        io.Latent.Output(display_name="latent"),
    ]


class FunControl(io.ComfyNode):
    """A control video, a start image and a reference picture -> conditioning for Fun Control models."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreFunControl",
            display_name="Wan Core Fun Control",
            category=CATEGORY,
            description="Lets a video follow another one (pose, depth, edges ...), for Wan Fun Control models.",
            inputs=[
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Vae.Input("vae", tooltip="The VAE of the model: Wan 2.1, or Wan 2.2 for the 5B."),
                *size_inputs(),
                io.Image.Input("control_video", optional=True, tooltip="Pose, depth or edges, a picture a frame."),
                io.Image.Input("start_image", optional=True, tooltip="The first frame (or the first few)."),
                io.Image.Input(
                    "ref_image", optional=True, tooltip="Who or what is in the video; for Wan 2.2, or 2.1 V1.1."
                ),
                io.ClipVisionOutput.Input("clip_vision_output", optional=True, tooltip=CLIP_TIP),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, positive, negative, vae, width, height, frames, batch_size,
        control_video=None, start_image=None, ref_image=None, clip_vision_output=None,
    ) -> io.NodeOutput:  # fmt: skip
        if control_video is None and start_image is None and ref_image is None:
            raise InputError("Connect a control_video, a start_image or a ref_image.")
        run, spec = NodeRun(cls), vae_spec(vae)
        grid = grid_of(spec, width=width, height=height, frames=frames)
        control = _encoded(vae, spec, grid, control_video, "control_video", run)
        start = _encoded(vae, spec, grid, start_image, "start_image", run)
        mask = known_mask(grid, _count(start_image, grid), 0)
        sides = [write_control(side, control, start, mask) for side in (positive, negative)]
        if ref_image is not None:
            reference = vae.encode(image.fit(ref_image[:1], grid, "ref_image", run.notify))
            sides = [write_reference(side, reference) for side in sides]
        latent = _latent(spec, grid, batch_size, None if start_image is None else start)
        return run.output(*_with_clip(sides, clip_vision_output), latent)


class CameraPath(io.ComfyNode):
    """Motions -> the camera embedding that Fun Camera models take; native nodes take it too."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreCameraPath",
            display_name="Wan Core Camera Path",
            category=CATEGORY,
            description="How the camera moves, for Wan Fun Camera models. Two motions are done at the same time.",
            inputs=[
                io.Combo.Input("motion", options=list(MOTIONS), default="Zoom In", tooltip="What the camera does."),
                io.Combo.Input(
                    "second_motion", options=[NONE, *MOTIONS], default=NONE, tooltip="What it does at the same time."
                ),
                io.Float.Input(
                    "speed", default=1.0, min=0.0, max=MAX_SPEED, step=0.1,
                    tooltip="1 turns by 60 degrees in a clip, or moves by 1.5 units (zooms: 3).",
                ),
                io.Int.Input("width", default=832, min=16, max=MAX_SIDE, step=16, tooltip="That of the video."),
                io.Int.Input("height", default=480, min=16, max=MAX_SIDE, step=16, tooltip="That of the video."),
                io.Int.Input("frames", default=81, min=1, max=MAX_FRAMES, step=4, tooltip="4n+1, those of the video."),
                io.Float.Input(
                    "focal_length", default=0.5, min=0.1, max=10.0, step=0.05,
                    tooltip="In picture widths: 0.5 looks 90 degrees wide, as the models know it; more is narrower.",
                ),
            ],
            outputs=[
                io.WanCameraEmbedding.Output(display_name="camera_embedding"),
                io.Int.Output(display_name="width"),
                io.Int.Output(display_name="height"),
                io.Int.Output(display_name="frames"),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, motion, second_motion, speed, width, height, frames, focal_length) -> io.NodeOutput:
        motions = [name for name in (motion, second_motion) if name != NONE]
        path = camera_path(motions, speed, frames)
        embedding = camera_embedding(path, width=width, height=height, focal=(focal_length, focal_length))
        return NodeRun(cls).output(embedding, width, height, frames)


class CameraControl(io.ComfyNode):
    """A camera path and a start image -> conditioning for Fun Camera models."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="WanCoreCameraControl",
            display_name="Wan Core Camera Control",
            category=CATEGORY,
            description="Lets the camera move along a path, from a start image or text, for Wan Fun Camera models.",
            inputs=[
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Vae.Input("vae", tooltip="The VAE of the model: Wan 2.1, or Wan 2.2 for the 5B."),
                io.WanCameraEmbedding.Input("camera_embedding", tooltip="From Camera Path, or the native node."),
                *size_inputs(),
                io.Image.Input("start_image", optional=True, tooltip="The first frame (or the first few)."),
                io.ClipVisionOutput.Input("clip_vision_output", optional=True, tooltip=CLIP_TIP),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, positive, negative, vae, camera_embedding, width, height, frames, batch_size,
        start_image=None, clip_vision_output=None,
    ) -> io.NodeOutput:  # fmt: skip
        run, spec = NodeRun(cls), vae_spec(vae)
        grid = grid_of(spec, width=width, height=height, frames=frames)
        sides, start = [write_camera(side, camera_embedding) for side in (positive, negative)], None
        if start_image is not None:
            start = _encoded(vae, spec, grid, start_image, "start_image", run)
            mask = known_mask(grid, _count(start_image, grid), 0)
            sides = [write_known_frames(side, start, mask) for side in sides]
        return run.output(*_with_clip(sides, clip_vision_output), _latent(spec, grid, batch_size, start))


def _encoded(vae, spec: LatentSpec, grid: Grid, pictures, what: str, run: NodeRun) -> torch.Tensor:
    """Pictures from the clip's beginning on as a latent of its size; zero to the model where there are none."""
    made = spec.denormalise(torch.zeros(1, spec.channels, *grid.latent_shape))
    if pictures is None:
        return made
    if len(pictures) > grid.frames:
        run.notify(
            f"Of {len(pictures)} pictures of {what} {grid.frames} are used: the clip has no more frames. Make it "
            "longer to use them all."
        )
    elif what == "control_video" and len(pictures) < grid.frames:
        run.notify(
            f"control_video has {len(pictures)} pictures, the clip {grid.frames} frames: it is not led to its end. "
            "Give a longer control_video, or make the clip shorter."
        )
    latent = vae.encode(image.fit(pictures[: grid.frames], grid, what, run.notify))
    made[:, :, : latent.shape[2]] = latent
    return made


def _count(pictures, grid: Grid) -> int:
    return 0 if pictures is None else min(len(pictures), grid.frames)


def _latent(spec: LatentSpec, grid: Grid, batch_size: int, start: torch.Tensor | None) -> dict:
    """An empty latent. Models of the 2.2 VAE get the first frame of a start image clean, as they were trained."""
    samples = torch.zeros(1, spec.channels, *grid.latent_shape)
    if start is None or not spec.clean_frames:
        return {"samples": samples.repeat(batch_size, 1, 1, 1, 1)}
    given = clean_first_frame(spec, grid, start)
    return {name: x.repeat(batch_size, 1, 1, 1, 1) for name, x in given.items()}


def _with_clip(sides: list, clip_vision_output) -> list:
    if clip_vision_output is None:
        return sides
    return [write_clip_vision(side, clip_vision_output.penultimate_hidden_states) for side in sides]
