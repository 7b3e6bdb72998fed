"""Small makers of the table's rows: each prepares something wrong and returns the act that meets it."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from tests import tiny
from wan_core.conditioning.vace import VaceContext
from wan_core.configs import ClipVisionConfig
from wan_core.errors import MismatchError, WanError
from wan_core.models.clip_vision import ClipVision
from wan_core.models.umt5 import Umt5Encoder
from wan_core.runtime.ports import Compute
from wan_core.sampling.loras import parse_strength
from wan_core.stages import image, load, text, vae
from wan_core.stages.load import ClipVisionHandle, ModelHandle, TextEncoderHandle, VaeHandle
from wan_core.stages.lora import add_lora
from wan_core.stages.sample import Settings, sample
from wan_core.text.tokenizer import load_tokenizer
from wan_core.variants import LATENTS

from . import contents, pack
from .rig import Rig, Row

wires, native_wires, latent_nodes, image_nodes, fun_nodes, vace_nodes, preflight = pack.load(
    "wires", "native_wires", "latent", "image", "fun", "vace", "preflight"
)
Make = Callable[[Rig], Callable[[], object]]
tiny_model = lru_cache(tiny.model)
CPU = Compute(device=torch.device("cpu"))
NAN, INF = float("nan"), float("inf")
FUN_CONTROL, CAMERA_CONTROL = fun_nodes.FunControl, fun_nodes.CameraControl
IMAGE_TO_VIDEO, VACE_NODE = image_nodes.ImageToVideo, vace_nodes.Vace
SIZE = {"width": 64, "height": 64, "frames": 5, "batch_size": 1}
LOADERS: dict[str, Callable] = {
    "model": lambda path, rig, **more: load.load_model(path, compute=CPU, notify=rig.ports.notify, **more),
    "text encoder": lambda path, rig, **more: load.load_text_encoder(path, compute=CPU, **more).tokenizer(),
    "VAE": lambda path, rig, **more: load.load_vae(path, compute=CPU, **more),
    "LoRA": lambda path, rig, model="t2v-1.3b", over="1", **more: add_lora(
        tiny_model(model),
        path,
        strength=parse_strength(over),
        strength_low=parse_strength("1"),
        notify=rig.ports.notify,
        **more,
    ),
    "CLIP vision": lambda path, rig, **more: load.load_clip_vision(path, compute=CPU, **more),
}


def refused(id: str, make: Make, error: type[WanError], *words: str) -> Row:
    """It must be refused with ``error``, and the message hold all ``words``."""
    return Row(id=id, make=make, error=error, words=words)


def accepted(id: str, make: Make, *words: str) -> Row:
    """It must be taken, and the notices hold all ``words``."""
    return Row(id=id, make=make, error=None, words=words)


def wrong_pair(
    id: str, make: Make, one: str, other: str, fix: str, error: type[WanError] | None = MismatchError
) -> Row:
    """Two good things of an editing or control task that do not fit: the sentence names both, and the fix."""
    return Row(id=id, make=make, error=error, words=(one, other, fix), sides=(one, other), fix=fix)


def warned(id: str, make: Make, one: str, other: str, fix: str) -> Row:
    """As :func:`wrong_pair`, of what can be meant: it is run, and told before that."""
    return wrong_pair(id, make, one, other, fix, error=None)


# --- files -----------------------------------------------------------------------------------------------------------


def file(slot: str, content: bytes | Callable[[Rig], Path], name: str = "model.safetensors", **more) -> Make:
    """A file given to a loader; ``content`` may be what writes it and returns its path."""

    def make(rig: Rig):
        path = content(rig) if callable(content) else rig.write(name, content)
        options = {key: path.with_name(low) if key == "low_noise_path" else low for key, low in more.items()}
        return lambda: LOADERS[slot](path, rig, **options)

    return make


def pth(write: Callable[[Path, Path], object]) -> Make:
    """A .pth file; ``write(path, canary)``, where code that runs leaves the canary."""

    def make(rig: Rig):
        path = rig.folder / "model.pth"
        write(path, rig.canary)
        return lambda: LOADERS["model"](path, rig)

    return make


def pair(
    high: bytes,
    low: bytes,
    names: tuple[str, str] = ("a_high_noise", "a_low_noise"),
    modules: dict[str, bytes] | None = None,
    **more,
) -> Make:
    """Two files given to the model loader; ``modules``: files of VACE blocks, by the loader's name for them."""

    def make(rig: Rig):
        paths = [rig.write(f"{name}.safetensors", content) for name, content in zip(names, (high, low))]
        beside = {name: rig.write(f"{name}.safetensors", content) for name, content in (modules or {}).items()}
        return lambda: LOADERS["model"](paths[0], rig, low_noise_path=paths[1], **beside, **more)

    return make


