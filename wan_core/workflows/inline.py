"""Subgraphs -> their nodes, in place."""

import copy
from dataclasses import dataclass, field

from ..errors import WorkflowError
from .graph import BYPASSED, MAX_HOPS, MAX_NODES, MUTED, ON, Graph, Node, Wire
from .layout import Block, make_room
from .scopes import INPUT, OUTPUT, Link, Scope, definitions, page_scope
from .widgets import named_places, named_values

MAX_LEVELS = 20


@dataclass(kw_only=True)
class Place:
    """A graph where it is used: which node stands for it in which other graph."""

    scope: Scope
    prefix: str = ""
    parent: "Place | None" = None
    instance: dict | None = None
    mode: int = ON
    inner: dict[int | str, "Place"] = field(default_factory=dict)
    sources: dict[int, Link] = field(default_factory=dict)

    def key(self, number: int | str) -> str:
        return f"{self.prefix}{number}"

    def leaves(self, slot: int) -> Link | None:
        """The link that feeds an output of a subgraph."""
        return self.scope.into(OUTPUT, slot)


def from_page(document: dict, schemas: dict | None = None) -> Graph:
    """The graph of a document in the page form, without subgraphs. Raises WorkflowError."""
    table, count = definitions(document), [0]
    top = Place(scope=page_scope(document))
    _unfold(top, table, count, 0)
    graph = Graph(nodes={})
    _add_nodes(graph, top, schemas)
    block = _blocks(graph, top)
    graph.groups = block.groups
    return graph


def _unfold(place: Place, table: dict[str, Scope], count: list[int], level: int) -> None:
    if level > MAX_LEVELS:
        raise WorkflowError(
            f"subgraph {place.scope.name} is nested more than {MAX_LEVELS} levels deep, or contains itself."
        )
    count[0] += len(place.scope.nodes)
    if count[0] > MAX_NODES:
        raise WorkflowError(
            f"it has more than {MAX_NODES:,} nodes, those in subgraphs counted each time they are used."
        )
    for raw in place.scope.nodes:
        if raw["type"] in table:
            mode = raw.get("mode", ON)
            place.inner[raw["id"]] = Place(
                scope=table[raw["type"]],
                prefix=f"{place.key(raw['id'])}:",
                parent=place,
                instance=raw,
                mode=mode if mode in (MUTED, BYPASSED) else place.mode,
            )
            _unfold(place.inner[raw["id"]], table, count, level + 1)


def _add_nodes(graph: Graph, place: Place, schemas: dict | None) -> None:
    known = {raw["id"] for raw in place.scope.nodes}
    for raw in place.scope.nodes:
        if raw["id"] in place.inner:
            _add_nodes(graph, place.inner[raw["id"]], schemas)
            continue
        raw = copy.deepcopy(raw)
        node = Node(key=place.key(raw["id"]), kind=raw["type"], raw=raw, title=raw.get("title"))
        node.mode = place.mode if place.mode in (MUTED, BYPASSED) else raw.get("mode", ON)
        for entry in raw["inputs"]:
            source = _source(place, entry, node, known)
            if isinstance(source, Wire):
                node.wires[entry.get("name", "")] = source
            elif source is not None:
                _put(raw, entry["widget"]["name"], source[0], schemas)
        node.values = named_values(raw, schemas)
        graph.nodes[node.key] = node


def _put(raw: dict, name: str, value: object, schemas: dict | None) -> None:
    """Write a widget's value into a page node."""
    if isinstance(raw.get("widgets_values"), dict):
        raw["widgets_values"][name] = value
        return
    places = named_places(raw, schemas) or {}
    if name in places:
        raw["widgets_values"][places[name]] = value


def _source(place: Place, entry: dict, node: Node, known: set) -> Wire | tuple[object] | None:
    """What feeds an input: an output, a value that a subgraph's node was given (in a tuple), or nothing."""
    if entry.get("link") is None:
        return None
    link = place.scope.links.get(entry["link"])
    if link is None:
        raise WorkflowError(
            f"node {node} is connected at {entry.get('name')} by link {entry['link']}, which is not in the file. Open "
            "the workflow in ComfyUI and save it again."
        )
    for _ in range(MAX_HOPS):
        if link.origin == INPUT and place.instance is not None:
            outer = _outer_entry(place, link.origin_slot)
            if outer is None or outer.get("link") is None:
                return _given(place, link.origin_slot) if isinstance(entry.get("widget"), dict) else None
            place, link = place.parent, place.parent.scope.links.get(outer["link"])
        elif link.origin in place.inner:
            place = place.inner[link.origin]
            link = place.leaves(link.origin_slot)
        else:
            return _wire(place, link, node, entry)
        if link is None:
            return None
    raise WorkflowError(f"a wire of node {node} goes through more than {MAX_HOPS} ends of subgraphs, or in a circle.")


def _wire(place: Place, link: Link, node: Node, entry: dict) -> Wire:
    origin = next((raw for raw in place.scope.nodes if raw["id"] == link.origin), None)
    if origin is None or not 0 <= link.origin_slot < len(origin["outputs"]):
        raise WorkflowError(
            f"node {node} is connected at {entry.get('name')} to output {link.origin_slot} of node {link.origin}, "
            "which is not in the file. Open the workflow in ComfyUI and save it again."
        )
    return Wire(node=place.key(link.origin), slot=link.origin_slot)


def _outer_entry(place: Place, slot: int) -> dict | None:
    """The socket of a subgraph's node that leads to an input of the subgraph."""
    if not 0 <= slot < len(place.scope.inputs):
        return None
    name = place.scope.inputs[slot].get("name")
    return next((entry for entry in place.instance["inputs"] if entry.get("name") == name), None)


def _given(place: Place, slot: int) -> tuple[object] | None:
    """The value that a subgraph's node gives to the widget behind one of its inputs; None: it leaves it alone.

    The node lists values of all inputs that lead to a widget, in the order of the definition; older files instead name
    the inner nodes in ``proxyWidgets``, and their values are those of the inner nodes themselves.
    """
    values = place.instance.get("widgets_values")
    properties = place.instance.get("properties")
    proxies = properties.get("proxyWidgets") if isinstance(properties, dict) else None
    widgets = [number for number in range(len(place.scope.inputs)) if _leads_to_widget(place.scope, number)]
    if proxies or not isinstance(values, list) or len(values) != len(widgets) or slot not in widgets:
        return None
    return (values[widgets.index(slot)],)


def _leads_to_widget(scope: Scope, slot: int) -> bool:
    nodes = {raw["id"]: raw for raw in scope.nodes}
    for link in scope.links.values():
        if link.origin == INPUT and link.origin_slot == slot and link.target in nodes:
            entries = nodes[link.target]["inputs"]
            if 0 <= link.target_slot < len(entries):
                return isinstance(entries[link.target_slot].get("widget"), dict)
    return False


def _blocks(graph: Graph, place: Place) -> Block:
    """Nodes and groups of a place, what is inside its subgraphs laid out where their nodes were."""
    block = Block(groups=copy.deepcopy(place.scope.groups))
    for raw in place.scope.nodes:
        if raw["id"] not in place.inner:
            block.nodes.append(graph.nodes[place.key(raw["id"])].raw)
    for key, inner in place.inner.items():
        instance = next(raw for raw in place.scope.nodes if raw["id"] == key)
        make_room(block, _blocks(graph, inner), instance)
    return block
