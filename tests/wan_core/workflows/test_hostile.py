"""Files that are no workflow, or one that means harm: a sentence, exit code 1, soon, in little memory."""

import copy
import json
import random
import time
import tracemalloc

import pytest

from tests.conftest import ROOT
from tests.wan_core.workflows.native import HIGH_FILE, LOW_FILE, Native, ksampler, page_of, pair
from wan_core.errors import WorkflowError
from wan_core.workflows.__main__ import main
from wan_core.workflows.convert import convert
from wan_core.workflows.file import MAX_BYTES


def api() -> dict:
    native = Native()
    ksampler(native, native.model())
    return native.prompt


def page() -> dict:
    return page_of(api())


def changed(document: dict, change) -> bytes:
    change(document)
    return json.dumps(document).encode()


def nested_subgraphs(count: int, uses: int) -> bytes:
    """Each definition holds the next one ``uses`` times; the last holds a note."""
    definitions = []
    for number in range(count):
        kind = f"g{number + 1}" if number + 1 < count else "Note"
        nodes = [{"id": use + 1, "type": kind} for use in range(uses)]
        definitions.append({"id": f"g{number}", "name": f"g{number}", "nodes": nodes, "links": []})
    document = {"nodes": [{"id": 1, "type": "g0"}], "links": [], "definitions": {"subgraphs": definitions}}
    return json.dumps(document).encode()


def in_itself() -> bytes:
    inner = {"id": "g", "name": "me", "nodes": [{"id": 1, "type": "g"}], "links": [], "inputs": [], "outputs": []}
    document = {"nodes": [{"id": 1, "type": "g"}], "links": [], "definitions": {"subgraphs": [inner]}}
    return json.dumps(document).encode()


def circle() -> bytes:
    return changed(api(), lambda d: d["1"]["inputs"].update(unet_name=["s", 0]))


def long_chain() -> bytes:
    document, model = api(), ["1", 0]
    for number in range(3000):
        document[f"l{number}"] = {"class_type": "LoraLoaderModelOnly", "inputs": {"model": model, "lora_name": "x"}}
        model = [f"l{number}", 0]
    document["s"]["inputs"]["model"] = model
    return json.dumps(document).encode()


def set_and_get_in_a_circle() -> bytes:
    document = page()
    sampler = next(node for node in document["nodes"] if node["type"] == "KSampler")
    model = next(entry for entry in sampler["inputs"] if entry["name"] == "model")
    document["nodes"] += [
        {"id": 80, "type": "SetNode", "inputs": [{"name": "x", "link": 91}], "widgets_values": ["m"]},
        {"id": 81, "type": "GetNode", "outputs": [{"name": "x", "type": "*"}], "widgets_values": ["m"]},
    ]
    document["links"] += [[91, 81, 0, 80, 0, "*"], [92, 81, 0, sampler["id"], 0, "MODEL"]]
    model["link"] = 92
    return json.dumps(document).encode()


