"""Write the table of what runs in README.md: the rows of wan_core/variants.py, between two marks.

    .venv/bin/python scripts/models_table.py            any Python with torch, which the variants import
    .venv/bin/python scripts/models_table.py --check    writes nothing; fails where the README is not up to date

Rows that differ in nothing but size share a line. Rows that are ``exact`` (Wan Nano, which comes with the pack and has
a text of its own) are left out.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wan_core.variants import LATENT_21, VARIANTS, Feature, WanVariant

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- scripts/models_table.py writes from here -->", "<!-- to here -->"
HEAD = ("model", "files", "takes besides the text", "defaults")
TITLE = re.compile(r"(?P<family>.+?) (?P<size>A?[\d.]+B)(?: (?P<version>.+))?")
"""``Wan 2.1 Fun Control 14B V1.1``: a family, a size, and a version for some."""


def table(rows: Iterable[WanVariant] = VARIANTS) -> str:
    """Markdown, a line for each family."""
    families: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if not row.exact:
            family, size = _name(row)
            families.setdefault((family, _files(row), ", ".join(_taken(row.features)), _defaults(row)), []).append(size)
    lines = [(f"{family} {', '.join(sizes)}".strip(), *rest) for (family, *rest), sizes in families.items()]
    head, *made = (f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (HEAD, *lines))
    return "\n".join((head, f"|{'---|' * len(HEAD)}", *made))


def _name(row: WanVariant) -> tuple[str, str]:
    """A title without its size, and the size."""
    found = TITLE.fullmatch(row.title)
    if found is None:
        return row.title, ""
    return " ".join(filter(None, (found["family"], found["version"]))), found["size"]


def _files(row: WanVariant) -> str:
    vae = "" if row.latent is LATENT_21 else f", {row.latent.vae.split(' (')[0]}"
    return ("one model" if row.experts == 1 else "high-noise and low-noise file") + vae


def _taken(features: frozenset[Feature]) -> Iterator[str]:
    if Feature.VACE in features:
        yield "control video, masks, reference pictures; several at once"
    if Feature.CONTROL in features:
        yield "control video"
    if Feature.CAMERA in features:
        yield "camera path"
    if image := _image(features):
        yield image + (" (clean first frame)" if Feature.FIRST_FRAME in features else "")
    if Feature.REFERENCE in features:
        yield "reference picture"
    if Feature.CLIP in features:
        yield "CLIP vision"


def _image(features: frozenset[Feature]) -> str:
    """The known frames that a model was trained with."""
    if Feature.LAST_FRAME in features:
        return "start and end image"
    is_led = bool(features & {Feature.CONTROL, Feature.CAMERA})
    needs_start = Feature.CLIP in features and Feature.BLANK not in features
    if Feature.CONCAT in features and not is_led and not needs_start:
        return "start and/or end image"
    return "start image" if features & {Feature.CONCAT, Feature.START, Feature.FIRST_FRAME} else ""


def _defaults(row: WanVariant) -> str:
    own = row.defaults
    scales = dict.fromkeys((own.guidance_high, own.guidance_low))
    return f"{own.steps} steps, shift {own.shift:g}, guidance {' then '.join(f'{scale:g}' for scale in scales)}"


def written(text: str) -> str:
    """The README with the table of now; a ValueError where a mark is missing."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where the table is not that of now")
    args = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    made = written(text)
    if made == text:
        print("README.md is up to date.")
    elif args.check:
        print(f"The models in README.md are not those of wan_core/variants.py. Run: {sys.executable} {__file__}")
        return 1
    else:
        README.write_text(made, encoding="utf-8")
        print("README.md: the table of models is written.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
