"""Native samplers on our model, through Wan Core Model to MODEL, against native samplers on the native model: one
server, the same float32 files, the same latents."""

import logging
from pathlib import Path

import pytest
import torch

from tests.host.graphs import Graph, Node, dumped, loaders, native_sampler, our_model, our_sampler
from tests.host.test_interop import (
    CLOSE,
    FAR,
    FRAMES,
    MODELS,
    SIZE,
    conditions,
    our_vae,
    picture,
    pictures,
    start_latent,
)

log = logging.getLogger(__name__)
__all__ = ["picture", "pictures"]
"""Fixtures of the other file."""

BASE = {"seed": 1, "cfg": 5.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0, "batch": 1, "shift": 5.0}
CASES = [
    BASE,
    {**BASE, "cfg": 1.0, "scheduler": "beta", "shift": None},
    {**BASE, "sampler_name": "uni_pc", "scheduler": "simple", "shift": 8.0, "batch": 2},
    {**BASE, "sampler_name": "dpmpp_2m", "scheduler": "sgm_uniform", "shift": 3.0, "seed": 2},
    {**BASE, "denoise": 0.6, "scheduler": "normal"},
    {**BASE, "denoise": 0.6, "batch": 2, "cfg": 1.0, "sampler_name": "uni_pc", "shift": None},
    {**BASE, "sampler_name": "heun", "scheduler": "linear_quadratic"},
]
"""``shift`` None: no ModelSamplingSD3, the loader's own schedule."""
IMAGE_CASES = [one for one in CASES if one["denoise"] == 1.0]


def bridge(graph: Graph, model: Node, slot: int = 0, **widgets) -> list:
    return graph.add("WanCoreToModel", model=model, boundary=widgets.get("boundary", 0.0)).wire(slot)


def native(graph: Graph, files: dict[str, Path], name: str) -> Node:
    return graph.add("UNETLoader", unet_name=files[name].name, weight_dtype="default")


def shifted(graph: Graph, model, shift: float | None):
    return model if shift is None else graph.add("ModelSamplingSD3", model=model, shift=shift)


def worst(client, first: str, second: str) -> float:
    a, b = (dumped(client.host.output_dir, name) for name in (first, second))
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@pytest.mark.parametrize("role", MODELS)
def test_a_native_sampler_makes_the_same_latent_with_our_model_as_with_its_own(client, tiny_files, pictures, role):
    graph, cases = Graph(), CASES if role != "ti2v_image" else IMAGE_CASES
    parts = loaders(graph, tiny_files)
    vae = our_vae(graph, tiny_files, role)
    positive, negative = conditions(graph, parts, role, tiny_files, pictures)
    models = {
        "native": native(graph, tiny_files, MODELS[role]),
        "ours": bridge(graph, our_model(graph, tiny_files, MODELS[role])),
    }
    for i, case in enumerate(cases):
        latent = start_latent(graph, vae, role, case, pictures[0])
        widgets = {key: value for key, value in case.items() if key not in ("batch", "shift")}
        for name, model in models.items():
            made = native_sampler(graph, shifted(graph, model, case["shift"]), positive, negative, latent, **widgets)
            graph.dump(made, f"bridge_{role}_{i}_{name}")
    client.run(graph.prompt)
    found = [worst(client, f"bridge_{role}_{i}_native", f"bridge_{role}_{i}_ours") for i in range(len(cases))]
    log.info("%s: max abs differences %s", role, ", ".join(f"{one:.1e}" for one in found))
    assert max(found) <= CLOSE, dict(zip(map(str, cases), found))
    assert worst(client, f"bridge_{role}_0_native", f"bridge_{role}_1_ours") > FAR
