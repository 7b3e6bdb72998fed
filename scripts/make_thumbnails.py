"""Write the thumbnails of example_workflows: each page form opened in a browser, its graph photographed.

    python3 scripts/make_thumbnails.py
    python3 scripts/make_thumbnails.py wan2.1_t2v wan2.1_i2v

Runs in the project's .venv (playwright, Pillow) and starts a ComfyUI of its own, with empty files under the names of
the real models, so that the page has nothing to complain about.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.browser import ensure_browser
from scripts.host import Host, stop_on_sigterm
from scripts.make_workflows import OUT
from scripts.setup_host import find_host
from scripts.tiny_jobs import draw_image, draw_video

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
]
WINDOW = {"width": 2500, "height": 1700}
PHOTO = {"x": 150, "y": 120, "width": 2160, "height": 1350}  # clear of the page's own bars
SIZE = (800, 500)
LARGEST_BYTES = 80_000
WAIT_MS = 120_000  # of a busy machine

OPENED = "() => window.app && app.extensionManager && app.graph && app.canvas"

# Move and scale the canvas so that the frames of the graph fill the photograph.
FIT = """({x, y, width, height}) => {
  const boxes = app.graph._groups.map((group) => group._bounding);
  const left = Math.min(...boxes.map((b) => b[0])) - 30, right = Math.max(...boxes.map((b) => b[0] + b[2])) + 30;
  const top = Math.min(...boxes.map((b) => b[1])) - 30, bottom = Math.max(...boxes.map((b) => b[1] + b[3])) + 30;
  const scale = Math.min(width / (right - left), height / (bottom - top));
  const place = document.querySelector("#graph-canvas").getBoundingClientRect();
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset[0] = (x + width / 2 - place.x) / scale - (left + right) / 2;
  app.canvas.ds.offset[1] = (y + height / 2 - place.y) / scale - (top + bottom) / 2;
  app.canvas.setDirty(true, true);
}"""


def empty_models(folder: Path) -> Path:
    """A models tree of empty files under every name that a workflow knows."""
    for path in OUT.glob("*.json"):
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            for file in node["properties"].get("models", []):
                target = folder / file["directory"] / file["name"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
    return folder


def photograph(page, name: str) -> bytes:
    """The workflow's graph as a PNG."""
    graph = json.loads((OUT / f"{name}.json").read_text(encoding="utf-8"))
    page.evaluate("async (graph) => { await app.loadGraphData(graph); }", graph)
    page.wait_for_timeout(4000)  # pictures load, and widgets that bring others are laid out
    page.evaluate(FIT, PHOTO)
    page.wait_for_timeout(1500)
    return page.screenshot(clip=PHOTO)


def write_jpeg(png: bytes, path: Path) -> None:
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)
    for quality in (85, 75, 65, 55):
        image.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= LARGEST_BYTES:
            break
    print(f"{path.relative_to(OUT.parent)}  {path.stat().st_size / 1000:.0f} kB, quality {quality}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="workflows (default: all)")
    names = parser.parse_args().names or sorted(path.stem for path in OUT.glob("*.json"))
    stop_on_sigterm()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        models = empty_models(Path(folder) / "models")
        host = Host(find_host(), Path(folder) / "base", models=models, timeout_s=400)
        draw_image(host.input_dir / "example.png")
        draw_video(host.input_dir / "input.mp4")
        with host, sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=ensure_browser(), args=FLAGS)
            page = browser.new_page(viewport=WINDOW)
            page.set_default_timeout(WAIT_MS)
            page.goto(host.url, timeout=WAIT_MS)
            page.wait_for_function(OPENED)
            page.wait_for_timeout(3000)
            page.keyboard.press("Escape")
            page.evaluate("() => app.extensionManager.setting.set('Comfy.Minimap.Visible', false)")
            for name in names:
                write_jpeg(photograph(page, name), OUT / f"{name}.jpg")
            browser.close()


if __name__ == "__main__":
    main()
