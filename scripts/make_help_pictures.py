"""Write web/docs/pictures: what goes into four nodes, drawn for their help pages.

``python3 -m scripts.make_help_pictures``

Masks, split clips, fitted references and camera paths are made by the code of the nodes, not drawn after it. The same
bytes each time, with one version of Pillow. The help panel shows them half as wide, so that letters are large here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from scripts.help_camera import camera_paths
from scripts.tiny_jobs import picture
from wan_core.conditioning.known_frames import known_mask
from wan_core.conditioning.vace import on_white, split_clip
from wan_core.grid import grid_of
from wan_core.stages.image import fit
from wan_core.variants import LATENT_21

OUT = Path(__file__).parents[1] / "web" / "docs" / "pictures"
WIDTH, MARGIN, GAP = 560, 6, 6
PAPER, INK, FAINT, ANEW, KNOWN = "#1f242c", "#f0f2f5", "#9aa5b3", "#ff5a5a", "#7c5cff"
FRAME = (132, 76)
COLOURS = 255
GREEN = (40, 120, 90)

TEXT, SMALL = (ImageFont.load_default(size) for size in (26, 22))


class Sheet:
    """Rows of frames under lines of text, from top to bottom; cut to its height when it is done."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (WIDTH, 2000), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.y = MARGIN

    def line(self, words: str, colour: str = INK, font=TEXT) -> None:
        assert self.draw.textlength(words, font) <= WIDTH - 2 * MARGIN, words
        self.draw.text((MARGIN, self.y), words, fill=colour, font=font)
        self.y += 35 if font is TEXT else 30

    def row(self, pictures: list[Image.Image], words: list[str] = ()) -> None:
        x = MARGIN
        for index, one in enumerate(pictures):
            self.image.paste(one, (x, self.y))
            if index < len(words):
                assert self.draw.textlength(words[index], SMALL) <= one.width + GAP, words[index]
                self.draw.text((x + 1, self.y + one.height + 3), words[index], fill=FAINT, font=SMALL)
            x += one.width + GAP
        self.y += max(one.height for one in pictures) + (31 if words else 0) + GAP

    def space(self, pixels: int = 10) -> None:
        self.y += pixels

    def done(self) -> Image.Image:
        return self.image.crop((0, 0, WIDTH, self.y + MARGIN - GAP))


# --- what is shown ---------------------------------------------------------------------------------------------------


def frames(count: int, size: tuple[int, int] = FRAME, change=lambda image: image) -> list[Image.Image]:
    """A boat crosses the sea: frames of a clip, each changed."""
    places = np.linspace(-120, 260, count).round().astype(int)
    return [shown(change(picture(int(place))), size) for place in places]


def shown(image: Image.Image, size: tuple[int, int] = FRAME) -> Image.Image:
    """As the nodes fit a picture into a clip: scaled to cover it, its centre cut."""
    grid = grid_of(LATENT_21, width=832, height=480, frames=1)
    return to_image(fit(to_tensor(image), grid, "picture", lambda _: None)).resize(size, Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image))[None] / 255


def to_image(pictures_BHWC: torch.Tensor) -> Image.Image:
    return Image.fromarray((pictures_BHWC[0] * 255).round().byte().numpy())


def edges(image: Image.Image) -> Image.Image:
    """White edges on black, as edge detectors give them."""
    found = image.convert("L").filter(ImageFilter.FIND_EDGES).point(lambda value: 255 if value > 30 else 0)
    ImageDraw.Draw(found).rectangle([0, 0, found.width - 1, found.height - 1], outline=0)
    return found.filter(ImageFilter.MaxFilter(5)).convert("RGB")


def depth(image: Image.Image) -> Image.Image:
    """What a depth estimator would say of the picture: the boat is near, the sea goes away, the sky is far."""
    pixels = np.asarray(image).astype(int)
    made = np.zeros(pixels.shape[:2])
    made[300:] = np.linspace(40, 200, len(made) - 300)[:, None]
    made[(pixels[..., 0] > 150) & (pixels[..., 1] < 80)] = 235
    return Image.fromarray(made.astype(np.uint8)).convert("RGB")


def boat(colour: tuple[int, int, int], size: tuple[int, int]) -> Image.Image:
    """A boat with a sail on a plain ground: a reference picture."""
    scale = min(size[0] / 100, size[1] / 120)
    image = Image.new("RGB", size, "#d9c9a8")
    draw, left, middle = ImageDraw.Draw(image), size[0] / 2 - 50 * scale, size[1] / 2
    hull = [(12, 18), (88, 18), (70, 42), (30, 42)]
    sail = [(52, -48), (52, 10), (86, 10)]
    for shape, fill in ((hull, colour), (sail, "#fafafa")):
        draw.polygon([(left + x * scale, middle + y * scale) for x, y in shape], fill=fill)
    mast = [(left + 49 * scale, middle + y * scale) for y in (-50, 18)]
    draw.line(mast, fill="#5b4636", width=max(2, round(2 * scale)))
    return image


