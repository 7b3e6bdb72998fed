"""The page form, taken apart: graphs inside graphs (subgraphs), as the file has them, checked."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import WorkflowError

INPUT, OUTPUT = -10, -20
"""Ids of a subgraph's two ends."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """A line on the page, inside one graph."""

    id: int
    origin: int | str
    origin_slot: int
    target: int | str
    target_slot: int


@dataclass(kw_only=True)
class Scope:
    """One graph: the page's own, or the definition of a subgraph."""

    nodes: list[dict]
    links: dict[int, Link]
    groups: list[dict]
    inputs: list[dict] = field(default_factory=list)
    outputs: list[dict] = field(default_factory=list)
    name: str = ""

    def into(self, target: int | str, slot: int) -> Link | None:
        """The link that ends in a slot."""
        found = (link for link in self.links.values() if link.target == target and link.target_slot == slot)
        return next(found, None)


def page_scope(document: dict) -> Scope:
    """The graph of the page itself."""
    return _scope(document, "the workflow")


def definitions(document: dict) -> dict[str, Scope]:
    """The subgraphs of a page by the type that stands for them."""
    table = document.get("definitions") or {}
    listed = table.get("subgraphs") if isinstance(table, dict) else None
    found = {}
    for entry in _dicts(listed or [], "definitions.subgraphs"):
        name = str(entry.get("name", "without a name"))
        scope = _scope(entry, f"subgraph {name}")
        scope.inputs, scope.outputs = (_dicts(entry.get(end) or [], end) for end in ("inputs", "outputs"))
        scope.name = name
        found[str(entry.get("id"))] = scope
    return found


def _scope(document: dict, where: str) -> Scope:
    nodes = _dicts(document.get("nodes"), f"the nodes of {where}")
    seen = set()
    for node in nodes:
        _check_node(node, where)
        if node["id"] in seen:
            raise WorkflowError(f"{where} has two nodes of the id {node['id']}.")
        seen.add(node["id"])
    groups = _dicts(document.get("groups") or [], f"the groups of {where}")
    links = {link.id: link for link in _links(document.get("links"), where)}
    return Scope(nodes=nodes, links=links, groups=groups)


def _dicts(value: object, what: str) -> list[dict]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise WorkflowError(f"{what} is not a list of objects, as the page writes it.")
    return value


def _check_node(node: dict, where: str) -> None:
    key = node.get("id")
    if not isinstance(key, int | str) or isinstance(key, bool):
        raise WorkflowError(f"a node of {where} has no id that is a number or text; got {key!r:.60}.")
    if not isinstance(node.get("type"), str):
        raise WorkflowError(f"node {key} of {where} has no type that is text; got {node.get('type')!r:.60}.")
    for end in ("inputs", "outputs"):
        node[end] = _dicts(node.get(end) or [], f"{end} of node {key}")
    for entry in node["inputs"]:
        if isinstance(entry.get("widget"), dict) and not isinstance(entry["widget"].get("name"), str):
            raise WorkflowError(f"node {key} of {where} has an input whose widget has no name.")
        if not isinstance(entry.get("name", ""), str) or not isinstance(entry.get("link"), int | None):
            raise WorkflowError(f"node {key} of {where} has an input whose name is no text or whose link is no number.")
    if not isinstance(node.get("mode", 0), int):
        raise WorkflowError(f"node {key} of {where} has a mode that is no number; got {node['mode']!r:.60}.")


def _links(value: object, where: str) -> Iterator[Link]:
    if not isinstance(value, list | None):
        raise WorkflowError(f"the links of {where} are not a list, as the page writes it.")
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    for entry in value or []:
        parts = [entry.get(name) for name in names] if isinstance(entry, dict) else entry
        if not isinstance(parts, list) or len(parts) < 5:
            raise WorkflowError(f"{where} has a link that is no list of five or more; got {entry!r:.60}.")
        number, origin, origin_slot, target, target_slot = parts[:5]
        whole = all(isinstance(part, int) and not isinstance(part, bool) for part in (number, origin_slot, target_slot))
        if not whole or not isinstance(origin, int | str) or not isinstance(target, int | str):
            raise WorkflowError(f"{where} has a link whose ids and slots are no numbers; got {entry!r:.60}.")
        yield Link(id=number, origin=origin, origin_slot=origin_slot, target=target, target_slot=target_slot)
