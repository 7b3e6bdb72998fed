"""A plan as a picture: a bar for each stage, against what there is on its device."""

import textwrap

from ..errors import gigabytes
from .plan_report import RunPlan, StagePlan, duration

WIDTH, MARGIN = 768, 20
TITLE, ROW, FOOT = 38, 72, 32
LINE = 18
BAR = 18
CHARACTERS = 106
"""That fit on a line."""
ROOM = 0.9
"""Part of the width that the budget takes, so that what is over it can be seen."""
MAX_REASONS = 4
INK, PALE, FRAME, WEIGHTS, WORK, GOOD, BAD = (
    "#1f2328", "#59636e", "#d1d9e0", "#1f6feb", "#f0883e", "#1a7f37", "#cf222e",
)  # fmt: skip


def plan_image(plan: RunPlan):
    """The plan as an RGB picture (PIL), 768 wide and as high as it has stages."""
    from PIL import Image, ImageDraw

    reasons = [*plan.problems, *(f"{stage.name}: {stage.problem}" for stage in plan.stages if stage.problem)]
    lines = [(line, PALE) for text in (plan.size, plan.settings) for line in textwrap.wrap(text, CHARACTERS)[:2]]
    lines += [(line, BAD) for reason in reasons[:MAX_REASONS] for line in textwrap.wrap(reason, CHARACTERS)[:3]]
    head = TITLE + LINE * len(lines) + 10
    image = Image.new("RGB", (WIDTH, head + ROW * len(plan.stages) + FOOT), "white")
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, 10), textwrap.shorten(plan.title, 50), fill=INK, font=_font(20))
    verdict = f"can run, about {duration(plan.seconds)}" if plan.is_possible else "cannot run as it is"
    draw.text((WIDTH - MARGIN, 12), verdict, fill=GOOD if plan.is_possible else BAD, font=_font(18), anchor="ra")
    for number, (line, colour) in enumerate(lines):
        draw.text((MARGIN, TITLE + LINE * number), line, fill=colour, font=_font(14))
    for number, stage in enumerate(plan.stages):
        _row(draw, stage, head + number * ROW)
    _legend(draw, head + ROW * len(plan.stages) + 8)
    return image


def _row(draw, stage: StagePlan, top: int) -> None:
    """Words, and the bar between them: blue and orange end at the peak, the line stands at what there is."""
    draw.text((MARGIN, top), f"{stage.name} on {stage.device}", fill=INK, font=_font(15))
    draw.text((WIDTH - MARGIN, top), _said(stage), fill=BAD if _alarms(stage) else INK, font=_font(15), anchor="ra")
    y, width = top + 21, WIDTH - 2 * MARGIN
    per_byte, end = ROOM * width / max(1, stage.budget_bytes), MARGIN + ROOM * width
    draw.rectangle((MARGIN, y, end, y + BAR), fill="#f6f8fa", outline=FRAME)
    x = MARGIN
    for nbytes, colour in ((stage.peak_bytes - stage.work_bytes, WEIGHTS), (stage.work_bytes, WORK)):
        if stage.peak_bytes and nbytes > 0:
            right = min(max(x + nbytes * per_byte, x + 2), WIDTH - MARGIN)
            draw.rectangle((x, y, right, y + BAR), fill=colour)
            x = right
    draw.line((end, y - 1, end, y + BAR + 3), fill=BAD if _alarms(stage) else INK, width=3)
    caption = f"{stage.placement} Host memory: {stage.host} private." if stage.peak_bytes else "No plan fits."
    draw.text((MARGIN, y + BAR + 4), textwrap.shorten(caption, CHARACTERS + 8), fill=PALE, font=_font(13))


def _alarms(stage: StagePlan) -> bool:
    return bool(stage.problem) or stage.peak_bytes > stage.budget_bytes


def _said(stage: StagePlan) -> str:
    if not stage.peak_bytes:
        return f"does not fit into {gigabytes(stage.budget_bytes)}"
    peak = f"{gigabytes(stage.peak_bytes)} of {gigabytes(stage.budget_bytes)}"
    return f"{peak}: may not fit" if _alarms(stage) else f"{peak}, about {duration(stage.seconds)}"


def _legend(draw, top: int) -> None:
    x = MARGIN
    for colour, words in ((WEIGHTS, "weights on the device"), (WORK, "memory to work in"), (INK, "what there is")):
        left = x + 5 if colour == INK else x
        draw.rectangle((left, top, left + (2 if colour == INK else 12), top + 12), fill=colour)
        draw.text((x + 18, top - 2), words, fill=PALE, font=_font(14))
        x += 190
    draw.text((WIDTH - MARGIN, top - 2), "seconds are estimates", fill=PALE, font=_font(14), anchor="ra")


def _font(size: int):
    from PIL import ImageFont

    return ImageFont.load_default(size)
