"""The page in a real browser: our workflows as they open, run and explain themselves.

Needs playwright and a Chromium (``WAN_CORE_CHROMIUM`` names one that is not on the path). Only WAN_CORE_NO_BROWSER=1
switches these tests off.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from itertools import combinations
from urllib.request import urlopen

import pytest

from scripts.host import PACK_NAME
from tests.host.workflow_files import ROOT, distinct, examples

WORKFLOWS = {workflow.name: workflow for workflow in distinct()}
SCHEMAS = json.loads((ROOT / "tests" / "nodes" / "schema_snapshot.json").read_text(encoding="utf8"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
WAIT_MS = 60_000  # of a busy machine
COLOUR = "#7c5cff"
TITLE_BAR = 30

OPENED = "() => window.app && app.extensionManager && app.graph && app.canvas"
RUN_BUTTON = 'button[data-testid="queue-button"], [data-testid="queue-button"] button'

DROP = """([text, name]) => {
  const data = new DataTransfer();
  data.items.add(new File([text], name, {type: "application/json"}));
  const canvas = document.querySelector("#graph-canvas");
  for (const kind of ["dragenter", "dragover", "drop"])
    canvas.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
}"""

TELL_MISSING = """async (tell) =>
  await app.extensionManager.setting.set("Comfy.Workflow.ShowMissingModelsWarning", tell)"""

NODES = """() => app.graph._nodes.map((node) => ({
  type: node.type, known: node.type in LiteGraph.registered_node_types, box: [...node.pos, ...node.size],
}))"""

WIRES = """() => [...app.graph._links.values()].map((wire) =>
  [app.graph.getNodeById(wire.origin_id).pos[0], app.graph.getNodeById(wire.target_id).pos[0]])"""

# As a hand on the widget does it: what the page does on a change happens too.
SET_WIDGETS = """(values) => {
  for (const node of app.graph._nodes)
    for (const [name, value] of Object.entries(values[node.type] ?? {})) {
      const widget = node.widgets.find((widget) => widget.name === name);
      if (widget.setValue) widget.setValue(value, {e: {}, node, canvas: app.canvas});
      else { widget.value = value; widget.callback?.(value); }
    }
}"""

LISTEN = """() => {
  window.told = [];
  for (const kind of ["progress_text", "progress", "b_preview", "execution_success", "execution_error"])
    app.api.addEventListener(kind, ({detail}) =>
      window.told.push([kind, detail instanceof Blob ? detail.size : detail]));
}"""

TEXTS = """(type) => app.graph._nodes.find((node) => node.type === type).widgets
  .map((widget) => widget.value).filter((value) => typeof value === "string")"""

VIDEO = """() => [...document.querySelectorAll("video")].find((video) => video.videoWidth > 0)"""


class Page:
    """A browser page with ComfyUI open, and what went wrong on it."""

    def __init__(self, page, url: str):
        self.page = page
        self.errors: list[str] = []
        self.asked: list[tuple[int, str]] = []
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda said: self.errors.append(said.text) if is_ours(said) else None)
        page.on("response", lambda answer: self.asked.append((answer.status, answer.url)))
        page.goto(url)
        page.wait_for_function(OPENED)
        page.wait_for_timeout(3000)  # the page opens its own first graph, and on a first visit the templates
        page.keyboard.press("Escape")
        self.errors.clear()  # what the page says about its own start is not about us

    def drop(self, name: str, *, tell_missing: bool = False) -> None:
        """Drops a shipped workflow on the canvas, under an id of its own to know it by.

        The older page puts a dialog about missing models over everything, so it tells of them only where it is asked.
        """
        self.page.evaluate(TELL_MISSING, tell_missing)
        graph = WORKFLOWS[name].page | {"id": str(uuid.uuid4())}
        self.page.evaluate(DROP, [json.dumps(graph), "dropped.json"])
        self.page.wait_for_function("(id) => app.graph.id === id", arg=graph["id"])
        self.page.wait_for_timeout(1000)  # widgets that bring others are laid out after the graph is there

    def prompt(self) -> dict:
        """What the page would post now, as the API form writes it."""
        output = self.page.evaluate("async () => (await app.graphToPrompt()).output")
        return {node_id: plain(node) for node_id, node in output.items()}


def is_ours(said) -> bool:
    """An error on the console from the pack; a help page is first looked for in the user's language."""
    place = said.location.get("url", "")
    about = PACK_NAME in place or "WanCore.wires" in said.text
    return said.type == "error" and about and not place.endswith("/en.md")


