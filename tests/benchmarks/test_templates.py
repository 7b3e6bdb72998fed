"""The parts of the template benchmark that need no ComfyUI."""

import zipfile

import pytest

from benchmarks import templates
from scripts import tiny_models
from tests.wan_core.workflows.native import HIGH_FILE, LOW_FILE, Native, page_of, pair
from wan_core.workflows.file import dumps


@pytest.fixture(scope="module")
def page() -> dict:
    native = Native()
    pair(native, native.model(HIGH_FILE), native.model(LOW_FILE))
    return page_of(native.prompt)


def test_templates_come_out_of_a_wheel_or_a_folder(tmp_path, page):
    (tmp_path / "a.json").write_text(dumps(page), encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.write(tmp_path / "a.json", "package/templates/a.json")
    for source in (tmp_path, tmp_path / "x.whl"):
        _, files = templates.templates(source)
        assert list(templates.wan_pages(files, {})) == ["a"]


def test_pages_of_other_families_are_not_looked_at():
    assert templates.wan_pages({"flux": b'{"nodes": [], "extra": "CLIPLoader"}', "index": b'[{"name": "x"}]'}, {}) == {}


def test_a_template_is_converted_and_made_small(page, tmp_path):
    row = templates.Row(name="a")
    templates.look(row, page, {})
    assert (row.models, row.outside) == ([HIGH_FILE, LOW_FILE], "")
    prompt = templates.converted(row, page, {})
    assert templates.missing_roles(prompt) == []
    found = templates.small(prompt, "picture.png", "video.mp4")
    sampler = next(node["inputs"] for node in found.values() if node["class_type"] == "WanCoreSampler")
    assert (sampler["steps"], sampler["switch_step"]) == (2, 1)
    tiny = tiny_models.make(tmp_path, ["t2v_high", "t2v_low", "text_encoder", "vae"])
    templates.place(prompt, tmp_path, tiny)
    assert (tmp_path / "diffusion_models" / LOW_FILE).samefile(tiny["t2v_low"])


def test_a_model_of_another_family_is_outside_and_a_failure_is_a_miss(page):
    foreign = dumps(page).replace("wan2.2_t2v_high_noise", "humo").encode()
    row = templates.Row(name="a")
    templates.look(row, templates.parse(foreign, "a"), {})
    assert row.outside.startswith("humo")
    rows = [templates.Row(name="b", outcome=templates.DONE), row]
    assert templates.summary("x", Host(), rows)["pass"]
    rows.append(templates.Row(name="c", outcome="failed"))
    assert not templates.summary("x", Host(), rows)["pass"]


class Host:
    version = "0"
