"""The model files and the graphs of ``benchmarks.host_drift``."""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from scripts import tiny_models
from tests.host.graphs import Graph, Node, native_model, native_sampler, our_model, our_sampler
from wan_core.configs import DitConfig, VaeConfig
from wan_core.models.dit import WanDiT
from wan_core.models.vae import WanVAE

from .real_size import ROWS, shapes, write

SIZE = {"width": 32, "height": 32}
FRAMES = 5
STEPS = 2
MODELS = ("t2v", "i2v_high")
"""Roles of ``scripts/tiny_models.py``: one from text, one from a picture; native ComfyUI takes both."""
WORDS = "A red fox runs through fresh snow while a cat in boxing gloves plays the violin on the moon. " * 60
"""Cut at the text encoder's 512 tokens: with a number before it a new prompt each run, and so long that the 64 MB of
encodings which the pack keeps are full before the judged runs begin."""
FIXED_WORDS = "A red fox in snow"
NEGATIVE = "blurry, low quality"

Files = dict[str, Path]


def tiny_files(models: Path, full_width_vae: bool) -> Files:
    """The tiny checkpoints by role, and ``native_vae``: what the host's own loader is given."""
    files = tiny_models.make(models, [*MODELS, "text_encoder", "vae"])
    files["native_vae"] = files["vae"]
    if full_width_vae:
        path = models / "vae" / "full_width_vae_2.1.safetensors"
        if not path.exists():
            generator = torch.Generator().manual_seed(zlib.crc32(b"full width"))
            save_file(tiny_models.randomised(WanVAE, VaeConfig(), generator), path)
        files["native_vae"] = path
    return files


def wide_files(models: Path, layers: int) -> Files:
    """Two transformers of the 1.3B's width, random float32 weights: ``wide_a`` and ``wide_b``."""
    config = replace(ROWS["t2v-1.3b"], num_layers=layers)
    return {f"wide_{name}": dit_file(models, f"wide_{name}", config, torch.float32, i) for i, name in enumerate("ab")}


def pair_files(models: Path, layers: int) -> Files:
    """Two experts of the A14B's width, random bfloat16 weights: ``pair_high`` and ``pair_low``."""
    config = replace(ROWS["t2v-a14b"], num_layers=layers)
    return {
        f"pair_{name}": dit_file(models, f"pair_{name}_noise", config, torch.bfloat16, i)
        for i, name in enumerate(("high", "low"))
    }


def dit_file(models: Path, name: str, config: DitConfig, dtype: torch.dtype, seed: int) -> Path:
    path = models / "diffusion_models" / f"wan_{name}.safetensors"
    if not path.exists():
        with torch.device("meta"):
            sizes = shapes(WanDiT(config), "dit", "official")
        write(path, {key: (shape, dtype) for key, shape in sizes.items()}, seed, {})
    return path


# --- graphs ----------------------------------------------------------------------------------------------------------


def ours(files: Files, role: str, number: int) -> dict:
    """Our nodes from a prompt to an MP4; seed, prompt and picture change with ``number``, so nothing is cached."""
    graph = Graph()
    model, (encoder, vae) = our_model(graph, files, role), _our_parts(graph, files)
    words = {"positive": f"{number}. {WORDS}", "negative": NEGATIVE}
    text = graph.add("WanCoreTextEncode", clip=encoder, **words)
    sides, latent = (text.wire(0), text.wire(1)), None
    if role.startswith("i2v"):
        inputs = {"positive": sides[0], "negative": sides[1], "vae": vae, "start_image": _picture(graph, number)}
        image = graph.add("WanCoreImageToVideo", **inputs, **SIZE, frames=FRAMES, batch_size=1)
        sides, latent = (image.wire(0), image.wire(1)), image.wire(2)
    else:
        latent = graph.add("WanCoreEmptyLatent", model=model, **SIZE, frames=FRAMES, batch_size=1)
    sampled = our_sampler(graph, model, *sides, latent, seed=number, steps=STEPS, solver="unipc")
    _save(graph, graph.add("WanCoreVAEDecode", samples=sampled, vae=vae))
    return graph.prompt


