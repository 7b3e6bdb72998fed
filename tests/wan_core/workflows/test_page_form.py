"""The page form: read, flattened, converted, written."""

import copy
import json
from itertools import combinations

import pytest

from tests.conftest import ROOT
from tests.wan_core.workflows.native import HIGH_FILE, LOW_FILE, Native, kinds, ksampler, moved, of, page_of, pair
from wan_core.workflows.api import to_api
from wan_core.workflows.convert import convert, read_graph
from wan_core.workflows.inline import from_page
from wan_core.workflows.layout import box
from wan_core.workflows.page import to_page
from wan_core.workflows.validate import problems

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json")) + sorted((ROOT / "tests/workflows").glob("*/*.json"))
SUBGRAPH = "5ab1c0de-0000-4000-8000-000000000001"


def a_pair() -> Native:
    native = Native()
    pair(native, native.model(HIGH_FILE, lora="h.safetensors"), native.model(LOW_FILE, lora="l.safetensors"))
    return native


def inputs_by_title(prompt: dict) -> list:
    """Nodes without their ids: class, widgets, and the classes behind the wires."""

    def told(value):
        return prompt[value[0]]["class_type"] if isinstance(value, list) else value

    nodes = [(n["class_type"], {k: told(v) for k, v in n["inputs"].items()}) for n in prompt.values()]
    return sorted(nodes, key=str)


def node_of(page: dict, kind: str) -> dict:
    (node,) = [node for node in page["nodes"] if node["type"] == kind]
    return node


@pytest.mark.parametrize("widgets_as_inputs", [False, True])
def test_both_forms_of_a_workflow_become_the_same_graph(widgets_as_inputs):
    native = a_pair()
    page = page_of(native.prompt, widgets_as_inputs=widgets_as_inputs)
    made = convert(page)
    assert problems(page) == problems(made.document) == []
    assert inputs_by_title(convert(page, api=True).document) == inputs_by_title(moved(native).document)
    assert inputs_by_title(convert(made.document, api=True).document) == inputs_by_title(moved(native).document)


def test_a_new_node_stands_where_the_old_one_stood_and_keeps_its_seed_as_it_was():
    native = a_pair()
    page = page_of(native.prompt)
    old = page["nodes"][0]
    old["properties"]["models"] = [{"name": HIGH_FILE, "url": "https://example.org/h", "directory": "diffusion_models"}]
    made = convert(page).document
    loader, sampler = node_of(made, "WanCoreLoadModel"), node_of(made, "WanCoreSampler")
    assert (loader["id"], loader["pos"]) == (old["id"], old["pos"])
    assert loader["properties"]["models"] == old["properties"]["models"]
    assert sampler["widgets_values"][:2] == [7, "randomize"]
    assert made["last_node_id"] >= max(node["id"] for node in made["nodes"])


def test_a_new_node_that_is_larger_covers_nothing():
    native = Native()
    ksampler(native, native.model())
    page = page_of(native.prompt)
    for number, node in enumerate(page["nodes"]):
        node["pos"] = [260 * (number % 4), 160 * (number // 4)]
    boxes = [box(node) for node in convert(page).document["nodes"]]
    for one, other in combinations(boxes, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)


def test_notes_groups_and_views_stay():
    page = page_of(a_pair().prompt)
    note = {"id": 99, "type": "MarkdownNote", "pos": [0, 0], "size": [1, 1], "widgets_values": ["Read me"]}
    page["nodes"].append(note)
    page["groups"] = [{"title": "Models", "bounding": [0, 0, 10, 10]}]
    page["extra"] = {"ds": {"scale": 1}, "linkExtensions": [{"id": 1, "parentId": 3}, {"id": 4000, "parentId": 3}]}
    made = convert(page).document
    assert node_of(made, "MarkdownNote")["widgets_values"] == ["Read me"]
    assert made["groups"] == page["groups"]
    assert made["extra"]["ds"] == {"scale": 1}
    assert 4000 not in [entry["id"] for entry in made["extra"]["linkExtensions"]]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_our_own_workflows_are_read_and_written_without_a_change(path):
    page = json.loads(path.read_text(encoding="utf-8"))
    api = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
    assert to_page(from_page(copy.deepcopy(page)), page) == page
    found = to_api(from_page(page))
    assert {key: node["inputs"] for key, node in found.items()} == {key: node["inputs"] for key, node in api.items()}
    assert to_api(read_graph(api)[0]) == api
    assert convert(page).document is page
    assert convert(api).document is api


def in_subgraph(page: dict, proxies: bool = False) -> dict:
    """A page whose loaders, prompts and samplers are inside a subgraph that gives the latent, and the file out."""
    inside = [n for n in page["nodes"] if n["type"] not in ("VAELoader", "VAEDecode", "SaveImage")]
    ids = {node["id"] for node in inside}
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    inner = [dict(zip(names, link)) for link in page["links"] if link[1] in ids and link[3] in ids]
    (leaving,) = [link for link in page["links"] if link[1] in ids and link[3] not in ids]
    inner.append({**dict(zip(names, leaving)), "id": 500, "target_id": -20, "target_slot": 0})
    loader = inside[0]
    loader["inputs"].append({"name": "unet_name", "type": "COMBO", "widget": {"name": "unet_name"}, "link": 501})
    ends = {"origin_id": -10, "origin_slot": 0, "target_id": loader["id"], "target_slot": 0, "type": "COMBO"}
    inner.append({"id": 501, **ends})
    instance = {
        "id": 1000, "type": SUBGRAPH, "pos": [0, 0], "size": [200, 100], "flags": {}, "order": 0, "mode": 0,
        "inputs": [], "outputs": [{"name": "LATENT", "type": "LATENT", "links": [leaving[0]]}],
        "properties": {"proxyWidgets": [[str(loader["id"]), "unet_name"]]} if proxies else {},
        "widgets_values": [] if proxies else ["wan2.1_chosen_outside.safetensors"],
    }  # fmt: skip
    definition = {
        "id": SUBGRAPH, "name": "Sample", "nodes": inside, "links": inner, "groups": [],
        "inputs": [{"name": "unet_name", "type": "COMBO", "linkIds": [501]}],
        "outputs": [{"name": "LATENT", "type": "LATENT", "linkIds": [500]}],
    }  # fmt: skip
    outer = [node for node in page["nodes"] if node["id"] not in ids]
    links = [link for link in page["links"] if link[1] not in ids and link[3] not in ids]
    links.append([leaving[0], 1000, 0, leaving[3], leaving[4], "LATENT"])
    return page | {
        "nodes": [instance, *outer], "links": links, "definitions": {"subgraphs": [definition]}, "last_node_id": 1000,
    }  # fmt: skip


@pytest.mark.parametrize("proxies", [False, True])
def test_a_subgraph_is_opened_with_the_values_that_its_node_gives(proxies):
    native = Native()
    ksampler(native, native.model())
    page = in_subgraph(page_of(native.prompt), proxies)
    made = convert(page)
    assert problems(made.document) == []
    wanted = "wan2.1_t2v_1.3B_fp16.safetensors" if proxies else "wan2.1_chosen_outside.safetensors"
    assert node_of(made.document, "WanCoreLoadModel")["widgets_values"][0] == wanted
    prompt = convert(page, api=True).document
    assert of(prompt, "WanCoreSampler")["steps"] == 30
    assert kinds(prompt) == kinds(moved(native).document)


def test_what_is_right_of_a_subgraph_makes_room_for_it():
    native = Native()
    ksampler(native, native.model())
    page = in_subgraph(page_of(native.prompt))
    for node in page["nodes"][1:]:
        node["pos"] = [220, 0]
    page["groups"] = [{"title": "all", "bounding": [-10, -40, 500, 200]}]
    made = convert(page).document
    outer = {"VAEDecode", "WanCoreLoadVAE", "SaveImage"}
    inner = [node for node in made["nodes"] if node["type"] not in outer]
    right = max(node["pos"][0] + 200 for node in inner)
    assert all(node["pos"][0] >= right for node in made["nodes"] if node["type"] in outer)
    assert min(node["pos"][0] for node in inner) == 0
    x, _, width, _ = made["groups"][0]["bounding"]
    assert x + width > right


def test_two_uses_of_a_subgraph_are_two_sets_of_nodes():
    native = Native()
    ksampler(native, native.model())
    page = in_subgraph(page_of(native.prompt))
    other = copy.deepcopy(page["nodes"][0]) | {"id": 1001, "widgets_values": ["wan_other.safetensors"]}
    other["outputs"][0]["links"] = []
    page["nodes"].append(other)
    made = convert(page).document
    loaders = [node["widgets_values"][0] for node in made["nodes"] if node["type"] == "WanCoreLoadModel"]
    assert loaders == ["wan2.1_chosen_outside.safetensors", "wan_other.safetensors"]
    assert problems(made) == []


def test_a_bypassed_lora_is_passed_by_and_a_bypassed_pipeline_stays_asleep():
    native = Native()
    ksampler(native, native.model(lora="x.safetensors"))
    page = page_of(native.prompt)
    next(node for node in page["nodes"] if node["type"] == "LoraLoaderModelOnly")["mode"] = 4
    assert "WanCoreLoRA" not in kinds(convert(page, api=True).document)
    page = page_of(native.prompt)
    for node in page["nodes"]:
        node["mode"] = 4
    made = convert(page).document
    assert {node["type"]: node["mode"] for node in made["nodes"]}["WanCoreSampler"] == 4
    assert any(node["type"] == "WanCoreLoRA" for node in made["nodes"])
    assert convert(page, api=True).document == {}


def test_values_of_the_pages_own_primitives_and_reroutes_reach_the_api_form():
    native = Native()
    steps = native.add("PrimitiveNode", value=12)
    model = native.add("Reroute", **{"": native.model()})
    ksampler(native, model, steps=steps)
    page = page_of(native.prompt)
    made = convert(page)
    assert problems(made.document) == []
    assert node_of(made.document, "PrimitiveNode")["outputs"][0]["links"]
    prompt = convert(page, api=True).document
    assert of(prompt, "WanCoreSampler")["steps"] == 12
    assert of(prompt, "WanCoreSampler")["model"][0] in prompt


def test_set_and_get_nodes_are_followed():
    native = Native()
    ksampler(native, native.model())
    page = page_of(native.prompt)
    sampler = node_of(page, "KSampler")
    entry = next(entry for entry in sampler["inputs"] if entry["name"] == "model")
    link = next(link for link in page["links"] if link[0] == entry["link"])
    sockets = {"name": "MODEL", "type": "MODEL"}
    page["nodes"] += [
        {"id": 80, "type": "SetNode", "inputs": [sockets | {"link": 90}], "outputs": [], "widgets_values": ["m"]},
        {"id": 81, "type": "GetNode", "inputs": [], "outputs": [sockets | {"links": [91]}], "widgets_values": ["m"]},
    ]
    page["links"] = [other for other in page["links"] if other is not link]
    page["links"] += [[90, link[1], 0, 80, 0, "MODEL"], [91, 81, 0, sampler["id"], link[4], "MODEL"]]
    entry["link"] = 91
    assert of(convert(page, api=True).document, "WanCoreSampler")["shift"] == 5.0


def test_validation_sees_what_is_wrong_with_a_page():
    page = page_of(a_pair().prompt)
    for harm, words in (
        (lambda p: p["nodes"].append(p["nodes"][0]), "two nodes have the id"),
        (lambda p: p["links"].pop(), "names link"),
        (lambda p: p["links"][0].__setitem__(3, 999), "an end at a node"),
        (lambda p: p["links"][0].__setitem__(2, 9), "an end at a slot"),
        (lambda p: p["nodes"][0]["outputs"][0].update(type="VAE"), "goes from VAE"),
        (lambda p: p.update(last_link_id=0), "last_link_id"),
    ):
        broken = copy.deepcopy(page)
        harm(broken)
        assert any(words in line for line in problems(broken)), words
