"""The API form (what ``POST /prompt`` takes) -> :class:`Graph` and back."""

from ..errors import WorkflowError, first_few
from .graph import MAX_NODES, ON, Graph, Node, Wire
from .ours import OURS
from .widgets import ON_THE_PAGE_ONLY


def is_api(document: dict) -> bool:
    """Whether a document is in the API form."""
    return bool(document) and all(isinstance(node, dict) and "class_type" in node for node in document.values())


def from_api(document: dict) -> Graph:
    """The graph of a document in the API form. Raises WorkflowError."""
    if len(document) > MAX_NODES:
        raise WorkflowError(f"it has {len(document):,} nodes, and workflows of up to {MAX_NODES:,} are converted.")
    nodes = {}
    for key, raw in document.items():
        kind, inputs = raw["class_type"], raw.get("inputs", {})
        if not isinstance(kind, str) or not isinstance(inputs, dict):
            raise WorkflowError(f"node {key} has no class_type that is text, or inputs that are no object.")
        wires = {name: _wire(key, name, value) for name, value in inputs.items() if isinstance(value, list)}
        wires = {name: wire for name, wire in wires.items() if wire}
        values = {name: value for name, value in inputs.items() if name not in wires}
        meta = raw.get("_meta")
        title = meta.get("title") if isinstance(meta, dict) else None
        nodes[key] = Node(key=key, kind=kind, wires=wires, values=values, raw=raw, title=title)
    return Graph(nodes=nodes)


def _wire(key: str, name: str, value: list) -> Wire | None:
    """``[node, slot]`` is a wire, as the server has it; every other list is a value."""
    if len(value) != 2 or not isinstance(value[0], str) or isinstance(value[1], bool):
        return None
    if not isinstance(value[1], int):
        return None
    if value[1] < 0:
        raise WorkflowError(f"node {key} is connected at {name} to output {value[1]}, which no node has.")
    return Wire(node=value[0], slot=value[1])


def to_api(graph: Graph) -> dict:
    """The API form of the nodes that work, as the page would post it: no notes, reroutes, or what is muted or bypassed.

    Raises WorkflowError where the names of widgets are not known.
    """
    working = [node for node in graph.nodes.values() if node.mode == ON and node.kind not in ON_THE_PAGE_ONLY]
    unknown = {node.kind for node in working if node.values is None}
    if unknown:
        raise WorkflowError(
            f"the file does not name the widgets of {first_few(sorted(unknown))}. Open it in ComfyUI and export it "
            "as API, or give --schemas the answer of http://127.0.0.1:8188/object_info."
        )
    keys = {node.key for node in working}
    document = {}
    for node in working:
        inputs = dict(node.values)
        for name, wire in node.wires.items():
            value = _fed(graph, wire)
            if isinstance(value, Wire) and value.node not in keys:
                value = None
            inputs.pop(name, None)
            if value is not None:
                inputs[name] = [value.node, value.slot] if isinstance(value, Wire) else value
        document[node.key] = {
            "class_type": node.kind,
            "inputs": _ordered(node, inputs),
            "_meta": {"title": title(node)},
        }
    return document


def _fed(graph: Graph, wire: Wire) -> object:
    """What a wire brings: the output that really feeds it, or the value of a primitive of the page."""
    wire = graph.behind(wire)
    if wire and graph.nodes[wire.node].kind == "PrimitiveNode":
        return graph.nodes[wire.node].value("value")
    return wire


def _ordered(node: Node, inputs: dict) -> dict:
    """As the file or the node has them."""
    if isinstance(node.raw.get("inputs"), dict):
        order = [*node.raw["inputs"]]
    elif node.kind in OURS:
        shape = OURS[node.kind]
        order = [name for name, _ in shape.sockets] + [*shape.widgets] + [name for name, _ in shape.last_sockets]
    else:
        order = []
    known = [name for name in order if name in inputs]
    return {name: inputs[name] for name in dict.fromkeys([*known, *inputs])}


def title(node: Node) -> str:
    """What is written above a node."""
    return node.title or (OURS[node.kind].title if node.kind in OURS else node.kind)
