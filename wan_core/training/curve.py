"""The loss of a run as a picture."""

import math
from pathlib import Path

from .state import whole_file

WIDTH, HEIGHT, MARGIN = 800, 400, 50


def draw_curve(losses: list[tuple[int, float]], path: Path) -> None:
    """Write :func:`curve_image` as a PNG; with fewer than two points nothing is written."""
    if len(losses) < 2:
        return
    image = curve_image(losses)
    with whole_file(path) as part:
        image.save(part, "PNG")


def curve_image(losses: list[tuple[int, float]]):
    """``(step, loss)`` pairs on a logarithmic axis, as an RGB picture; with fewer than two there is no line in it."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    draw.text((WIDTH // 2 - 40, HEIGHT - 20), "loss by step", fill="#444444")
    points = [(step, math.log10(loss)) for step, loss in losses if loss > 0]
    if len(points) < 2:
        return image
    first, last = points[0][0], points[-1][0]
    low, high = min(y for _, y in points), max(y for _, y in points)
    high = max(high, low + 0.1)

    def place(step: float, y: float) -> tuple[float, float]:
        x = MARGIN + (step - first) / max(1, last - first) * (WIDTH - 2 * MARGIN)
        return x, HEIGHT - MARGIN - (y - low) / (high - low) * (HEIGHT - 2 * MARGIN)

    for n in range(5):
        y = low + n / 4 * (high - low)
        (left, row), (right, _) = place(first, y), place(last, y)
        draw.line([(left, row), (right, row)], fill="#dddddd")
        draw.text((4, row - 6), f"{10**y:.3g}", fill="#444444")
        step = first + n / 4 * (last - first)
        draw.text((place(step, low)[0] - 12, HEIGHT - MARGIN + 8), f"{step:.0f}", fill="#444444")
    draw.line([place(*point) for point in points], fill="#1f6feb", width=2)
    return image