def plain(node: dict) -> dict:
    """Class and inputs; Save Video's choices that newer hosts nest under its format become flat again."""
    inputs = dict(node["inputs"])
    if "format.codec" in inputs:
        inputs["codec"] = inputs.pop("format.codec")
        inputs.pop("format.codec.encoding", None)
    if node["class_type"] == "CreateVideo":
        inputs.pop("bit_depth", None)  # older hosts have no such widget
    # A page adds what nodes have been given since a workflow was saved, at its default.
    added = [
        one for one in SCHEMAS.get(node["class_type"], {}).get("inputs", ()) if one["optional"] and "default" in one
    ]
    for one in added:
        if inputs.get(one["name"]) == one["default"]:
            del inputs[one["name"]]
    return {"class_type": node["class_type"], "inputs": inputs}


@pytest.fixture(scope="module")
def page(host) -> Iterator[Page]:
    """One page for this file; each test drops its own graph on it."""
    if os.environ.get("WAN_CORE_NO_BROWSER") == "1":
        pytest.skip("no browser could be obtained (WAN_CORE_NO_BROWSER=1)")
    program = os.environ.get("WAN_CORE_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.fail("No Chromium was found. Install one, or set WAN_CORE_NO_BROWSER=1.", pytrace=False)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield Page(browser.new_page(viewport={"width": 1600, "height": 1000}), host.url)
        browser.close()


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_opens_as_the_same_graph_that_its_api_form_posts(page, name):
    page.drop(name)
    assert page.prompt() == {node_id: plain(node) for node_id, node in WORKFLOWS[name].api.items()}
    nodes = page.page.evaluate(NODES)
    assert [node["type"] for node in nodes if not node["known"]] == []
    assert overlaps(nodes) == []
    assert [wire for wire in page.page.evaluate(WIRES) if wire[0] > wire[1]] == []
    assert page.errors == []


def overlaps(nodes: list[dict]) -> list[tuple[str, str]]:
    """Pairs of nodes that cover each other, title bars included."""

    def apart(a: list[float], b: list[float]) -> bool:
        beside = a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0]
        return beside or a[1] + a[3] <= b[1] - TITLE_BAR or b[1] + b[3] <= a[1] - TITLE_BAR

    return [(a["type"], b["type"]) for a, b in combinations(nodes, 2) if not apart(a["box"], b["box"])]


def test_the_model_wire_has_its_colour(page):
    page.drop("wan2.1_t2v")
    colours = page.page.evaluate("""() => [
      app.canvas.default_connection_color_byType.WAN_CORE_MODEL, LGraphCanvas.link_type_colors.WAN_CORE_MODEL,
      document.documentElement.style.getPropertyValue("--color-datatype-WAN_CORE_MODEL")]""")
    assert colours == [COLOUR] * 3


def test_missing_model_files_are_offered_for_download(page):
    page.drop("wan2.2_t2v_a14b", tell_missing=True)
    nodes = WORKFLOWS["wan2.2_t2v_a14b"].page["nodes"]
    wanted = [file for node in nodes for file in node["properties"].get("models", [])]
    assert len(wanted) == 4
    details = page.page.get_by_text("View details")
    details.or_(page.page.get_by_text(wanted[0]["name"])).first.wait_for()
    if details.count():  # the newer page tells in a corner first, the older one opens a dialog by itself
        details.click()
    for file in wanted:
        page.page.get_by_text(file["name"]).first.wait_for()
    assert page.page.get_by_role("button", name="Download", exact=False).count() >= len(wanted)
    page.page.keyboard.press("Escape")