def native(files: Files, role: str, number: int) -> dict:
    """The host's own nodes for the same video. Native umT5 has one size, so our encoder makes the text: once, as the
    text is the same each time and the host keeps it."""
    graph = Graph()
    model = native_model(graph, files, role, 5.0)
    encoder = graph.add("WanCoreLoadTextEncoder", text_encoder_name=files["text_encoder"].name, precision="fp32")
    vae = graph.add("VAELoader", vae_name=files["native_vae"].name)
    sides = [graph.add("CLIPTextEncode", clip=encoder, text=text).wire(0) for text in (FIXED_WORDS, NEGATIVE)]
    if role.startswith("i2v"):
        inputs = {"positive": sides[0], "negative": sides[1], "vae": vae, "start_image": _picture(graph, number)}
        image = graph.add("WanImageToVideo", **inputs, **SIZE, length=FRAMES, batch_size=1)
        sides, latent = [image.wire(0), image.wire(1)], image.wire(2)
    else:
        latent = graph.add("EmptyHunyuanLatentVideo", **SIZE, length=FRAMES, batch_size=1)
    sampled = native_sampler(graph, model, *sides, latent, seed=number, steps=STEPS)
    _save(graph, graph.add("VAEDecode", samples=sampled, vae=vae))
    return graph.prompt


def several(files: Files, roles: Sequence[str], number: int, *, by_host: bool = False) -> dict:
    """One job that samples with every model of ``roles``, so that all of them are loaded at its end."""
    graph = Graph()
    encoder, vae = _our_parts(graph, files)
    text = graph.add("WanCoreTextEncode", clip=encoder, positive=FIXED_WORDS, negative=NEGATIVE)
    latent = graph.add("EmptyHunyuanLatentVideo", **SIZE, length=FRAMES, batch_size=1)
    for role in roles:
        inputs = (text.wire(0), text.wire(1), latent)
        if by_host:
            model = native_model(graph, files, role, 5.0)
            sampled = native_sampler(graph, model, *inputs, seed=number, steps=STEPS)
        else:
            sampled = our_sampler(graph, our_model(graph, files, role), *inputs, seed=number, steps=STEPS)
        _save(graph, graph.add("WanCoreVAEDecode", samples=sampled, vae=vae))
    return graph.prompt


def pair(files: Files) -> dict:
    """A pair in two steps, one for each expert, with the precision that the loader chooses."""
    graph = Graph()
    names = {"model_name": files["pair_high"].name, "low_noise_model": files["pair_low"].name}
    model = graph.add("WanCoreLoadModel", **names, variant="auto", precision="auto")
    encoder, vae = _our_parts(graph, files)
    text = graph.add("WanCoreTextEncode", clip=encoder, positive=FIXED_WORDS, negative=NEGATIVE)
    latent = graph.add("WanCoreEmptyLatent", model=model, **SIZE, frames=FRAMES, batch_size=1)
    sampled = our_sampler(graph, model, text.wire(0), text.wire(1), latent, steps=2, switch_step=1)
    _save(graph, graph.add("WanCoreVAEDecode", samples=sampled, vae=vae))
    return graph.prompt


def _our_parts(graph: Graph, files: Files) -> tuple[Node, Node]:
    encoder = graph.add("WanCoreLoadTextEncoder", text_encoder_name=files["text_encoder"].name, precision="fp32")
    return encoder, graph.add("WanCoreLoadVAE", vae_name=files["vae"].name, precision="fp32")


def _picture(graph: Graph, number: int) -> Node:
    return graph.add("EmptyImage", **SIZE, batch_size=1, color=1000 * number)


def _save(graph: Graph, frames: Node) -> None:
    video = graph.add("CreateVideo", images=frames, fps=16.0)
    graph.add("SaveVideo", video=video, filename_prefix="video/drift", format="mp4", codec="h264")