def with_module(model: bytes, module: bytes, **more) -> Make:
    """A model and a file of VACE blocks given to the model loader."""

    def make(rig: Rig):
        paths = [rig.write(f"{name}.safetensors", content) for name, content in (("model", model), ("module", module))]
        options = {key: paths[1].with_name(name) for key, name in more.items()}
        return lambda: LOADERS["model"](paths[0], rig, module=paths[1], **options)

    return make


def folder(*files: tuple[str, bytes]) -> Callable[[Rig], Path]:
    """A folder with files, given as if it were one; a path within it where the last name says so."""

    def write(rig: Rig) -> Path:
        for name, content in files:
            rig.write(name, content)
        return rig.folder

    return write


def beside(name: str, content: bytes) -> Make:
    """A text encoder without a tokenizer in it, and ``name`` beside it."""

    def write(rig: Rig) -> Path:
        rig.write(name, content)
        return rig.write("umt5.safetensors", contents.umt5())

    return file("text encoder", write)


# --- what is in memory -----------------------------------------------------------------------------------------------


@lru_cache
def model(name: str) -> ModelHandle:
    return tiny.model(name)


@lru_cache
def vae_of(channels: int) -> VaeHandle:
    return tiny.vae(channels)


@lru_cache
def text_encoder(pieces: int = 400) -> TextEncoderHandle:
    weights = tiny.resident(tiny.randomised(Umt5Encoder(contents.UMT5), 4), "umt5")
    return TextEncoderHandle(
        config=contents.UMT5, weights=weights, tokenizer=lambda: load_tokenizer(contents.tokenizer(pieces))
    )


@lru_cache
def clip_vision() -> ClipVisionHandle:
    config = ClipVisionConfig(image_size=28, dim=32, mlp_dim=48, out_dim=8, num_heads=2, num_layers=2)
    return ClipVisionHandle(config=config, weights=tiny.resident(tiny.randomised(ClipVision(config), 5), "clip"))


class NativeVae:
    """What our nodes read of another VAE."""

    def __init__(self, channels: int):
        self.latent_channels = channels