def overlaid(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Red where the mask is 1."""
    red = Image.new("RGB", image.size, ANEW)
    alpha = Image.fromarray((mask * 140).astype(np.uint8))
    return Image.composite(red, image, alpha)


# --- the pictures ----------------------------------------------------------------------------------------------------


def vace() -> Image.Image:
    sheet, clip = Sheet(), frames(4)
    sheet.line("Follow: control_video alone")
    led = [frames(4, change=change)[index] for change in (edges, depth) for index in (0, 2)]
    sheet.row(led, ["edges", "... later", "or depth", "... later"])
    sheet.space()
    sheet.line("Change: control_video and control_masks")
    sheet.line("red: mask 1 (white), made anew; else kept", ANEW, SMALL)
    inside = np.zeros(FRAME[::-1])
    inside[2:36, 68:118] = 1  # around the sun
    frame = to_tensor(clip[1])
    kept, anew = (
        to_image(next(split_clip(frame, torch.from_numpy(inside)[None], part))) for part in ("inactive", "reactive")
    )
    sheet.row([clip[1], overlaid(clip[1], inside), kept, anew], ["video", "and mask", "seen: kept", "seen: anew"])
    sheet.space()
    sheet.line("Go on: frames with black masks, then nothing")
    grey = Image.new("RGB", FRAME, (128, 128, 128))
    rest = [overlaid(grey, np.ones(FRAME[::-1]))] * 2
    sheet.row([clip[0], clip[1], *rest], ["frame 1", "frame 2", "anew ...", "... to the end"])
    sheet.space()
    sheet.line("Show: reference_image, fitted on white")
    grid, made = grid_of(LATENT_21, width=832, height=480, frames=1), []
    for size in ((420, 480), (900, 450)):
        source = boat(GREEN, size)
        fitted = to_image(next(on_white(to_tensor(source), grid)))
        made += [source.resize((size[0] * FRAME[1] // size[1], FRAME[1]), Image.Resampling.LANCZOS)]
        made += [fitted.resize(FRAME, Image.Resampling.LANCZOS)]
    sheet.row(made, ["given", "seen", "given", "seen"])
    return sheet.done()


def fun_control() -> Image.Image:
    sheet, clip = Sheet(), frames(4)
    sheet.line("control_video: a picture for every frame")
    sheet.row(frames(4, change=edges), ["frame 1", "frame 27", "frame 54", "frame 81"])
    sheet.space()
    sheet.line("start_image: the first frame")
    empty = [blank("made")] * 3
    sheet.row([clip[0], *empty], ["frame 1"])
    sheet.space()
    sheet.line("ref_image: what is shown, before the clip")
    reference = shown(boat(GREEN, (832, 480)))
    sheet.row([reference, *[blank("clip")] * 3], ["not saved"])
    return sheet.done()


def blank(words: str) -> Image.Image:
    """A frame that is not given."""
    image = Image.new("RGB", FRAME, "#2e3541")
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, 0, FRAME[0] - 1, FRAME[1] - 1], outline="#4a5463")
    draw.text((FRAME[0] / 2, FRAME[1] / 2), words, fill=FAINT, font=SMALL, anchor="mm")
    return image


def image_to_video() -> Image.Image:
    sheet, count = Sheet(), 9
    grid = grid_of(LATENT_21, width=832, height=480, frames=count)
    size = ((WIDTH - 2 * MARGIN - (count - 1) * 4) // count, 34)
    clip = frames(count, size)
    rows = {"start_image": (1, 0), "end_image": (0, 1), "start_image and end_image": (1, 1),
            "start_image with 5 pictures": (5, 0)}  # fmt: skip
    for words, (first, last) in rows.items():
        sheet.line(words)
        timeline(sheet, grid, clip, first, last)
        sheet.space(12)
    sheet.line("Below: the mask that the model sees. White:", FAINT, SMALL)
    sheet.line("known. Purple: latent frames; the first", FAINT, SMALL)
    sheet.line("stands for one frame, the others for four.", FAINT, SMALL)
    return sheet.done()


def timeline(sheet: Sheet, grid, clip: list[Image.Image], first: int, last: int) -> None:
    """The frames of a clip, those that are given in pictures; below, the mask that the model sees."""
    mask = known_mask(grid, first, last)[0, :, :, 0, 0].T.reshape(-1)[3:]  # the first frame stands there four times
    step, bar = clip[0].width + 4, 12
    for number, (frame, known) in enumerate(zip(clip, mask.tolist())):
        x, y = MARGIN + number * step, sheet.y
        if known:
            sheet.image.paste(frame, (x, y))
        else:
            sheet.draw.rectangle([x, y, x + frame.width - 1, y + frame.height - 1], fill="#2e3541", outline="#4a5463")
        y += frame.height + 5
        fill = "white" if known else "black"
        sheet.draw.rectangle([x, y, x + frame.width - 1, y + bar], fill=fill, outline="#4a5463")
    y = sheet.y + clip[0].height + bar + 10
    for begin, end in ((0, 1), (1, 5), (5, 9)):
        sheet.draw.line([MARGIN + begin * step, y, MARGIN + end * step - 5, y], fill=KNOWN, width=3)
    sheet.y = y + 8


PICTURES = {
    "vace": vace, "fun_control": fun_control, "image_to_video": image_to_video, "camera_path": camera_paths,
}  # fmt: skip
"""Name of a file, without .png -> what draws it."""


def drawn(name: str) -> Image.Image:
    return PICTURES[name]().quantize(COLOURS, dither=Image.Dither.NONE)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    for name in PICTURES:
        path = OUT / f"{name}.png"
        drawn(name).save(path, optimize=True)
        print(f"{path.relative_to(OUT.parents[2])}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
