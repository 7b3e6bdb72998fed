"""Each example workflow, and each that was ever released, run with the tiny models and read back frame by frame."""

import pytest

from scripts import tiny_jobs
from scripts.workflow_graphs import JOBS
from tests.host.workflow_files import RELEASED, distinct, examples, released

CLIP = tiny_jobs.Clip(width=96, height=64, frames=9, steps=2)


@pytest.fixture(scope="module")
def given(client, tmp_path_factory) -> tiny_jobs.Given:
    folder = tmp_path_factory.mktemp("given")
    image = client.upload(tiny_jobs.draw_image(folder / "start.png"))
    video = client.upload(tiny_jobs.draw_video(folder / "source.mp4"))
    return tiny_jobs.Given(words="a blue boat", image=image, video=video)


@pytest.mark.parametrize("workflow", distinct(), ids=lambda workflow: workflow.name)
def test_a_workflow_gives_what_was_asked_for(client, tmp_path, tiny_files, given, workflow):
    prompt = tiny_jobs.tiny(workflow.api, tiny_files, CLIP, given, workflow.name)
    page = tiny_jobs.tiny_page(workflow.page, prompt)
    (path,) = client.download(client.run(prompt, page), tmp_path)
    row = tiny_jobs.check_saved(path, CLIP, prompt, page)
    assert (row["frames"], row["size"]) == (1 if path.suffix == ".png" else 9, "96x64")


@pytest.mark.parametrize("workflow", distinct(), ids=lambda workflow: workflow.name)
def test_every_node_of_a_workflow_is_on_this_host(client, workflow):
    known = client.get("/object_info")
    assert {node["class_type"] for node in workflow.api.values()} - set(known) == set()
    assert {node["type"] for node in workflow.page["nodes"]} - set(known) == set()


def test_every_job_of_the_table_is_written_in_both_forms():
    assert {workflow.name for workflow in examples()} == set(JOBS)
    assert all(workflow.api_path.is_file() for workflow in examples())


def test_every_release_keeps_both_forms_of_its_workflows():
    assert (RELEASED / "0.1.0" / "wan2.1_t2v.json").is_file()
    assert [workflow.name for workflow in released() if not workflow.api_path.is_file()] == []
    pages = {workflow.api_path for workflow in released()}
    assert {path for path in RELEASED.glob("*/api/*.json") if path not in pages} == set()
