"""Native samplers, read: whatever nodes it takes, one sampling run."""

from collections.abc import Callable
from dataclasses import dataclass

from .graph import BYPASSED, MUTED, Graph, Node, NotConvertible, Wire
from .rules import MODEL_LOADERS, OFFICIAL
from .wrapper import SAMPLER, check_sampler

LAST_STEP = 10000


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a sampler is told. Every field is a value, or the wire that brings it."""

    node: Node
    model: Wire | None
    timing: Wire | None
    """The model that the noise levels are computed with: nearly always the same."""
    positive: Wire | None
    negative: Wire | None
    latent: Wire | None
    seed: object
    cfg: object
    solver: object
    scheduler: object = None
    steps: object = 0
    denoise: object = 1.0
    start: object = 0
    end: object = LAST_STEP
    add_noise: object = True
    leaves_noise: bool = True
    """It stops at ``end`` with the noise of that step left; False: it removes all noise in its last step."""
    shift: object = None
    """Where the sampler itself is told."""
    sigmas: Wire | None = None
    """Noise levels that no model has to be asked for."""
    parts: tuple[Node, ...] = ()
    """The nodes that it is put together from, besides the sampler."""


def read_run(graph: Graph, node: Node) -> Run:
    """The run of a node of :data:`SAMPLERS`. Raises NotConvertible."""
    return SAMPLERS[node.kind](graph, node)


def _given(node: Node, name: str, default: object = None) -> object:
    if name in node.wires:
        return node.wires[name]
    value = node.value(name)
    return default if value is None else value


def _ksampler(graph: Graph, node: Node) -> Run:
    return Run(
        node=node,
        model=node.wires.get("model"),
        timing=node.wires.get("model"),
        positive=node.wires.get("positive"),
        negative=node.wires.get("negative"),
        latent=node.wires.get("latent_image"),
        seed=_given(node, "seed", 0),
        cfg=_given(node, "cfg", 1.0),
        solver=_given(node, "sampler_name"),
        scheduler=_given(node, "scheduler"),
        steps=_given(node, "steps", 0),
        denoise=_given(node, "denoise", 1.0),
    )


def _ksampler_advanced(graph: Graph, node: Node) -> Run:
    switches = [graph.constant(_given(node, name)) for name in ("add_noise", "return_with_leftover_noise")]
    if not set(switches) <= {"enable", "disable"}:
        raise NotConvertible("its add_noise or return_with_leftover_noise is decided while the workflow runs")
    start = _given(node, "start_at_step", 0)
    if switches[0] == "enable" and graph.constant(start) != 0:
        raise NotConvertible("it adds noise at a later step than the first; a KSampler with denoise does the same")
    return Run(
        node=node,
        model=node.wires.get("model"),
        timing=node.wires.get("model"),
        positive=node.wires.get("positive"),
        negative=node.wires.get("negative"),
        latent=node.wires.get("latent_image"),
        seed=_given(node, "noise_seed", 0),
        cfg=_given(node, "cfg", 1.0),
        solver=_given(node, "sampler_name"),
        scheduler=_given(node, "scheduler"),
        steps=_given(node, "steps", 0),
        start=start,
        end=_given(node, "end_at_step", LAST_STEP),
        add_noise=switches[0] == "enable",
        leaves_noise=switches[1] == "enable",
    )


def _sampler_custom(graph: Graph, node: Node) -> Run:
    solver = _part(graph, node, "sampler", "KSamplerSelect")
    levels, parts = _levels(graph, node)
    return Run(
        node=node,
        model=node.wires.get("model"),
        positive=node.wires.get("positive"),
        negative=node.wires.get("negative"),
        latent=node.wires.get("latent_image"),
        seed=_given(node, "noise_seed", 0),
        cfg=_given(node, "cfg", 1.0),
        solver=_given(solver, "sampler_name"),
        add_noise=_given(node, "add_noise", True),
        parts=(solver, *parts),
        **levels,
    )


def _sampler_custom_advanced(graph: Graph, node: Node) -> Run:
    noise = _part(graph, node, "noise", "RandomNoise", "DisableNoise")
    guider = _part(graph, node, "guider", "CFGGuider", "BasicGuider")
    solver = _part(graph, node, "sampler", "KSamplerSelect")
    levels, parts = _levels(graph, node)
    positive = guider.wires.get("positive", guider.wires.get("conditioning"))
    return Run(
        node=node,
        model=guider.wires.get("model"),
        positive=positive,
        negative=guider.wires.get("negative", positive),
        latent=node.wires.get("latent_image"),
        seed=_given(noise, "noise_seed", 0),
        cfg=_given(guider, "cfg", 1.0),
        solver=_given(solver, "sampler_name"),
        add_noise=noise.kind == "RandomNoise",
        parts=(noise, guider, solver, *parts),
        **levels,
    )


def _wrapper(graph: Graph, node: Node) -> Run:
    texts, _ = check_sampler(graph, node, dormant(node))
    end, added = _given(node, "end_step", -1), _given(node, "add_noise_to_samples", True)
    start = _given(node, "start_step", 0)
    return Run(
        node=node,
        model=node.wires.get("model"),
        timing=node.wires.get("model"),
        shift=_given(node, "shift", 5.0),
        positive=Wire(node=texts.key, slot=0),
        negative=Wire(node=texts.key, slot=1),
        latent=node.wires.get("samples", node.wires.get("image_embeds")),
        seed=_given(node, "seed", 0),
        cfg=_given(node, "cfg", 1.0),
        solver=_given(node, "scheduler"),
        scheduler=OFFICIAL,
        steps=_given(node, "steps", 0),
        denoise=_given(node, "denoise_strength", 1.0),
        start=start,
        end=LAST_STEP if end == -1 else end,
        add_noise=True if graph.constant(start) == 0 else added is True,
    )


def _part(graph: Graph, node: Node, name: str, *kinds: str) -> Node:
    wire = graph.behind(node.wires.get(name), dormant(node))
    found = graph.nodes[wire.node] if wire else None
    if found is None or found.kind not in kinds:
        raise NotConvertible(f"its {name} comes from {found or 'nowhere'}, and {' or '.join(kinds)} can be read")
    return found


def _levels(graph: Graph, node: Node) -> tuple[dict, tuple[Node, ...]]:
    """The fields of a run that come in by its SIGMAS wire."""
    wire = graph.behind(node.wires.get("sigmas"), dormant(node))
    if wire is None:
        raise NotConvertible("no sigmas are connected to it")
    first, end, parts = 0, LAST_STEP, ()
    source = graph.nodes[wire.node]
    if source.kind == "SplitSigmas":
        step, parts = _given(source, "step", 0), (source,)
        first, end = (0, step) if wire.slot == 0 else (step, LAST_STEP)
        inner = graph.behind(source.wires.get("sigmas"), dormant(node))
        if inner is not None and graph.nodes[inner.node].kind == "BasicScheduler":
            source = graph.nodes[inner.node]
    if source.kind == "BasicScheduler":
        levels = {
            "timing": source.wires.get("model"),
            "scheduler": _given(source, "scheduler"),
            "steps": _given(source, "steps", 0),
            "denoise": _given(source, "denoise", 1.0),
        }
        return levels | {"start": first, "end": end}, (*parts, source)
    if any(graph.nodes[key].kind in MODEL_LOADERS for key in graph.upstream(wire.node)):
        raise NotConvertible(f"its sigmas come from {source}, which asks a native model for them")
    return {"timing": None, "sigmas": wire}, ()


def dormant(node: Node) -> bool:
    """Whether a node does nothing now (muted or bypassed)."""
    return node.mode in (MUTED, BYPASSED)


SAMPLERS: dict[str, Callable[[Graph, Node], Run]] = {
    "KSampler": _ksampler,
    "KSamplerAdvanced": _ksampler_advanced,
    "SamplerCustom": _sampler_custom,
    "SamplerCustomAdvanced": _sampler_custom_advanced,
    SAMPLER: _wrapper,
}