BAD = {
    "empty": (b"", "not a workflow in JSON"),
    "text": (b"a red fox", "not a workflow in JSON"),
    "cut": (json.dumps(api()).encode()[:300], "not a workflow in JSON"),
    "picture": (b"\x89PNG\r\n\x1a\n\x00\x00", "not text in UTF-8"),
    "utf-16": (json.dumps(api()).encode("utf-16"), "not text in UTF-8"),
    "list": (b"[1, 2]", "holds a JSON list"),
    "number": (b"1", "holds a JSON number"),
    "null": (b"null", "holds a JSON null"),
    "no workflow": (b'{"a": 1}', "neither the nodes"),
    "nothing": (b"{}", "neither the nodes"),
    "NaN": (b'{"nodes": [NaN]}', "holds NaN"),
    "infinite": (b'{"1": {"class_type": "KSampler", "inputs": {"cfg": 1e999}}}', "not finite"),
    "half a character": (b'{"nodes": ["\\ud800"]}', "half of a character"),
    "deep lists": (b"[" * 100_000, "nested more than"),
    "deep objects": (b'{"nodes": ' * 3000 + b"1" + b"}" * 3000, "nested more than"),
    "a little too deep": (b'{"a":' + b"[" * 150 + b"]" * 150 + b"}", "nested more than"),
    "huge": (b" " * (MAX_BYTES + 1), "are read"),
    "long number": (b'{"nodes": ' + b"9" * 6000 + b"}", "not a workflow in JSON"),
    "many nodes": (json.dumps({str(n): {"class_type": "x"} for n in range(6000)}).encode(), "6,000 nodes"),
    "many nodes on a page": (
        json.dumps({"nodes": [{"id": n, "type": "x"} for n in range(6000)]}).encode(),
        "more than",
    ),
    "subgraph in itself": (in_itself(), "contains itself"),
    "subgraphs that double": (nested_subgraphs(15, 2), "more than 5,000 nodes"),
    "subgraphs many levels deep": (nested_subgraphs(60, 1), "levels deep"),
    "circle": (circle(), "feeds itself"),
    "set and get in a circle": (set_and_get_in_a_circle(), "circle"),
    "long chain": (long_chain(), "more than 100 nodes change its model"),
    "missing node": (changed(api(), lambda d: d.pop("1")), "not in the file"),
    "missing node on a page": (changed(page(), lambda d: d["nodes"].pop(0)), "not in the file"),
    "missing link": (changed(page(), lambda d: d["links"].pop(0)), "not in the file"),
    "missing slot": (changed(page(), lambda d: d["nodes"][0].update(outputs=[])), "not in the file"),
    "slot below 0": (changed(api(), lambda d: d["s"]["inputs"].update(model=["1", -1])), "output -1"),
    "two ids": (changed(page(), lambda d: d["nodes"].append(d["nodes"][0])), "two nodes of the id 1"),
    "no id": (changed(page(), lambda d: d["nodes"][0].pop("id")), "no id"),
    "id that is a list": (changed(page(), lambda d: d["nodes"][0].update(id=[1])), "no id"),
    "no type": (changed(page(), lambda d: d["nodes"][0].pop("type")), "no type"),
    "class that is a list": (changed(api(), lambda d: d["s"].update(class_type=["KSampler"])), "class_type"),
    "inputs that are a list": (changed(api(), lambda d: d["s"].update(inputs=[])), "class_type"),
    "nodes that are numbers": (b'{"nodes": [1, 2], "links": []}', "not a list of objects"),
    "links that are text": (changed(page(), lambda d: d.update(links="x")), "links"),
    "links of text": (changed(page(), lambda d: d["links"].append("x")), "link"),
    "short link": (changed(page(), lambda d: d["links"].append([1, 2])), "link"),
    "link of text": (changed(page(), lambda d: d["links"].append(["a", 1, "b", 2, 0])), "link"),
    "inputs of text": (changed(page(), lambda d: d["nodes"][0].update(inputs="x")), "inputs of node 1"),
    "mode of text": (changed(page(), lambda d: d["nodes"][0].update(mode="x")), "mode"),
    "shift that is a list": (changed(api(), lambda d: d["2"]["inputs"].update(shift={"a": 1})), "no number"),
    "no sampler": (changed(api(), lambda d: [d.pop(key) for key in ("s", "9", "10")]), "no sampler of a Wan model"),
    "no model": (changed(api(), lambda d: d["s"]["inputs"].pop("model")), "no model is connected"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_one_sentence_and_leaves_nothing_behind(tmp_path, capfd, name):
    content, words = BAD[name]
    path, out = tmp_path / "bad.json", tmp_path / "out.json"
    path.write_bytes(content)
    began = time.process_time()
    assert main([str(path), "-o", str(out)]) == 1
    assert time.process_time() - began < 3
    said, told = capfd.readouterr()
    assert said == "" and not out.exists()
    assert words in told and told.startswith("bad.json: ") and told.endswith(".\n")
    assert told.count("\n") == 1 and "Traceback" not in told and len(told) < 600


@pytest.mark.parametrize("unit", [b"{},", b'"\xc3\xa9",', b"[1],"], ids=["objects", "texts", "lists"])
def test_the_largest_file_that_is_read_takes_bounded_memory(tmp_path, capfd, unit):
    path = tmp_path / "large.json"
    path.write_bytes(b'{"nodes": [' + unit * ((MAX_BYTES - 100) // len(unit)) + b"1]}")
    tracemalloc.start()
    try:
        assert main([str(path)]) == 1
        assert tracemalloc.get_traced_memory()[1] < 600e6
    finally:
        tracemalloc.stop()


def test_a_missing_file_a_folder_and_a_place_that_takes_nothing_are_said(tmp_path, capfd):
    good = ROOT / "example_workflows" / "wan2.1_t2v.json"
    for arguments in ([tmp_path / "none.json"], [tmp_path], [good, "-o", tmp_path], [good, "-o", tmp_path / "x" / "y"]):
        assert main([str(argument) for argument in arguments]) == 1
        told = capfd.readouterr().err
        assert told.count("\n") == 1 and "Traceback" not in told


def values(document):
    """Every (container, key) in a document."""
    found, waiting = [], [document]
    while waiting:
        holder = waiting.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return found


@pytest.mark.parametrize("form", ["api", "page"])
@pytest.mark.parametrize("seed", range(4))
def test_a_file_with_anything_in_the_wrong_place_is_converted_or_refused(form, seed):
    """Any of its values replaced by one of another type, or taken out, a hundred times."""
    native = Native()
    pair(native, native.model(HIGH_FILE, lora="h"), native.model(LOW_FILE, lora="l"))
    dice = random.Random(seed)
    text = json.dumps(native.prompt if form == "api" else page_of(native.prompt))
    outcomes = set()
    for _ in range(100):
        document = json.loads(text)
        holder, key = dice.choice(values(document))
        wrong = dice.choice([None, True, -1, 3, 1.5, 10**30, "x", "", [], {}, [1], ["1", 0], {"a": 1}, "delete"])
        if wrong == "delete" and isinstance(holder, dict):
            del holder[key]
        else:
            holder[key] = wrong
        for as_api in (False, True):
            try:
                convert(copy.deepcopy(document), api=as_api)
                outcomes.add("converted")
            except WorkflowError:
                outcomes.add("refused")
    assert outcomes == {"converted", "refused"}
