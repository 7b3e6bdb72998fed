"""The example client without a server: what it reads from the command line and how it words a refusal."""

import json

import pytest

from scripts import api_client
from scripts.api_client import JobError


def small_prompt() -> dict:
    return {
        "3": {"class_type": "WanCoreSampler", "inputs": {"seed": 1, "model": ["1", 0]}, "_meta": {"title": "Sample"}},
        "4": {"class_type": "SaveVideo", "inputs": {"video": ["3", 0]}},
    }


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("3.seed=7", ("3", "seed", 7)),
        ("WanCoreSampler.cfg=5.5", ("WanCoreSampler", "cfg", 5.5)),
        ("WanCoreTextEncode.positive=a = b", ("WanCoreTextEncode", "positive", "a = b")),
        ("LoadImage.image=@photo.png", ("LoadImage", "image", "@photo.png")),
        ("v1.5 loader.name=x", ("v1.5 loader", "name", "x")),
    ],
)
def test_set_takes_a_node_an_input_and_a_value(text, parsed):
    assert api_client.parse_set(text) == parsed


@pytest.mark.parametrize("text", ["seed=7", "3.seed", "=7", ".seed=7"])
def test_a_malformed_set_is_refused_with_an_example(text):
    with pytest.raises(JobError, match=r"write NODE.INPUT=VALUE"):
        api_client.parse_set(text)


@pytest.mark.parametrize("node", ["3", "WanCoreSampler", "Sample"])
def test_a_node_is_found_by_id_class_and_title(node):
    prompt = small_prompt()
    api_client.apply_set(prompt, node, "seed", 9)
    assert prompt["3"]["inputs"]["seed"] == 9


def test_an_unknown_node_or_input_is_refused_with_what_there_is():
    with pytest.raises(JobError, match=r"no node KSampler\. It has: 3 WanCoreSampler, 4 SaveVideo"):
        api_client.apply_set(small_prompt(), "KSampler", "seed", 9)
    with pytest.raises(JobError, match=r"WanCoreSampler has no input sead\. It has: seed, model"):
        api_client.apply_set(small_prompt(), "3", "sead", 9)


def test_a_refusal_has_one_line_for_each_wrong_input():
    errors = [
        {"message": "Value 80 is not allowed", "details": "frames"},
        {"message": "Required input is missing", "details": "vae"},
    ]
    body = {
        "error": {"message": "Prompt outputs failed validation"},
        "node_errors": {"3": {"class_type": "X", "errors": errors}},
    }
    assert api_client.refusal(body, small_prompt()).splitlines() == [
        "Node 3 (X): Value 80 is not allowed: frames",
        "Node 3 (X): Required input is missing: vae",
    ]


def test_only_saved_files_are_fetched():
    saved = {"filename": "a.mp4", "subfolder": "wan", "type": "output"}
    preview = {"filename": "b.png", "subfolder": "", "type": "temp"}
    history = {"outputs": {"4": {"images": [saved, preview], "animated": [True]}, "5": {"text": ["hello"]}}}
    assert api_client.saved_files(history) == [saved]


def test_the_page_form_beside_the_api_form_travels_along(tmp_path):
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "x.json").write_text(json.dumps(small_prompt()))
    assert api_client.load_workflow(tmp_path / "api" / "x.json") == (small_prompt(), None)
    (tmp_path / "x.json").write_text('{"nodes": []}')
    assert api_client.load_workflow(tmp_path / "api" / "x.json") == (small_prompt(), {"nodes": []})
    with pytest.raises(JobError, match="is the page form"):
        api_client.load_workflow(tmp_path / "x.json")


def test_a_finished_node_is_reported_once():
    told: list = []
    seen: dict = {}
    running = {"3": {"state": "running", "value": 1, "max": 4}}
    finished = {"3": {"state": "finished", "value": 3, "max": 4}}
    for nodes in (running, running, finished, finished):
        api_client.tell(nodes, seen, lambda *event: told.append(event))
    assert told == [("3", 1, 4), ("3", 4, 4)]


def test_a_server_that_is_not_there_is_a_sentence():
    with pytest.raises(JobError, match=r"No answer from http://127.0.0.1:9: .* Is ComfyUI running there"):
        api_client.run("http://127.0.0.1:9", small_prompt())
