""":class:`Graph` -> the page form."""

import copy

from .graph import ON, Graph, Node, Wire
from .layout import SOCKET, WIDGET, Block, make_room, pair
from .ours import OURS

WIDTH = 320


def is_page(document: dict) -> bool:
    """Whether a document is in the page form."""
    return isinstance(document.get("nodes"), list)


def to_page(graph: Graph, document: dict) -> dict:
    """The page form of a graph; what ``document`` holds besides its nodes goes with it."""
    numbers = _numbers(graph, document)
    kept = _old_links(document)
    links, nodes, last = [], [], max([*kept.values(), 0, *_whole(document.get("last_link_id"))])
    for node in graph.nodes.values():
        raw = copy.deepcopy(node.raw) if "type" in node.raw else _new(node)
        raw["id"], raw["mode"] = numbers[node.key], node.mode
        _name_wired(raw, node)
        for slot, entry in enumerate(raw["inputs"]):
            wire = node.wires.get(entry.get("name", ""))
            entry["link"] = None
            if wire is not None:
                ends = (numbers[wire.node], wire.slot, numbers[node.key], slot)
                number = kept.pop(ends, None)
                if number is None:
                    number = last = last + 1
                entry["link"] = number
                links.append([number, *ends, _type(graph, wire, entry)])
        nodes.append(raw)
    _fill_outputs(nodes, links)
    _make_room(graph, nodes)
    made = {name: value for name, value in document.items() if name != "definitions"}
    made |= {"nodes": nodes, "links": links, "groups": graph.groups, "last_link_id": last}
    made["last_node_id"] = max(list(numbers.values()) or [0])
    if isinstance(made.get("extra"), dict):
        ids = {link[0] for link in links}
        made["extra"] = _cleaned(made["extra"], ids)
    made["version"] = 0.4
    return made


def _whole(value: object) -> list[int]:
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []


def _numbers(graph: Graph, document: dict) -> dict[str, int]:
    """Node ids: those of the page as they were, new ones for what was inside a subgraph."""
    own = {key: int(key) for key in graph.nodes if key.isascii() and key.isdigit() and len(key) < 15}
    last = max([*own.values(), 0, *_whole(document.get("last_node_id"))])
    rest = [key for key in graph.nodes if key not in own]
    return own | {key: last + number for number, key in enumerate(rest, 1)}


def _old_links(document: dict) -> dict[tuple, int]:
    """Ends -> id of the links on the page itself."""
    return {tuple(link[1:5]): link[0] for link in document.get("links") or [] if isinstance(link, list)}


def _new(node: Node) -> dict:
    """A node of ours as the page draws it, where and as wide as the one that it came from."""
    shape = OURS[node.kind]
    inputs = [{"name": name, "type": kind, "link": None} for name, kind in (*shape.sockets, *shape.last_sockets)]
    inputs += [
        {"name": name, "type": kind, "link": None, "widget": {"name": name}}
        for name, (kind, _) in shape.widgets.items()
    ]
    values = [node.values.get(name, default) for name, (_, default) in shape.widgets.items()]
    if shape.seeded:
        values.insert(1, node.raw.get("control", "fixed"))
    rows = max(len(shape.sockets) + len(shape.last_sockets), len(shape.outputs))
    raw = {
        "id": node.key,
        "type": node.kind,
        "pos": node.raw.get("pos", [0, 0]),
        "size": [max(WIDTH, pair(node.raw.get("size"))[0]), SOCKET * rows + WIDGET * (len(values) + 1) + 60],
        "flags": {},
        "order": node.raw.get("order", 0),
        "mode": ON,
        "inputs": inputs,
        "outputs": [{"name": name, "type": kind, "links": None} for name, kind in shape.outputs],
        "properties": {"Node name for S&R": node.kind},
        "widgets_values": values,
    }
    if node.raw.get("models"):
        raw["properties"]["models"] = node.raw["models"]
    return raw


def _make_room(graph: Graph, nodes: list[dict]) -> None:
    """Push aside what a new node would cover that is larger than the one whose place it takes."""
    by_key = dict(zip(graph.nodes, nodes))
    new = [key for key, node in graph.nodes.items() if "type" not in node.raw]
    for key in new:
        old = {"pos": by_key[key]["pos"], "size": graph.nodes[key].raw.get("size", [200, 100])}
        others = [raw for raw in nodes if raw is not by_key[key]]
        make_room(Block(nodes=others, groups=graph.groups), Block(nodes=[by_key[key]]), old)


def _name_wired(raw: dict, node: Node) -> None:
    """An entry for every wired input: a file need not list widgets that nothing was wired into."""
    named = {entry.get("name", "") for entry in raw["inputs"]}
    for name in node.wires:
        if name not in named:
            raw["inputs"].append({"name": name, "type": "*", "link": None, "widget": {"name": name}})


def _type(graph: Graph, wire: Wire, entry: dict) -> str:
    """The type of a link: that of the output, or of the input where the output takes any."""
    source = graph.nodes[wire.node]
    outputs = source.raw.get("outputs") or []
    if "type" not in source.raw:
        return OURS[source.kind].outputs[wire.slot][1]
    found = outputs[wire.slot].get("type") if wire.slot < len(outputs) else None
    wanted = entry.get("type")
    return found if isinstance(found, str) and found not in ("*", "") else wanted if isinstance(wanted, str) else "*"


def _fill_outputs(nodes: list[dict], links: list[list]) -> None:
    leaving: dict[tuple, list[int]] = {}
    for link in links:
        leaving.setdefault((link[1], link[2]), []).append(link[0])
    for raw in nodes:
        for slot, output in enumerate(raw["outputs"]):
            output["links"] = leaving.get((raw["id"], slot), None if output.get("links") is None else [])


def _cleaned(extra: dict, ids: set[int]) -> dict:
    """What the page keeps beside the graph, without what was said about links that are gone."""
    extra = dict(extra)
    extensions = extra.get("linkExtensions")
    if isinstance(extensions, list):
        extra["linkExtensions"] = [e for e in extensions if isinstance(e, dict) and e.get("id") in ids]
    reroutes = extra.get("reroutes")
    if isinstance(reroutes, list):
        kept = []
        for reroute in reroutes:
            on = [number for number in reroute.get("linkIds", []) if number in ids] if isinstance(reroute, dict) else []
            kept += [reroute | {"linkIds": on}] if on else []
        extra["reroutes"] = kept
    return extra
