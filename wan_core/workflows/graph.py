"""A workflow as both forms have it: nodes, what is wired into them and what their widgets say."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import WorkflowError

ON, MUTED, BYPASSED = 0, 2, 4
MAX_NODES = 5000
MAX_HOPS = 200
"""How many nodes that only pass something on may follow each other."""


class NotConvertible(Exception):
    """Why a model cannot be moved to our nodes; its sampler stays native. A sentence's end: ``because ...``."""


@dataclass(frozen=True, kw_only=True)
class Wire:
    """An output of a node."""

    node: str
    slot: int


@dataclass(kw_only=True)
class Node:
    """One node. ``values`` are its widgets by name, ``None`` where the file does not tell their names."""

    key: str
    kind: str
    wires: dict[str, Wire] = field(default_factory=dict)
    values: dict[str, object] | None = field(default_factory=dict)
    mode: int = ON
    raw: dict = field(default_factory=dict)
    """As its file has it; empty for a new one."""
    title: str | None = None

    def value(self, name: str, default: object = None) -> object:
        """What a widget says."""
        return default if self.values is None else self.values.get(name, default)

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"


@dataclass(kw_only=True)
class Graph:
    """The nodes by their ids, in the order of the file."""

    nodes: dict[str, Node]
    groups: list[dict] = field(default_factory=list)

    def add(self, node: Node) -> Wire:
        """Put a new node in; returns its first output."""
        self.nodes[node.key] = node
        return Wire(node=node.key, slot=0)

    def fresh(self, wish: str) -> str:
        """An id that no node has, beginning with ``wish``."""
        key, number = wish, 1
        while key in self.nodes:
            number += 1
            key = f"{wish}_{number}"
        return key

    def consumers(self, key: str) -> Iterator[tuple[Node, str, Wire]]:
        """Every input that an output of ``key`` is wired into."""
        for node in self.nodes.values():
            for name, wire in node.wires.items():
                if wire.node == key:
                    yield node, name, wire

    def redirect(self, key: str, to: Wire) -> None:
        """Whatever hangs on any output of ``key`` hangs on ``to`` instead."""
        for node in self.nodes.values():
            node.wires = {name: to if wire.node == key else wire for name, wire in node.wires.items()}

    def behind(self, wire: Wire | None, dormant: bool = False) -> Wire | None:
        """The output that really feeds ``wire``: through reroutes, set and get nodes and what is bypassed.

        None: nothing does. ``dormant``: what is muted and bypassed counts as working (the asking node sleeps too).
        """
        for _ in range(MAX_HOPS):
            if wire is None:
                return None
            node = self.nodes[wire.node]
            if node.kind == "Reroute":
                wire = next(iter(node.wires.values()), None)
            elif node.kind == "GetNode":
                wire = self._set_for(node)
            elif node.kind == "SetNode":
                wire = next(iter(node.wires.values()), None)
            elif node.mode == BYPASSED and not dormant:
                wire = passed_through(node, wire.slot)
            elif node.mode == MUTED and not dormant:
                return None
            else:
                return wire
        raise WorkflowError(f"more than {MAX_HOPS} nodes pass a value on to each other, or in a circle.")

    def _set_for(self, get: Node) -> Wire | None:
        name = _name_of(get)
        for node in self.nodes.values():
            if node.kind == "SetNode" and name is not None and _name_of(node) == name:
                return next(iter(node.wires.values()), None)
        return None

    def constant(self, given: object, dormant: bool = False) -> object:
        """The text, number or truth value of a widget, or of the primitive node that is wired into it.

        None: it is computed while the workflow runs, or it is something else.
        """
        if isinstance(given, Wire):
            wire = self.behind(given, dormant)
            node = self.nodes[wire.node] if wire else None
            if node is None or not node.kind.startswith("Primitive") or "value" in node.wires:
                return None
            given = node.value("value")
        return given if isinstance(given, str | int | float) else None

    def upstream(self, *keys: str) -> set[str]:
        """The nodes and everything that flows into them."""
        return self._reached(keys, lambda node: {wire.node for wire in node.wires.values()})

    def downstream(self, *keys: str) -> set[str]:
        """The nodes and everything that they flow into."""
        onward: dict[str, set[str]] = {}
        for node in self.nodes.values():
            for wire in node.wires.values():
                onward.setdefault(wire.node, set()).add(node.key)
        return self._reached(keys, lambda node: onward.get(node.key, set()))

    def _reached(self, keys, following) -> set[str]:
        seen, waiting = set(), list(keys)
        while waiting:
            key = waiting.pop()
            if key not in seen:
                seen.add(key)
                waiting += following(self.nodes[key])
        return seen

    def check(self) -> None:
        """Every wire comes from a node of the graph, and nothing feeds itself. Raises WorkflowError."""
        for node in self.nodes.values():
            for name, wire in node.wires.items():
                if wire.node not in self.nodes:
                    raise WorkflowError(
                        f"node {node} is connected at {name} to node {wire.node}, which is not in the file. Open the "
                        "workflow in ComfyUI and save it again."
                    )
        self._check_circles()

    def _check_circles(self) -> None:
        missing = {key: len({wire.node for wire in node.wires.values()}) for key, node in self.nodes.items()}
        onward: dict[str, set[str]] = {}
        for node in self.nodes.values():
            for wire in node.wires.values():
                onward.setdefault(wire.node, set()).add(node.key)
        ready = [key for key, count in missing.items() if not count]
        while ready:
            for key in onward.get(ready.pop(), ()):
                missing[key] -= 1
                if not missing[key]:
                    ready.append(key)
        circle = [self.nodes[key] for key, count in missing.items() if count]
        if circle:
            raise WorkflowError(f"node {circle[0]} feeds itself through other nodes: no ComfyUI runs a circle.")


def passed_through(node: Node, slot: int) -> Wire | None:
    """What a bypassed node of the page hands on at an output: the input of the same type, of the same place if it can
    be."""
    inputs, outputs = node.raw.get("inputs") or [], node.raw.get("outputs") or []
    if not isinstance(inputs, list) or slot >= len(outputs):
        return None
    kind = outputs[slot].get("type")
    order = ([inputs[slot]] if slot < len(inputs) else []) + inputs
    for entry in order:
        if entry.get("type") == kind and entry.get("name") in node.wires:
            return node.wires[entry["name"]]
    return None


def _name_of(node: Node) -> object:
    values = node.raw.get("widgets_values")
    return values[0] if isinstance(values, list) and values else None
