"""Write docs/nano.png: what the nano model makes of four prompts, five frames of each.

``python3 -m scripts.nano.picture``
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.nano_run import Family, Files, Run, make
from scripts.nano.world import FRAMES, SIZE

OUT = Path(__file__).parents[2] / "docs" / "nano.png"
PROMPTS = (
    "A large yellow circle moves right on a black background.",
    "A small purple triangle falls on a white background.",
    "A large green cross moves up on a brown background.",
    "一个小的青色方块在灰色背景上向左移动。",
)
SHOWN = np.linspace(0, FRAMES - 1, 5).round().astype(int)
SCALE, GAP, LINE = 2, 4, 18


def main() -> None:
    family = Family(files=Files())
    videos = list(make(family.t2v, family.encoder, family.vae, list(PROMPTS), Run(seed=1)))
    rows = PROMPTS
    side = SIZE * SCALE + GAP
    picture = Image.new("RGB", (side * len(SHOWN), (side + LINE) * len(rows)), "white")
    draw = ImageDraw.Draw(picture)
    for row, (words, video) in enumerate(zip(rows, videos)):
        top = row * (side + LINE)
        draw.text(
            (2, top + 3),
            words if words.isascii() else "(Chinese) A small cyan square moves left on gray.",
            fill="black",
        )
        for column, frame in enumerate(SHOWN):
            large = Image.fromarray(video[frame]).resize((SIZE * SCALE,) * 2, Image.Resampling.BICUBIC)
            picture.paste(large, (column * side, top + LINE))
    picture.save(OUT, optimize=True)
    print(OUT)


if __name__ == "__main__":
    main()
