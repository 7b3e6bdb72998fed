"""The pictures of the help pages: linked, small, and what the script draws now."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.make_help_pictures import OUT, PICTURES, WIDTH, drawn

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "web" / "docs"
LINK = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
LINKS = {page.name: LINK.findall(page.read_text(encoding="utf-8")) for page in sorted(DOCS.glob("*.md"))}
LARGEST_BYTES = 60_000


def test_every_picture_that_a_help_page_links_is_there_and_says_what_it_shows():
    links = [link for of_a_page in LINKS.values() for link in of_a_page]
    assert len(links) >= len(PICTURES)
    assert [target for _, target in links if not (DOCS / target).is_file()] == []
    assert [target for words, target in links if len(words) < 20] == []


def test_every_picture_is_linked():
    linked = {DOCS / target for links in LINKS.values() for _, target in links}
    assert linked == set(OUT.iterdir()) == {OUT / f"{name}.png" for name in PICTURES}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_small_and_is_what_the_script_draws(name):
    path = OUT / f"{name}.png"
    assert path.stat().st_size < LARGEST_BYTES
    kept, made = (np.asarray(image.convert("RGB")).astype(int) for image in (Image.open(path), drawn(name)))
    assert kept.shape == made.shape
    assert kept.shape[1] == WIDTH
    assert np.abs(kept - made).mean() < 1  # another Pillow may smooth a letter differently


def test_what_is_left_out_of_the_published_package_holds_no_help_page():
    """A pattern without a slash in front means such folders everywhere: docs/ took web/docs with it."""
    patterns = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    names = {pattern.strip("/") for pattern in patterns if pattern[:1] not in "#/"}
    shipped = ("nodes", "wan_core", "web", "models", "example_workflows")
    folders = [path for name in shipped for path in (ROOT / name).rglob("*") if path.is_dir()]
    assert [str(folder.relative_to(ROOT)) for folder in folders if folder.name in names] == []
