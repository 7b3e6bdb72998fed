"""Where nodes are on the page. Positions that are no numbers count as 0."""

from dataclasses import dataclass, field

TITLE, SOCKET, WIDGET, MARGIN = 30, 20, 24, 40


@dataclass(kw_only=True)
class Block:
    """Nodes (``pos``, ``size``) and groups (``bounding``) of the page form, which are moved in place."""

    nodes: list[dict] = field(default_factory=list)
    groups: list[dict] = field(default_factory=list)


def pair(value: object, default: tuple[float, float] = (0.0, 0.0)) -> tuple[float, float]:
    """``[x, y]``, or ``{"0": x, "1": y}`` as older pages have it."""
    if isinstance(value, dict):
        value = [value.get("0"), value.get("1")]
    if not isinstance(value, list) or len(value) < 2:
        return default
    x, y = (part if isinstance(part, int | float) else 0 for part in value[:2])
    return x, y


def box(node: dict) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a node, its title bar included."""
    (x, y), (width, height) = pair(node.get("pos")), pair(node.get("size"), (200.0, 100.0))
    return x, y - TITLE, x + width, y + height


def bounds(group: dict) -> tuple[float, float, float, float]:
    """Left, top, width, height of a group."""
    value = group.get("bounding")
    if not isinstance(value, list) or len(value) < 4 or not all(isinstance(part, int | float) for part in value):
        return 0.0, 0.0, 0.0, 0.0
    return tuple(value[:4])


def make_room(block: Block, inner: Block, instance: dict) -> None:
    """Put what a subgraph holds where its node was, and push aside what is right of it and below it."""
    boxes = [box(node) for node in inner.nodes]
    for x, y, width, height in map(bounds, inner.groups):
        boxes.append((x, y, x + width, y + height))
    if not boxes:
        return
    left, top = min(b[0] for b in boxes), min(b[1] for b in boxes)
    width, height = max(b[2] for b in boxes) - left, max(b[3] for b in boxes) - top
    x, y, right, bottom = box(instance)
    more_x, more_y = max(0, width - (right - x)), max(0, height - (bottom - y))
    for node in block.nodes:
        old = box(node)
        _move(node, more_x if old[0] >= right - 1 else 0, more_y if old[1] >= bottom - 1 else 0)
    for group in block.groups:
        _stretch(group, (x, y, right, bottom), more_x, more_y)
    for node in inner.nodes:
        _move(node, x - left, y - top)
    for group in inner.groups:
        old = bounds(group)
        group["bounding"] = [old[0] + x - left, old[1] + y - top, *old[2:]]
    block.nodes += inner.nodes
    block.groups += inner.groups


def _move(node: dict, dx: float, dy: float) -> None:
    x, y = pair(node.get("pos"))
    if dx or dy:
        node["pos"] = [x + dx, y + dy]


def _stretch(group: dict, hole: tuple[float, float, float, float], more_x: float, more_y: float) -> None:
    """A group that holds the subgraph grows; one that is right of it or below it moves."""
    x, y, width, height = bounds(group)
    left, top, right, bottom = hole
    holds = x <= left and y <= top and x + width >= right and y + height >= bottom
    if holds:
        width, height = width + more_x, height + more_y
    else:
        x += more_x if x >= right - 1 else 0
        y += more_y if y >= bottom - 1 else 0
    group["bounding"] = [x, y, width, height]
