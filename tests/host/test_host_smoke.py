"""The pack inside a real ComfyUI: it loads, it is listed, and a job gets through."""

import re

import av
import pytest

from scripts.api_client import JobError
from scripts.host import PACK_NAME
from tests.host.workflow_files import ROOT, examples


def declared_ids() -> set[str]:
    """The node ids in the sources; the nodes themselves can only be imported by a host."""
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "nodes").glob("*.py"))
    return {node_id for text in sources for node_id in re.findall(r'node_id="(\w+)"', text)}


def colour_video(**changes) -> dict:
    image = {"width": 64, "height": 48, "batch_size": 9, "color": 255} | changes
    save = {"video": ["2", 0], "filename_prefix": "smoke", "format": "mp4", "codec": "h264"}
    return {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "2": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 16}},
        "3": {"class_type": "SaveVideo", "inputs": save},
    }


def test_the_host_has_every_node_of_the_pack_from_the_pack(client):
    ids = declared_ids()
    assert len(ids) >= 11
    info = client.get("/object_info")
    assert {name for name in info if name.startswith("WanCore")} == ids
    assert {info[name]["python_module"] for name in ids} == {f"custom_nodes.{PACK_NAME}"}


def test_the_host_reports_no_failed_import(host):
    until_the_first_job = host.log().partition("got prompt")[0]
    about_us = [line for line in until_the_first_job.splitlines() if PACK_NAME in line]
    assert about_us != []
    assert [line for line in about_us if "FAILED" in line or "Error" in line or "Cannot import" in line] == []


def test_the_template_browser_lists_our_workflows(client):
    listed = client.get("/workflow_templates").get(PACK_NAME, [])
    assert set(listed) == {workflow.name for workflow in examples()}


def test_a_video_comes_back_with_the_graph_that_made_it(client, tmp_path):
    prompt, page = colour_video(), {"nodes": [], "links": [], "version": 0.4}
    told = []
    history = client.run(prompt, page, lambda node, value, maximum: told.append((node, value, maximum)))
    (path,) = client.download(history, tmp_path)
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9
        assert set(container.metadata) >= {"prompt", "workflow"}
    assert told[-1] == ("3", 1, 1)


def test_a_wrong_value_is_refused_in_a_sentence_that_names_the_node_and_the_input(client):
    with pytest.raises(JobError, match=r"^Node 1 \(EmptyImage\): .*-3.*width"):
        client.run(colour_video(width=-3))


def test_a_failing_node_is_named_with_its_reason(client):
    with pytest.raises(JobError, match=r"^Node 3 \(SaveVideo\): \S"):
        client.run(colour_video(width=63))  # h264 takes even sides only
