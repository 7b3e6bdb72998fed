"""A workflow -> the same on our nodes."""

from dataclasses import dataclass

from ..errors import WorkflowError
from .api import from_api, is_api, to_api
from .file import dumps
from .graph import Graph, Node, NotConvertible, Wire
from .inline import from_page
from .models import Builder, place_of
from .ours import defaults
from .page import is_page, to_page
from .report import Report
from .rules import LEFT_OUT, LOADERS, LORA_LOADERS, MODEL_LOADERS, RENAMED, SHIFTS, SWITCHES, LoaderRule
from .samplers import build, find, pairs

OURS_BEGIN = "WanCore"
UNUSED = {*MODEL_LOADERS, *LORA_LOADERS, *SHIFTS, *SWITCHES, *LEFT_OUT} | {
    "BasicScheduler", "KSamplerSelect", "CFGGuider", "BasicGuider", "RandomNoise", "DisableNoise", "SplitSigmas",
    "WanVideoEmptyEmbeds", "WanVideoImageToVideoEncode", "WanVideoBlockSwap", "WanVideoTorchCompileSettings",
    "WanVideoVRAMManagement", "WanVideoTeaCache", "WanVideoMagCache", "WanVideoEnhanceAVideo", "WanVideoSLG",
}  # fmt: skip
"""Kinds that go when nothing hangs on them any more."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """``document`` has the form of the file that came in, or the API form where that was asked for."""

    document: dict
    report: Report
    changed: bool


def convert(document: dict, *, api: bool = False, schemas: dict | None = None) -> Converted:
    """Convert a workflow in either form.

    Args:
        document: what the file says (:func:`file.parse`).
        api: give the API form back, whatever came in.
        schemas: the ``/object_info`` of a ComfyUI, for widgets of nodes that the table does not have.

    Raises WorkflowError where it is no workflow, or one in which nothing can be converted.
    """
    graph, page = read_graph(document, schemas)
    report = Report()
    changed = convert_graph(graph, report)
    if not changed:
        _check_ours(graph, report)
    if page and not api:
        made = to_page(graph, document) if changed else document
    else:
        made = to_api(graph) if changed or page else document
    dumps(made)
    return Converted(document=made, report=report, changed=changed)


def read_graph(document: dict, schemas: dict | None = None) -> tuple[Graph, bool]:
    """The graph of a document, and whether that is in the page form. Raises WorkflowError."""
    if isinstance(document.get("prompt"), dict) and is_api(document["prompt"]):
        document = document["prompt"]  # the body of a job
    if is_page(document):
        graph, page = from_page(document, schemas), True
    elif is_api(document):
        graph, page = from_api(document), False
    else:
        raise WorkflowError(
            "it has neither the nodes of a saved workflow nor the class_type of an exported one. Save it in ComfyUI, "
            "or export it as API."
        )
    graph.check()
    return graph, page


def convert_graph(graph: Graph, report: Report) -> bool:
    """Move what can be moved to our nodes; returns whether anything was."""
    builder, samplers = Builder(graph=graph, report=report), []
    found = find(graph, report)
    native = graph.upstream(*(one.run.node.key for one in found))
    for high, low in pairs(graph, found):
        try:
            samplers.append(build(graph, builder, high, low, report).key)
        except NotConvertible as reason:
            report.kept.append(f"{high.run.node}, because {reason}.")
    if not samplers:
        return False
    _loaders(graph, builder, samplers, report)
    _renamed(graph, builder, samplers, report)
    _take_out_unused(graph, native)
    _pass_clip_by(graph, report)
    _take_out_unused(graph, native)
    _rename(graph, builder.replaced)
    return True


def _check_ours(graph: Graph, report: Report) -> None:
    """Nothing was converted: fine where there is nothing to convert."""
    if report.kept:
        more = f"; and {len(report.kept) - 2} more" if len(report.kept) > 2 else ""
        raise WorkflowError(
            f"nothing could be converted: {'; '.join(line.rstrip('.') for line in report.kept[:2])}{more}."
        )
    if not any(node.kind.startswith(OURS_BEGIN) for node in graph.nodes.values()):
        raise WorkflowError(
            "no sampler of a Wan model is in it. Converted are KSampler, KSamplerAdvanced, SamplerCustom and "
            "SamplerCustomAdvanced with the text encoder of Wan (CLIPLoader of type wan), and WanVideoSampler."
        )


def _loaders(graph: Graph, builder: Builder, samplers: list[str], report: Report) -> None:
    """Text encoder, VAE and CLIP vision of the converted samplers become ours."""
    before, after = graph.upstream(*samplers), graph.downstream(*samplers)
    for node in list(graph.nodes.values()):
        rule = LOADERS.get(node.kind)
        used = node.key in before or any(user.key in after for user, _, _ in graph.consumers(node.key))
        if rule is None or not used:
            continue
        if rule.only and graph.constant(node.wires.get(rule.only[0], node.value(rule.only[0]))) != rule.only[1]:
            continue
        _loader(graph, builder, node, rule, report)


def _loader(graph: Graph, builder: Builder, node: Node, rule: LoaderRule, report: Report) -> None:
    new = Node(key=graph.fresh(f"{node.key}:ours"), kind=rule.becomes, mode=node.mode, raw=place_of(node))
    new.values = defaults(rule.becomes)
    if rule.file in node.wires:
        new.wires[rule.our_file] = node.wires[rule.file]
    if node.value(rule.file) is not None:
        new.values[rule.our_file] = node.value(rule.file)
    for name, usual in (rule.ignored or {}).items():
        if node.value(name) not in (None, *usual):
            report.note(f"{node}: {name} {node.value(name)} is not kept: where it is computed is decided by itself.")
    builder.replaced[new.key] = node.key
    graph.redirect(node.key, graph.add(new))
    del graph.nodes[node.key]
    report.converted.append(f"{node} -> {new.kind}")


def _renamed(graph: Graph, builder: Builder, samplers: list[str], report: Report) -> None:
    """Nodes of another pack before and behind a converted sampler that have a counterpart here."""
    around = graph.upstream(*samplers) | graph.downstream(*samplers)
    for old in [node for node in graph.nodes.values() if node.kind in RENAMED and node.key in around]:
        rule = RENAMED[old.kind]
        new = Node(key=graph.fresh(f"{old.key}:ours"), kind=rule.becomes, mode=old.mode, raw=place_of(old))
        new.values = defaults(rule.becomes)
        for ours, theirs in rule.inputs.items():
            if theirs in old.wires:
                new.wires[ours] = old.wires[theirs]
            if old.value(theirs) is not None:
                new.values[ours] = old.value(theirs)
        builder.replaced[new.key] = old.key
        del graph.nodes[old.key]
        graph.add(new)
        for node in graph.nodes.values():
            for name, wire in node.wires.items():
                if wire.node == old.key:
                    node.wires[name] = Wire(node=new.key, slot=wire.slot)
        report.converted.append(f"{old} -> {new.kind}")


def _pass_clip_by(graph: Graph, report: Report) -> None:
    """A LoRA loader with a text encoder in it hands that on untouched."""
    for node in list(graph.nodes.values()):
        if node.kind != "LoraLoader" or any(wire.slot == 0 for _, _, wire in graph.consumers(node.key)):
            continue
        users = [(user, name) for user, name, wire in graph.consumers(node.key) if wire.slot == 1]
        if users and "clip" in node.wires:
            report.note(f"{node}: the LoRA is on the model alone; Wan LoRAs have no part for the text encoder.")
            for user, name in users:
                user.wires[name] = node.wires["clip"]


def _take_out_unused(graph: Graph, native: set[str]) -> None:
    """Of what fed the native samplers, model nodes on which nothing hangs any more go, and then those behind them."""
    while True:
        used = {wire.node for node in graph.nodes.values() for wire in node.wires.values()}
        unused = [key for key, node in graph.nodes.items() if key in native and _goes(node) and key not in used]
        if not unused:
            return
        for key in unused:
            del graph.nodes[key]


def _goes(node: Node) -> bool:
    if node.kind in SWITCHES:
        outputs = node.raw.get("outputs")
        return not isinstance(outputs, list) or any(o.get("type") == "MODEL" for o in outputs)
    return node.kind in UNUSED


def _rename(graph: Graph, replaced: dict[str, str]) -> None:
    """Our nodes take the ids of those that they stand for, where these are gone."""
    names = {}
    for key, wish in replaced.items():
        if key in graph.nodes and wish not in graph.nodes and wish not in names.values():
            names[key] = wish
    for node in graph.nodes.values():
        node.key = names.get(node.key, node.key)
        node.wires = {
            name: type(wire)(node=names.get(wire.node, wire.node), slot=wire.slot) for name, wire in node.wires.items()
        }
    graph.nodes = {node.key: node for node in graph.nodes.values()}
