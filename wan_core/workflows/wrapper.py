"""The nodes of kijai/ComfyUI-WanVideoWrapper around a sampler: text to video and image to video.

Their loaders, prompts and decoder have counterparts (the tables in :mod:`rules`). Image embeds do not: they are what a
sampler starts from and its conditions in one, which here are two things.
"""

from .graph import Graph, Node, NotConvertible, Wire
from .ours import defaults
from .report import Report

LOADER, SAMPLER = "WanVideoModelLoader", "WanVideoSampler"
EMPTY, IMAGES, TEXTS = "WanVideoEmptyEmbeds", "WanVideoImageToVideoEncode", "WanVideoTextEncode"
LOADER_WIRES = {"lora", "compile_args", "block_swap_args", "vram_management_args"}
SAMPLER_WIRES = {"model", "text_embeds", "image_embeds", "samples"}
LEFT_OUT_WIRES = {"teacache_args", "cache_args", "feta_args", "slg_args", "experimental_args", "freeinit_args"}
"""What the picture does without."""
EMBEDS_WIRES = {EMPTY: set(), IMAGES: {"vae", "clip_embeds", "start_image", "end_image"}}
WIDGET_WIRES = {
    "steps", "cfg", "shift", "seed", "scheduler", "denoise_strength", "start_step", "end_step", "width", "height",
    "num_frames", "force_offload", "riflex_freq_index", "model",
}  # fmt: skip


def check_wrapper(loader: Node) -> None:
    """Raises NotConvertible for a loader of the wrapper that brings a second network."""
    if loader.kind == LOADER:
        _only(loader, LOADER_WIRES)


def check_sampler(graph: Graph, node: Node, dormant: bool) -> tuple[Node, Node]:
    """The nodes behind a sampler's text and image embeds. Raises NotConvertible where they cannot be read."""
    _only(node, SAMPLER_WIRES | LEFT_OUT_WIRES)
    found = []
    for name, kinds in (("text_embeds", {TEXTS}), ("image_embeds", set(EMBEDS_WIRES))):
        wire = graph.behind(node.wires.get(name), dormant)
        source = graph.nodes[wire.node] if wire else None
        if source is None or source.kind not in kinds:
            raise NotConvertible(
                f"its {name} come from {source or 'nowhere'}, and {' and '.join(sorted(kinds))} can be read"
            )
        found.append(source)
    _only(found[1], EMBEDS_WIRES[found[1].kind])
    return tuple(found)


def _only(node: Node, names: set[str]) -> None:
    more = sorted(set(node.wires) - names - WIDGET_WIRES)
    if more:
        raise NotConvertible(f"{node} has {', '.join(more)}, for which the pack has nothing")


def start(
    graph: Graph, node: Node, model: Wire, dormant: bool, report: Report, replaced: dict[str, str]
) -> dict[str, Wire]:
    """Our nodes for what a sampler of the wrapper starts from: wires for positive, negative and latent.

    ``replaced`` learns whose id and place the new node takes.
    """
    texts, embeds = check_sampler(graph, node, dormant)
    ends = {"positive": Wire(node=texts.key, slot=0), "negative": Wire(node=texts.key, slot=1)}
    kind = "WanCoreEmptyLatent" if embeds.kind == EMPTY else "WanCoreImageToVideo"
    key = f"{embeds.key}:ours:{node.key}"
    new = Node(key=graph.fresh(key), kind=kind, mode=node.mode, values=defaults(kind))
    new.raw = {name: embeds.raw[name] for name in ("pos", "size", "order") if name in embeds.raw}
    for ours, theirs in (("width", "width"), ("height", "height"), ("frames", "num_frames")):
        if theirs in embeds.wires:
            new.wires[ours] = embeds.wires[theirs]
        new.values[ours] = embeds.value(theirs, new.values[ours])
    for name in sorted(set(node.wires) & LEFT_OUT_WIRES):
        report.drop(f"{name} of {node}: the pack has no counterpart; the picture will differ a little.")
    report.converted.append(f"{embeds} -> {kind}")
    replaced[new.key] = embeds.key
    if kind == "WanCoreEmptyLatent":
        new.wires["model"] = model
        latent = graph.add(new)
    else:
        new.wires |= ends
        names = {"vae": "vae", "start_image": "start_image", "end_image": "end_image"} | {
            "clip_vision_output": "clip_embeds"
        }
        new.wires |= {ours: embeds.wires[theirs] for ours, theirs in names.items() if theirs in embeds.wires}
        graph.add(new)
        ends = {"positive": Wire(node=new.key, slot=0), "negative": Wire(node=new.key, slot=1)}
        latent = Wire(node=new.key, slot=2)
    return ends | {"latent": node.wires.get("samples", latent)}
