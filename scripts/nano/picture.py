"""Write docs/nano.png: what the nano models make of four prompts and of one picture, five frames of each.

``python3 -m scripts.nano.picture``
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.nano_run import Family, Files, Run, make
from scripts.nano.world import FRAMES, SIZE, Scene, render

OUT = Path(__file__).parents[2] / "docs" / "nano.png"
PROMPTS = {
    "A large yellow circle moves right on a black background.": None,
    "A small purple triangle falls on a white background.": None,
    "A large green cross moves up on a brown background.": None,
    "一个小的青色方块在灰色背景上向左移动。": "(Chinese) A small cyan square moves left on gray.",
}
"""Prompt -> what is written above its video, where that is not the prompt."""
START = render(Scene(color="blue", background="white", shape="triangle", motion="still", size="large"))[0]
MOVES = ("moves right", "falls")
SHOWN = np.linspace(0, FRAMES - 1, 5).round().astype(int)
SCALE, GAP, LINE = 2, 4, 18


def rows(family: Family) -> list[tuple[str, np.ndarray]]:
    """What is written above, and the frames: of the image model's videos the picture that was given comes first."""
    run = Run(seed=1)
    texts = make(family.t2v, family.encoder, family.vae, list(PROMPTS), run)
    images = np.stack([START] * len(MOVES))
    moved = make(family.i2v, family.encoder, family.vae, list(MOVES), run, images=images)
    return [
        *((said or words, video[SHOWN]) for (words, said), video in zip(PROMPTS.items(), texts)),
        *((f"the picture on the left: {w}", np.stack([START, *v[SHOWN[1:]]])) for w, v in zip(MOVES, moved)),
    ]


def main() -> None:
    side = SIZE * SCALE + GAP
    made = rows(Family(files=Files()))
    picture = Image.new("RGB", (side * len(SHOWN), (side + LINE) * len(made)), "white")
    draw = ImageDraw.Draw(picture)
    for row, (words, frames) in enumerate(made):
        top = row * (side + LINE)
        draw.text((2, top + 3), words, fill="black")
        for column, frame in enumerate(frames):
            large = Image.fromarray(frame).resize((SIZE * SCALE,) * 2, Image.Resampling.BICUBIC)
            picture.paste(large, (column * side, top + LINE))
    picture.save(OUT, optimize=True)
    print(OUT)


if __name__ == "__main__":
    main()