def test_a_node_explains_itself_in_the_help_panel(page):
    page.drop("wan2.1_t2v")
    page.page.evaluate("""() =>
      app.canvas.selectNode(app.graph._nodes.find((node) => node.type === "WanCoreSampler"))""")
    page.page.get_by_test_id("info-button").click()
    page.page.get_by_text("Every 0 means").first.wait_for()
    assert any(status == 200 and url.endswith(f"{PACK_NAME}/docs/WanCoreSampler.md") for status, url in page.asked)


def test_the_picture_of_a_help_page_is_shown_in_the_panel(page):
    page.drop("wan2.1_fun_camera")
    page.page.evaluate("""() =>
      app.canvas.selectNode(app.graph._nodes.find((node) => node.type === "WanCoreCameraPath"))""")
    page.page.get_by_test_id("info-button").click()
    shown = page.page.wait_for_function("""() => [...document.images].filter(
      (image) => image.src.endsWith("/docs/pictures/camera_path.png") && image.naturalWidth > 0 && image.width > 200
    ).map((image) => [image.naturalWidth, image.width <= image.closest("div").clientWidth])[0]""")
    assert shown.json_value() == [560, True]


def test_a_job_runs_from_the_page_and_the_nodes_show_what_it_does(page, tiny_files):
    page.drop("wan2.1_t2v")
    page.page.evaluate(LISTEN)
    page.page.evaluate(SET_WIDGETS, {
        "WanCoreLoadModel": {"model_name": tiny_files["t2v"].name},
        "WanCoreLoadTextEncoder": {"text_encoder_name": tiny_files["text_encoder"].name},
        "WanCoreLoadVAE": {"vae_name": tiny_files["vae"].name},
        "WanCoreEmptyLatent": {"width": 128, "height": 128, "frames": 9},
        "WanCoreSampler": {"steps": 2},
        "SaveVideo": {"filename_prefix": "page"},
    })  # fmt: skip
    page.page.locator(RUN_BUTTON).first.click()
    page.page.wait_for_function("() => told.some(([kind]) => kind.startsWith('execution_'))")
    told = page.page.evaluate("() => told")
    assert [detail for kind, detail in told if kind == "execution_error"] == []
    sampler = next(node_id for node_id, node in page.prompt().items() if node["class_type"] == "WanCoreSampler")
    steps = [(at["value"], at["max"]) for kind, at in told if kind == "progress" and str(at["node"]) == sampler]
    assert steps == [(1, 2), (2, 2)]
    assert [size > 500 for kind, size in told if kind == "b_preview"] == [True, True]
    assert any("2 steps" in text for text in page.page.evaluate(TEXTS, "WanCoreSampler"))
    assert any("Wan 2.1 T2V" in text for text in page.page.evaluate(TEXTS, "WanCoreLoadModel"))
    page.page.wait_for_function(VIDEO)
    seen = page.page.evaluate(f"() => {{ const v = ({VIDEO})(); return [v.videoWidth, v.videoHeight, v.duration]; }}")
    assert seen[:2] == [128, 128]
    assert seen[2] == pytest.approx(9 / 16, abs=0.07)
    assert page.errors == []


def test_every_node_has_a_help_page_under_its_own_title(client):
    titles = {name: node["display_name"] for name, node in client.get("/object_info").items() if "WanCore" in name}
    pages = {name: (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in titles}
    assert {name: text.partition("\n")[0] for name, text in pages.items()} == {
        name: f"# {title}" for name, title in titles.items()
    }


@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "web" / "docs" / "pictures").glob("*"))])
def test_a_picture_of_a_help_page_is_served_beside_it(host, name):
    with urlopen(f"{host.url}/extensions/{PACK_NAME}/docs/pictures/{name}") as answer:
        assert answer.headers["Content-Type"] == "image/png"
        assert answer.read() == (ROOT / "web" / "docs" / "pictures" / name).read_bytes()


@pytest.mark.parametrize("name", [workflow.name for workflow in examples()])
def test_a_template_has_a_thumbnail_of_a_modest_size(host, name):
    with urlopen(f"{host.url}/api/workflow_templates/{PACK_NAME}/{name}.jpg") as answer:
        picture = answer.read()
    assert picture[:3] == b"\xff\xd8\xff"
    assert 10_000 < len(picture) <= 80_000
