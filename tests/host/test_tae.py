"""Tiny VAEs in real hosts: as the native one decodes, from both folders, in our nodes and in native ones."""

import logging

import pytest
import torch

from scripts import api_client
from tests import tae_files
from tests.host.graphs import Graph, dumped, loaders, our_model, our_sampler

log = logging.getLogger(__name__)

CASES = {  # latent's role: file, folder, shape, dtype
    "t2v": ("lighttaew2_1.safetensors", "vae_approx", tae_files.TAE_21, torch.float32),
    # Native VAELoader looks for a file of the published name in vae_approx only.
    "ti2v": ("wan_lighttaew2_2.safetensors", "vae", tae_files.TAE_22, torch.float32),
}
FP16 = "taew2_1.safetensors"


@pytest.fixture(scope="module", autouse=True)
def files(tiny_tree, tiny_files):
    for name, folder, config, dtype in (*CASES.values(), (FP16, "vae_approx", tae_files.TAE_21, torch.float16)):
        tae_files.write(tiny_tree / folder / name, config, dtype)


def sampled(graph: Graph, files: dict, role: str, seed: int = 1):
    """A latent of 9 frames of 64x64 pixels. The host keeps those of equal seeds."""
    text = loaders(graph, files)["text"]
    model = our_model(graph, files, role)
    empty = graph.add("WanCoreEmptyLatent", model=model, width=64, height=64, frames=9, batch_size=1)
    return our_sampler(graph, model, text.wire(0), text.wire(1), empty, steps=2, guidance=1.0, seed=seed)


def our_vae(graph: Graph, name: str):
    return graph.add("WanCoreLoadVAE", vae_name=name, precision="fp32")


@pytest.mark.parametrize("role", CASES)
def test_it_decodes_as_the_native_one_in_our_nodes_and_in_native_ones(client, tiny_files, role):
    graph, name = Graph(), CASES[role][0]
    latent, vae = sampled(graph, tiny_files, role), our_vae(graph, name)
    images = {
        "ours": graph.add("WanCoreVAEDecode", samples=latent, vae=vae),
        "native_node": graph.add("VAEDecode", samples=latent, vae=vae),
        "tiled": graph.add(
            "VAEDecodeTiled", samples=latent, vae=vae, tile_size=512, overlap=64, temporal_size=64, temporal_overlap=8
        ),
    }
    if client.host.env.version != "0.3.64":  # which knows no tiny VAE of Wan
        native = graph.add("VAELoader", vae_name=name)
        images["native"] = graph.add("VAEDecode", samples=latent, vae=native)
        images["native_in_ours"] = graph.add("WanCoreVAEDecode", samples=latent, vae=native)
    for one, node in images.items():
        graph.dump(node, f"tae_{role}_{one}")
    history = client.run(graph.prompt)
    assert any("An approximate decoder" in line for line in history["outputs"][vae.number]["text"])
    assert any("An approximate decoder" in line for line in history["outputs"][images["ours"].number]["text"])
    values = {one: dumped(client.host.output_dir, f"tae_{role}_{one}") for one in images}
    ours = values.pop("ours")
    assert ours.shape == (9, 64, 64, 3) and ours.std() > 0.05
    for one, value in values.items():
        difference = (value.clamp(0, 1) - ours).abs().max().item()
        log.info("tiny VAE, %s, %s: max abs difference %.2e", role, one, difference)
        assert difference <= 1e-5, one


def test_a_file_of_it_is_written_and_it_is_not_used_to_encode(client, tiny_files):
    graph = Graph()
    vae = our_vae(graph, FP16)
    saved = graph.add(
        "WanCoreSaveVideo", vae=vae, latent=sampled(graph, tiny_files, "t2v"), filename_prefix="tae", fps=8.0,
        codec="ffv1", quality="high",
    )  # fmt: skip
    history = client.run(graph.prompt)
    assert any("An approximate decoder" in line for line in history["outputs"][saved.number]["text"])
    graph = Graph()
    picture = graph.add("EmptyImage", width=64, height=64, batch_size=1, color=255)
    graph.dump(graph.add("VAEEncode", pixels=picture, vae=our_vae(graph, FP16)), "tae_encoded")
    with pytest.raises(api_client.JobError, match=r"taew2_1.safetensors is a tiny VAE, which only decodes"):
        client.run(graph.prompt)


def test_one_of_another_latent_is_refused_before_the_first_step(client, tiny_files):
    graph = Graph()
    latent = sampled(graph, tiny_files, "ti2v", seed=2)
    graph.dump(graph.add("WanCoreVAEDecode", samples=latent, vae=our_vae(graph, FP16)), "tae_wrong")
    with pytest.raises(api_client.JobError, match=r"makes latents of 48 channels, and taew2_1.safetensors.*takes 16"):
        client.run(graph.prompt)
