"""Converted workflows on a real ComfyUI: the table of widgets, the same latents, the same graph on the page."""

import copy
import json
import uuid

import pytest

from tests.host.graphs import Graph, dumped, loaders, native_model, native_sampler
from tests.host.test_page import DROP, NODES, page, plain  # noqa: F401 - a fixture among them
from tests.wan_core.workflows.native import HIGH_FILE, LOW_FILE, Native, page_of, pair
from wan_core.workflows.convert import convert
from wan_core.workflows.widgets import NATIVE, ON_THE_PAGE_ONLY, named_places

CLOSE = 1e-3
SIZE = {"width": 64, "height": 64, "length": 9, "batch_size": 1}
NEWER = {
    "CreateVideo": ["bit_depth"],
    "SaveVideo": ["format", "codec"],
    "ImageScaleToTotalPixels": ["resolution_steps"],
}
"""Widgets that one of the hosts does not have, or has inside another one."""


def names_on(host_schema: dict, kind: str) -> list[str]:
    """The widgets of a node on a host, in its order, as the converter reads them from a schema."""
    values = list(range(50))
    return list(named_places({"type": kind, "widgets_values": values}, {kind: host_schema}))


def test_the_table_of_native_widgets_is_that_of_the_host(client):
    known = client.get("/object_info")
    there = [kind for kind in NATIVE if kind in known and kind not in ON_THE_PAGE_ONLY]
    assert {"UNETLoader", "KSampler", "KSamplerAdvanced", "WanImageToVideo", "LoraLoader"} <= set(there)
    for kind in there:
        table = [name for name in NATIVE[kind] if name not in NEWER.get(kind, [])]
        found = [name for name in names_on(known[kind], kind) if name not in NEWER.get(kind, [])]
        assert found == table, kind


def one_model(graph: Graph, files: dict, parts: dict):
    model = native_model(graph, files, "t2v", 5.0)
    latent = graph.add("EmptyHunyuanLatentVideo", **SIZE)
    return native_sampler(graph, model, parts["text"], parts["text"].wire(1), latent)


def with_lora(graph: Graph, files: dict, parts: dict):
    unet = graph.add("UNETLoader", unet_name=files["t2v"].name, weight_dtype="default")
    lora = graph.add("LoraLoaderModelOnly", model=unet, lora_name=files["lora"].name, strength_model=0.7)
    model = graph.add("ModelSamplingSD3", model=lora, shift=3.0)
    latent = graph.add("EmptyHunyuanLatentVideo", **SIZE)
    return native_sampler(graph, model, parts["text"], parts["text"].wire(1), latent, cfg=1.0, scheduler="normal")


def without_shift(graph: Graph, files: dict, parts: dict):
    unet = graph.add("UNETLoader", unet_name=files["t2v"].name, weight_dtype="default")
    latent = graph.add("EmptyHunyuanLatentVideo", **SIZE)
    return native_sampler(graph, unet, parts["text"], parts["text"].wire(1), latent)


def two_experts(graph: Graph, files: dict, parts: dict):
    latent = graph.add("EmptyHunyuanLatentVideo", **SIZE)
    for role, changes in (
        ("t2v_high", {"add_noise": "enable", "start_at_step": 0, "end_at_step": 3, "cfg": 4.0}),
        ("t2v_low", {"add_noise": "disable", "start_at_step": 3, "end_at_step": 10000, "cfg": 3.0}),
    ):
        unet = graph.add("UNETLoader", unet_name=files[role].name, weight_dtype="default")
        lora = graph.add("LoraLoaderModelOnly", model=unet, lora_name=files["lora"].name, strength_model=0.5)
        latent = graph.add(
            "KSamplerAdvanced",
            model=graph.add("ModelSamplingSD3", model=lora, shift=5.0),
            positive=parts["text"],
            negative=parts["text"].wire(1),
            latent_image=latent,
            noise_seed=4,
            steps=8,
            sampler_name="euler",
            scheduler="simple",
            return_with_leftover_noise="enable" if role == "t2v_high" else "disable",
            **changes,
        )
    return latent


def in_pieces(graph: Graph, files: dict, parts: dict):
    model = native_model(graph, files, "t2v", 5.0)
    return graph.add(
        "SamplerCustomAdvanced",
        noise=graph.add("RandomNoise", noise_seed=3),
        guider=graph.add("CFGGuider", model=model, positive=parts["text"], negative=parts["text"].wire(1), cfg=4.0),
        sampler=graph.add("KSamplerSelect", sampler_name="euler"),
        sigmas=graph.add("BasicScheduler", model=model, scheduler="simple", steps=6, denoise=1.0),
        latent_image=graph.add("EmptyHunyuanLatentVideo", **SIZE),
    )


@pytest.mark.parametrize(
    "make", [one_model, with_lora, without_shift, two_experts, in_pieces], ids=lambda f: f.__name__
)
def test_a_converted_workflow_makes_the_same_latent(client, tiny_files, make):
    graph = Graph()
    graph.dump(make(graph, tiny_files, loaders(graph, tiny_files)), f"native_{make.__name__}")
    result = convert(copy.deepcopy(graph.prompt))
    assert result.changed and result.report.kept == result.report.notes == []
    ours = result.document
    (dump,) = [node for node in ours.values() if node["class_type"] == "WanTestDump"]
    dump["inputs"]["name"] = f"ours_{make.__name__}"
    for node in ours.values():
        if "precision" in node["inputs"]:
            node["inputs"]["precision"] = "fp32"
    client.run(graph.prompt)
    client.run(ours)
    native, moved = (dumped(client.host.output_dir, f"{side}_{make.__name__}") for side in ("native", "ours"))
    assert native.std() > 0.1
    assert (native - moved).abs().max() < CLOSE


@pytest.mark.parametrize("widgets_as_inputs", [False, True], ids=["older page", "newer page"])
def test_a_converted_page_opens_as_the_graph_that_the_api_form_has(page, widgets_as_inputs):  # noqa: F811
    native = Native()
    pair(native, native.model(HIGH_FILE, lora="high.safetensors"), native.model(LOW_FILE, lora="low.safetensors"))
    document = page_of(native.prompt, widgets_as_inputs=widgets_as_inputs)
    made = convert(document).document | {"id": str(uuid.uuid4())}
    page.page.evaluate(DROP, [json.dumps(made), "converted.json"])
    page.page.wait_for_function("(id) => app.graph.id === id", arg=made["id"])
    page.page.wait_for_timeout(1000)
    wanted = convert(document, api=True).document
    assert page.prompt() == {node_id: plain(node) for node_id, node in wanted.items()}
    assert [node["type"] for node in page.page.evaluate(NODES) if not node["known"]] == []
    assert page.errors == []
