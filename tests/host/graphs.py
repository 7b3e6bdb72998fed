"""API-mode graphs for tests: nodes are added one by one, wires are what ``add`` returns."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

NEGATIVE = "blurry, low quality"


class Graph:
    """A prompt under construction."""

    def __init__(self):
        self.prompt: dict[str, dict] = {}

    def add(self, class_type: str, **inputs) -> "Node":
        number = str(len(self.prompt) + 1)
        wires = {name: value.wire(0) if isinstance(value, Node) else value for name, value in inputs.items()}
        self.prompt[number] = {"class_type": class_type, "inputs": wires}
        return Node(number)

    def dump(self, value, name: str) -> None:
        self.add("WanTestDump", value=value, name=name)


class Node:
    """A node in a graph; as an input it stands for its first output."""

    def __init__(self, number: str):
        self.number = number

    def wire(self, slot: int) -> list:
        return [self.number, slot]


def loaders(graph: Graph, files: dict[str, Path]) -> dict[str, Node]:
    """Our text encoder and VAE, and one prompt encoded on both sides."""
    encoder = graph.add("WanCoreLoadTextEncoder", text_encoder_name=files["text_encoder"].name, precision="fp32")
    return {
        "text_encoder": encoder,
        "vae": graph.add("WanCoreLoadVAE", vae_name=files["vae"].name, precision="fp32"),
        "text": graph.add("WanCoreTextEncode", clip=encoder, positive="a red fox in snow", negative=NEGATIVE),
    }


def our_model(graph: Graph, files: dict[str, Path], high: str, low: str | None = None) -> Node:
    return graph.add(
        "WanCoreLoadModel",
        model_name=files[high].name,
        low_noise_model=files[low].name if low else "none",
        variant="auto",
        precision="fp32",
    )


def our_sampler(graph: Graph, model: Node, positive, negative, latent, **changes) -> Node:
    widgets = {
        "seed": 1, "steps": 8, "guidance": 5.0, "guidance_low": 0.0, "shift": 5.0, "solver": "euler",
        "schedule": "simple", "denoise": 1.0, "start_step": 0, "end_step": 10000, "boundary": 0.0, "switch_step": 0,
    }  # fmt: skip
    unknown = set(changes) - set(widgets)
    assert not unknown, unknown
    inputs = {"model": model, "positive": positive, "negative": negative, "latent": latent, **widgets, **changes}
    return graph.add("WanCoreSampler", **inputs)


def native_model(graph: Graph, files: dict[str, Path], name: str, shift: float) -> Node:
    unet = graph.add("UNETLoader", unet_name=files[name].name, weight_dtype="default")
    return graph.add("ModelSamplingSD3", model=unet, shift=shift)


def native_sampler(graph: Graph, model: Node, positive, negative, latent, **changes) -> Node:
    widgets = {
        "seed": 1, "steps": 8, "cfg": 5.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
    }  # fmt: skip
    inputs = {"model": model, "positive": positive, "negative": negative, "latent_image": latent, **widgets, **changes}
    return graph.add("KSampler", **inputs)


def dumped(folder: Path, name: str) -> Tensor:
    return load_file(folder / f"{name}.safetensors")["value"]
