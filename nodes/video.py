"""LATENT -> a video file, and a video file -> LATENT, frame by frame: memory does not grow with the length.

Workflows come from strangers. A file is only ever written below the host's output folder, under a new name, and only
ever read from the host's own folders.
"""

from contextlib import closing, contextmanager
from dataclasses import replace

import torch
from comfy_api.latest import InputImpl, io, ui

from ..wan_core.errors import InputError, MismatchError, OutputError
from ..wan_core.media.codecs import QUALITIES, VIDEO_CODECS, codec_of
from ..wan_core.media.write import Sound, VideoSettings, write_video
from ..wan_core.stages import vae as vae_stage
from ..wan_core.stages import video_file
from ..wan_core.stages.video_file import Cut
from .host import NodeRun, file_state, input_video, input_videos, job_tags, save_place
from .native_wires import without_references
from .wires import VaeWire, vae_spec

KEPT = "The latent is kept: mend this and run again, and only the decode is repeated."


class SaveVideo(io.ComfyNode):
    """LATENT -> a file in the output folder, and the file as VIDEO."""

    @classmethod
    def define_schema(cls):
        plays = "; ".join(f"{name}: {codec.plays}" for name, codec in VIDEO_CODECS.items())
        return io.Schema(
            node_id="WanCoreSaveVideo",
            display_name="Wan Core Decode to Video File",
            category="Wan Core/4 decode",
            description="Decodes the video straight into a file; memory does not grow with its length.",
            is_output_node=True,
            inputs=[
                io.Vae.Input("vae"),
                io.Latent.Input("latent"),
                io.String.Input(
                    "filename_prefix",
                    default="video/wan",
                    tooltip="Below the output folder. The next free number and the ending are added.",
                ),
                io.Float.Input(
                    "fps", default=0.0, min=0.0, max=1000.0, step=0.01, tooltip="0: what the model was made for."
                ),
                io.Combo.Input("codec", options=list(VIDEO_CODECS), default="h264", tooltip=f"{plays}."),
                io.Combo.Input("quality", options=list(QUALITIES), default="high", tooltip="Better is larger."),
                io.Audio.Input("audio", optional=True, tooltip="Cut to the length of the video."),
            ],
            outputs=[
                io.Video.Output(display_name="video", is_output_list=True, tooltip="One file for each of a batch."),
                io.Float.Output(display_name="fps"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix=None):
        """Said before anything is sampled; what comes by wire is checked when the node runs."""
        try:
            save_place("wan" if filename_prefix is None else filename_prefix, make=False)
        except (InputError, OutputError) as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, vae, latent, filename_prefix, fps, codec, quality, audio=None) -> io.NodeOutput:
        run, spec = NodeRun(cls), vae_spec(vae)
        samples = without_references(latent, run.notify)
        vae_stage.check_channels(spec, samples.shape[1])
        codec_of(codec)
        scale = spec.stride_hw
        settings = VideoSettings(
            fps=fps or float(latent.get("fps", spec.fps)), codec=codec, quality=quality, metadata=job_tags(cls)
        )
        files = []
        with _latent_kept(files, len(samples)):
            place = save_place(filename_prefix, width=samples.shape[-1] * scale, height=samples.shape[-2] * scale)
            for index in range(len(samples)):
                one = replace(settings, sound=_sound(audio, index))
                with closing(_frames(run, vae, samples, index)) as frames:
                    files.append(write_video(frames, place.place, one))
        run.notify(f"Saved {', '.join(path.name for path in files)}; {settings.fps:g} frames a second.")
        shown = [ui.SavedResult(path.name, place.subfolder, io.FolderType.output) for path in files]
        videos = [InputImpl.VideoFromFile(str(path)) for path in files]
        return run.output(videos, settings.fps, ui=ui.PreviewVideo(shown).as_dict())


@contextmanager
def _latent_kept(files: list, count: int):
    """A file that cannot be written costs its decode, and the sentence says so."""
    try:
        yield
    except OutputError as error:
        written = f" {len(files)} of {count} files were written." if files else ""
        raise OutputError(f"{error}{written} {KEPT}") from error


def _frames(run: NodeRun, vae, samples, index: int):
    """The frames of one clip of a batch; the bar counts all of them."""
    one, count = samples[index : index + 1], len(samples)
    if not isinstance(vae, VaeWire):
        return video_file.byte_frames(frames[None, None] for frames in vae.decode(one).flatten(0, -4))

    def progress(done, total, x0):
        run.progress(index * total + done, count * total, x0)

    return video_file.decoded_frames(vae.handle, one, replace(run.ports, progress=progress))


def _sound(audio, index: int) -> Sound | None:
    """The sound of one clip of a batch; the last one goes on for clips that have none of their own."""
    if audio is None:
        return None
    wave = audio.get("waveform") if isinstance(audio, dict) else None
    if not isinstance(wave, torch.Tensor) or wave.ndim != 3 or not isinstance(audio.get("sample_rate"), int):
        raise MismatchError("The audio is no sound [batch, channels, samples] with a sample rate. Use Load Audio.")
    if not wave.shape[0] or not wave.shape[2]:
        return None
    return Sound(waveform=wave[min(index, len(wave) - 1)], sample_rate=audio["sample_rate"])


class LoadVideoLatent(io.ComfyNode):
    """A file of the input folder -> LATENT."""

    @classmethod
    def define_schema(cls):
        size = "Multiples of 16 (5B: 32). 0: as the file, or by its shape. Frames are scaled to cover, the centre cut."
        return io.Schema(
            node_id="WanCoreLoadVideoLatent",
            display_name="Wan Core Encode Video File",
            category="Wan Core/2 encode",
            description="Encodes a video straight from its file; memory does not grow with its length.",
            inputs=[
                io.Combo.Input("file", options=input_videos(), upload=io.UploadType.video),
                io.Vae.Input("vae"),
                io.Int.Input("start_frame", default=0, min=0, max=10_000_000, tooltip="The first frame is 0."),
                io.Int.Input("frames", default=0, min=0, max=100_000, tooltip="0: to the end. Cut to 4n+1."),
                io.Int.Input("width", default=0, min=0, max=8192, step=16, tooltip=size),
                io.Int.Input("height", default=0, min=0, max=8192, step=16, tooltip=size),
            ],
            outputs=[
                io.Latent.Output(display_name="latent"),
                io.Int.Output(display_name="frames", tooltip="That were encoded."),
                io.Float.Output(display_name="fps", tooltip="Frames a second of the file."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, file=None):
        try:
            if file is not None:
                input_video(file)
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file=None, **kwargs):
        try:
            return file_state(input_video(file))
        except (InputError, OSError):
            return "not there"

    @classmethod
    def execute(cls, file, vae, start_frame, frames, width, height) -> io.NodeOutput:
        run, spec, path = NodeRun(cls), vae_spec(vae), input_video(file)
        cut = Cut(start=start_frame, frames=frames, width=width, height=height)
        if isinstance(vae, VaeWire):
            samples, fps = video_file.encode_file(vae.handle, path, cut, run.ports)
        else:
            with video_file.open_clip(path, cut, spec, run.ports) as clip:
                samples, fps = vae.encode(torch.cat(list(clip.pictures))), clip.fps
        encoded = (samples.shape[2] - 1) * spec.stride_t + 1
        return run.output({"samples": samples, "fps": fps}, encoded, fps)