def filled(*shape: int, value: float | None = None, dtype=torch.float32) -> Tensor:
    """Random numbers in 0..1; ``value`` is put in one place."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    if value is not None and x.numel():
        x.view(-1)[x.numel() // 2] = value
    return x


# --- stages and nodes ------------------------------------------------------------------------------------------------


def sampler(name: str | ModelHandle = "t2v-1.3b", latent: dict | Tensor | None = None, conditioning: list | None = None,
            negative: list | None = None, memory_bytes: int = 2**62, **settings) -> Make:  # fmt: skip
    """The sampler on a small model, its wires read as its node reads them."""

    def make(rig: Rig):
        handle, given = model(name) if isinstance(name, str) else name, latent
        rig.memory_bytes = memory_bytes
        if given is None:
            given = torch.zeros(1, handle.variant.latent.channels, 3, 6, 8)
        given = given if isinstance(given, dict) else {"samples": given}
        positive = entry() if conditioning is None else conditioning
        other = positive if negative is None else negative
        read = native_wires.read_conditioning
        return lambda: sample(
            handle, read(positive, "positive"), read(other, "negative"), native_wires.read_latent(given),
            Settings(**{"steps": 2} | settings), rig.ports,
        )  # fmt: skip

    return make


def entry(text: Tensor | None = None, **extra) -> list:
    """CONDITIONING of one entry."""
    return [[filled(1, 7, 24) if text is None else text, {"pooled_output": None, **extra}]]


def image_entry(size=(3, 6, 8), channels: int = 16, known: Tensor | None = None, mask: Tensor | None = None) -> list:
    """CONDITIONING with known frames, as image-to-video nodes write it."""
    known = filled(1, channels, *size) if known is None else known
    return entry(concat_latent_image=known, concat_mask=torch.zeros(1, 4, *size) if mask is None else mask)


def control_entry(size=(3, 6, 8), channels: int = 16, batch: int = 1, **extra) -> list:
    """CONDITIONING with a control video and a start image, as native Fun Control nodes write it."""
    mask, latents = torch.ones(1, 4, *size), filled(batch, 2 * channels, *size)
    known = {"concat_latent_image": latents, "concat_mask": mask, "concat_mask_index": channels}
    return entry(**(known | extra))


def subject_entry(channels: int, size=(6, 8)) -> list:
    """CONDITIONING with two pictures of subjects, as the native Phantom node writes it."""
    return entry(time_dim_concat=filled(1, channels, 2, *size))


def vace_entry(size=(3, 6, 8), frames=None, mask=None, strength=None) -> list:
    """CONDITIONING with a VACE context, as the native node writes it."""
    return entry(
        vace_frames=[filled(1, 32, *size)] if frames is None else frames,
        vace_mask=[filled(1, 64, *size)] if mask is None else mask,
        vace_strength=[1.0] if strength is None else strength,
    )


def reference_entry(*shape: int, **extra) -> list:
    """CONDITIONING with a reference picture, as native ReferenceLatent writes it."""
    return entry(reference_latents=[filled(*(shape or (1, 16, 1, 6, 8)))], **extra)


def camera_entry(*shape: int, **extra) -> list:
    """CONDITIONING with a camera path, as native camera nodes write it."""
    return entry(camera_conditions=filled(*(shape or (1, 24, 3, 48, 64))), **extra)


def clip_features(*shape: int, value: float | None = None) -> list:
    output = wires.ClipVisionOutput(filled(*shape, value=value))
    return [[image_entry()[0][0], {**image_entry()[0][1], "clip_vision_output": output}]]


def empty_latent(name: str = "t2v-1.3b", **size) -> Make:
    return lambda rig: lambda: latent_nodes.EmptyLatent.execute(model(name), **SIZE | size)


def start_image(picture: Tensor | None, channels: int = 16, **more) -> Make:
    """A picture given to the image-to-video node."""

    return encoded(IMAGE_TO_VIDEO, channels, start_image=picture, **more)


def encoded(node: type, channels: int = 16, **inputs) -> Make:
    """A node that encodes for a small model, with our VAE of so many channels, or a native one where we have none."""

    def make(rig: Rig):
        wire = wires.VaeWire(vae_of(channels)) if channels in LATENTS else NativeVae(channels)
        more = SIZE | ({"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0} if node is VACE_NODE else {})
        return lambda: node.execute(entry(), entry(), wire, **more | inputs)

    return make


def chained_vace(first: tuple[int, ...], second: tuple[int, ...]) -> Make:
    """A VACE context of one size written behind one of another."""
    context = VaceContext(latent=filled(1, 32, *second), mask=filled(1, 64, *second))
    return lambda rig: lambda: native_wires.write_vace(vace_entry(first), context, 0, LATENTS[16])


def then_sampled(first: Make, name: str, latent: Tensor | None = None) -> Make:
    """What a node has made, given to the sampler; ``latent``: in place of the node's own."""

    def make(rig: Rig):
        positive, negative, own, *_ = first(rig)()
        rig.forget()
        return sampler(name, own if latent is None else latent, positive, negative)(rig)

    return make


def clip_image(picture: Tensor) -> Make:
    return lambda rig: lambda: image.encode_image(clip_vision(), picture, rig.ports)


def vae_encode(clip: Tensor, channels: int = 16) -> Make:
    return lambda rig: lambda: vae.encode(vae_of(channels), clip, rig.ports)


def vae_wire(pixels: Tensor) -> Make:
    """Pictures that a native node hands to our VAE."""
    return lambda rig: lambda: wires.VaeWire(vae_of(16)).encode(pixels)


def vae_decode(latent: Tensor, channels: int = 16) -> Make:
    return lambda rig: lambda: vae.decode(vae_of(channels), latent, rig.ports)


def prompt(words: str, clean: bool = True, pieces: int = 400) -> Make:
    """A prompt, as our node reads it or (``clean=False``) as native nodes do on our text encoder."""

    def make(rig: Rig):
        encoder = text_encoder(pieces)
        return lambda: text.encode_tokens(encoder, text.tokenize(encoder, words, rig.ports, clean), rig.ports)

    return make


def native_vae(channels: int) -> Make:
    """A VAE of another model on the wire of our nodes."""
    return lambda rig: lambda: wires.vae_spec(NativeVae(channels))


def decoder(name: str, vae_file: bytes) -> Make:
    """The file that the decoder behind a sampler loads, as the sampler looks at it."""
    prompt = {
        "1": {"class_type": "WanCoreLoadVAE", "inputs": {"vae_name": "vae.safetensors"}},
        "2": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["1", 0]}},
    }

    def make(rig: Rig):
        path = rig.write("vae.safetensors", vae_file)
        preflight.model_path = lambda kind, name: path
        return lambda: preflight.check_decoder(prompt, "3", model(name).variant)

    return make


def guided(name: str, extra: Callable[..., ModelHandle], *options, **settings) -> Make:
    """The sampler on a model with an extra of guidance (a function of ``stages/guidance.py``)."""

    def make(rig: Rig):
        handle = model(name)
        return lambda: sampler(extra(handle, *options), **settings)(rig)()

    return make
