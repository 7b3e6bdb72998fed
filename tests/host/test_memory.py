"""The nodes about memory in a real host: a plan without a run, a run as one wishes, and a refusal before anything is
read."""

import json
import re
from pathlib import Path

import pytest
import torch

from scripts import api_client
from scripts.host import Host, link_or_copy
from tests.host.conftest import Client
from tests.host.graphs import Graph, Node, dumped, loaders, our_model, our_sampler

HERE = Path(__file__).parent
SIZE = {"width": 64, "height": 64, "frames": 5, "batch_size": 1}
SMALL_CARD = 450_000_000
"""Bytes; the host keeps 400 MB of them for others, and the work alone takes more than the rest."""


def plan_node(graph: Graph, model: Node, **wires) -> Node:
    return graph.add("WanCorePlan", model=model, **SIZE, steps=4, guidance=0.0, **wires)


def video(graph: Graph, files: dict, model: Node) -> Node:
    """Sampled in two steps."""
    text = loaders(graph, files)["text"]
    latent = graph.add("WanCoreEmptyLatent", model=model, **SIZE)
    return our_sampler(graph, model, text.wire(0), text.wire(1), latent, steps=2)


def test_the_plan_is_shown_in_words_as_data_and_as_a_picture_and_nothing_is_read(client, tiny_files):
    graph, already = Graph(), len(client.host.log())
    parts = loaders(graph, tiny_files)
    del graph.prompt[parts["text"].number]  # the prompt is not encoded
    pair = our_model(graph, tiny_files, "i2v_high", "i2v_low")
    plan = plan_node(graph, pair, clip=parts["text_encoder"], vae=parts["vae"])
    said = graph.add("PreviewAny", source=Node(plan.number).wire(1))
    graph.dump(Node(plan.number).wire(2), "plan_picture")
    history = client.run(graph.prompt)
    shown = history["outputs"][plan.number]
    (words,) = shown["text"]
    assert "Can run" in words and "4 steps" in words and "64x64, 5 frames (32 tokens)" in words
    data = json.loads(history["outputs"][said.number]["text"][0])
    assert [stage["name"] for stage in data["stages"]] == ["Text encode", "VAE encode", "Sampler", "VAE decode"]
    assert data["files"][:2] == [tiny_files[name].name for name in ("i2v_high", "i2v_low")]
    picture = dumped(client.host.output_dir, "plan_picture")
    assert picture.shape[0] == 1 and picture.shape[2:] == (768, 3) and len(shown["images"]) == 1
    assert "tensors used" not in client.host.log()[already:]


def test_the_plan_names_a_wrong_vae_behind_the_sampler_that_it_is_not_connected_to(client, tiny_files):
    graph = Graph()
    model = our_model(graph, tiny_files, "t2v")
    plan = plan_node(graph, model)
    other = graph.add("WanCoreLoadVAE", vae_name=tiny_files["vae_22"].name, precision="fp32")
    graph.add("WanCoreVAEDecode", vae=other, samples=video(graph, tiny_files, model))
    (words,) = client.run(graph.prompt)["outputs"][plan.number]["text"]
    assert "CANNOT RUN" in words and tiny_files["vae_22"].name in words and "Choose the Wan 2.1 VAE" in words


def test_a_model_with_options_of_ones_own_makes_the_same_video_and_the_node_says_what_it_does(client, tiny_files):
    frames, told = {}, ""
    for name in ("plain", "options"):
        graph = Graph()
        model = our_model(graph, tiny_files, "t2v")
        if name == "options":
            model = graph.add("WanCoreMemory", model=model, budget_gb=6.0, attention="sdpa")
        graph.dump(video(graph, tiny_files, model), f"memory_{name}")
        history = client.run(graph.prompt)
        frames[name] = dumped(client.host.output_dir, f"memory_{name}")
        told = history["outputs"].get(model.number, {}).get("text", [""])[0]
    assert torch.equal(frames["plain"], frames["options"])
    assert "a budget has no effect" in told and "Attention: sdpa" in told


@pytest.fixture(scope="module")
def small_card(host_env, tiny_tree, tmp_path_factory):
    """A server with a pretended card that is far too small."""
    server = Host(host_env, tmp_path_factory.mktemp("small_card"), models=tiny_tree)
    for folder, pack in {"card_pack": "wan_test_card", "dump_pack": "wan_test_dump"}.items():
        link_or_copy(HERE / folder, server.base_dir / "custom_nodes" / pack)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAN_TEST_CARD", json.dumps({"state": "NORMAL_VRAM", "free": SMALL_CARD}))
        with server:
            yield server


def test_a_run_that_cannot_fit_is_refused_in_a_sentence_before_weights_are_read(small_card, tiny_files):
    graph = Graph()
    model = our_model(graph, tiny_files, "t2v")
    graph.dump(video(graph, tiny_files, model), "never")
    with pytest.raises(api_client.JobError) as refused:
        Client(host=small_card).run(graph.prompt)
    name = tiny_files["t2v"].name
    assert f"{name} needs at least 0.1 GB here" in str(refused.value), str(refused.value)
    assert "0.0 GB are available. Use fewer frames or a smaller size" in str(refused.value)
    read = re.findall(r"(\S+): \d+ tensors used", small_card.log())
    assert read == [tiny_files["text_encoder"].name]


def test_the_plan_says_it_with_the_same_sentence_and_raises_nothing(small_card, tiny_files):
    graph = Graph()
    plan = plan_node(graph, our_model(graph, tiny_files, "t2v"))
    (words,) = Client(host=small_card).run(graph.prompt)["outputs"][plan.number]["text"]
    assert "Sampler on cpu:0: cannot run." in words and "needs at least 0.1 GB here" in words, words
