"""What stands between model files and a sampler -> our loader and LoRA nodes, for one expert or for a pair."""

from collections.abc import Callable
from dataclasses import dataclass, field

from .graph import ON, Graph, Node, NotConvertible, Wire
from .ours import defaults
from .report import Report
from .rules import LEFT_OUT, LORA_LOADERS, MODEL_LOADERS, NATIVE_SHIFT, SHIFTS, SWITCHES
from .wrapper import check_wrapper

MAX_CHAIN = 100


@dataclass(frozen=True, kw_only=True)
class File:
    """A loader."""

    node: Node


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A LoRA on a model."""

    node: Node
    inner: "Model"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of two models, by a switch."""

    node: Node
    off: "Model"
    on: "Model"


Model = File | Lora | Choice


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A sampler's model: what it is, its shift (a value or a wire), and the nodes that are left out."""

    model: Model
    shift: object = None
    left_out: tuple[Node, ...] = ()

    def file(self) -> Node:
        """The loader that it begins with."""
        model = self.model
        while not isinstance(model, File):
            model = model.inner if isinstance(model, Lora) else model.off
        return model.node


@dataclass(kw_only=True)
class Reader:
    """Follows the MODEL wires of a graph upwards."""

    graph: Graph
    report: Report
    dormant: bool = False
    """The sampler is muted or bypassed itself: so may be what feeds it."""

    def chain(self, wire: Wire | None, depth: int = 0) -> Chain:
        """What a MODEL wire brings. Raises NotConvertible."""
        wire = self.graph.behind(wire, self.dormant)
        if wire is None:
            raise NotConvertible("no model is connected to it")
        if depth > MAX_CHAIN:
            raise NotConvertible(f"more than {MAX_CHAIN} nodes change its model")
        node = self.graph.nodes[wire.node]
        if node.kind in MODEL_LOADERS:
            check_wrapper(node)
            return Chain(model=self._worn(File(node=node), node.wires.get("lora")))
        if node.kind in SWITCHES:
            return self._choice(node, depth)
        if node.kind not in {*LORA_LOADERS, *SHIFTS, *LEFT_OUT}:
            raise NotConvertible(f"{node} changes or loads its model, and the pack has nothing in its place")
        inner = self.chain(node.wires.get("model"), depth + 1)
        if node.kind in LORA_LOADERS:
            return Chain(model=Lora(node=node, inner=inner.model), shift=inner.shift, left_out=inner.left_out)
        if node.kind in SHIFTS:
            shift = node.wires.get("shift", node.value("shift"))
            if not isinstance(shift, Wire | int | float) or isinstance(shift, bool):
                raise NotConvertible(f"{node} has a shift that is no number: {shift!r:.40}")
            return Chain(model=inner.model, shift=shift, left_out=inner.left_out)
        return Chain(model=inner.model, shift=inner.shift, left_out=(*inner.left_out, node))

    def _worn(self, model: Model, wire: Wire | None) -> Model:
        """A model with the LoRAs of the wrapper, which hang on each other and then on the loader."""
        nodes = []
        wire = self.graph.behind(wire, self.dormant)
        while wire is not None and len(nodes) < MAX_CHAIN:
            nodes.append(self.graph.nodes[wire.node])
            if nodes[-1].kind != "WanVideoLoraSelect":
                raise NotConvertible(f"{nodes[-1]} brings LoRAs in a way that the converter does not know")
            wire = self.graph.behind(nodes[-1].wires.get("prev_lora"), self.dormant)
        for node in reversed(nodes):
            model = Lora(node=node, inner=model)
        return model

    def _choice(self, node: Node, depth: int) -> Chain:
        sides = [node.wires.get(name) for name in ("on_false", "on_true")]
        off, on = (self.chain(side, depth + 1) if side else None for side in sides)
        switch = node.wires.get("switch", node.value("switch"))
        said = self.graph.constant(switch, self.dormant)
        if off and on and off.shift == on.shift:
            return Chain(
                model=Choice(node=node, off=off.model, on=on.model),
                shift=off.shift,
                left_out=(*off.left_out, *on.left_out),
            )
        chosen = {True: on, False: off}.get(said)
        if chosen is None:
            raise NotConvertible(f"{node} chooses between models of different shift while the workflow runs")
        self.report.note(f"{node} is set to {str(said).lower()} for good: its two models have different shifts.")
        return chosen


@dataclass(kw_only=True)
class Builder:
    """Puts our nodes for models into a graph; the same model twice is one node."""

    graph: Graph
    report: Report
    made: dict[tuple, Wire] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    """Our node -> the native node whose id and place it takes."""
    moved: dict[str, Wire] = field(default_factory=dict)
    """Native sampler -> what hangs on it hangs on this now."""

    def single(self, model: Model) -> Wire:
        """Our nodes for one model."""
        return self.pair(model, None)

    def pair(self, high: Model, low: Model | None) -> Wire:
        """Our nodes for the two experts of a pair as one model. Raises NotConvertible."""
        if isinstance(high, Choice) and low is None:
            return self._choice(high, None)
        if isinstance(high, Choice) and isinstance(low, Choice) and self._same_switch(high, low):
            return self._choice(high, low)
        if isinstance(high, Choice) or isinstance(low, Choice):
            return self.pair(self._decided(high), self._decided(low))
        if isinstance(high, Lora) or isinstance(low, Lora):
            return self._lora(high, low)
        return self._files(high.node, low.node if low else None)

    def _once(self, key: tuple, make: Callable[[], Wire]) -> Wire:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def _files(self, high: Node, low: Node | None) -> Wire:
        def make() -> Wire:
            node = self._new("WanCoreLoadModel", high)
            _take(node, "model_name", high, MODEL_LOADERS[high.kind])
            if low is not None:
                _take(node, "low_noise_model", low, MODEL_LOADERS[low.kind])
            _add_models(node, high, low)
            dtypes = {str(n.value("weight_dtype", "default")) for n in (high, low) if n} - {"default"}
            if dtypes:
                self.report.note(f"{_named(high, low)}: weight_dtype {', '.join(sorted(dtypes))} is not kept: {_DTYPE}")
            self.report.converted.append(f"{_named(high, low)} -> {node.kind}")
            return self.graph.add(node)

        return self._once(("file", high.key, low and low.key), make)

    def _lora(self, high: Model, low: Model | None) -> Wire:
        upper = high.node if isinstance(high, Lora) else None
        lower = low.node if isinstance(low, Lora) else None
        inner = self.pair(high.inner if upper else high, low.inner if lower else low)

        def make() -> Wire:
            node = self._new("WanCoreLoRA", upper or lower)
            node.wires["model"] = inner
            if upper:
                file, strength = LORA_LOADERS[upper.kind]
                _take(node, "lora_name", upper, file)
                _take(node, "strength", upper, strength)
            if low is not None:
                node.values["low_noise_lora"] = "none"
            if lower:
                file, strength = LORA_LOADERS[lower.kind]
                _take(node, "low_noise_lora", lower, file)
                _take(node, "strength_low", lower, strength)
            _add_models(node, upper, lower)
            self.report.converted.append(f"{_named(upper, lower)} -> {node.kind}")
            return self.graph.add(node)

        return self._once(("lora", upper and upper.key, lower and lower.key, inner), make)

    def _choice(self, high: Choice, low: Choice | None) -> Wire:
        off = self.pair(high.off, low and low.off)
        on = self.pair(high.on, low and low.on)
        if off == on:
            return off

        def make() -> Wire:
            node = Node(key=self.graph.fresh(f"{high.node.key}:ours"), kind=high.node.kind, mode=high.node.mode)
            node.raw, node.title = _retyped(high.node.raw), high.node.title
            node.values = None if high.node.values is None else dict(high.node.values)
            node.wires = {**high.node.wires, "on_false": off, "on_true": on}
            self.replaced[node.key] = high.node.key
            return self.graph.add(node)

        return self._once(("choice", high.node.key, low and low.node.key, off, on), make)

    def _same_switch(self, high: Choice, low: Choice) -> bool:
        one, other = (
            self.graph.behind(c.node.wires["switch"], True) if "switch" in c.node.wires else c.node.value("switch")
            for c in (high, low)
        )
        return one == other

    def _decided(self, model: Model | None) -> Model | None:
        while isinstance(model, Choice):
            said = self.graph.constant(model.node.wires.get("switch", model.node.value("switch")), True)
            if not isinstance(said, bool):
                raise NotConvertible(f"{model.node} chooses the model of one expert alone while the workflow runs")
            self.report.note(f"{model.node} is set to {str(said).lower()} for good: it chose for one expert alone.")
            model = model.on if said else model.off
        return model

    def _new(self, kind: str, like: Node) -> Node:
        node = Node(key=self.graph.fresh(f"{like.key}:ours"), kind=kind, mode=like.mode, raw=place_of(like))
        node.values = defaults(kind)
        if node.mode != ON:
            self.report.note(f"{kind} in place of {like} is muted or bypassed, as that was.")
        self.replaced[node.key] = like.key
        return node


_DTYPE = "precision auto computes in what suits the file."


def _take(node: Node, name: str, source: Node, widget: str) -> None:
    """Our widget ``name`` says what ``widget`` of the native node says, or hangs on what that hangs on."""
    if widget in source.wires:
        node.wires[name] = source.wires[widget]
    if source.value(widget) is not None:
        node.values[name] = source.value(widget)


def place_of(node: Node) -> dict:
    """Where a page node is, and the files that it offers for download."""
    place = {name: node.raw[name] for name in ("pos", "size", "order") if name in node.raw}
    properties = node.raw.get("properties")
    if isinstance(properties, dict) and isinstance(properties.get("models"), list):
        place["models"] = properties["models"]
    return place


def _add_models(node: Node, *natives: Node | None) -> None:
    offered = [model for native in natives if native for model in place_of(native).get("models", [])]
    node.raw.pop("models", None)
    if offered:
        node.raw["models"] = offered


def _named(*nodes: Node | None) -> str:
    return " + ".join(str(node) for node in nodes if node)


def _retyped(raw: dict) -> dict:
    """A switch of the page whose model wires are ours."""
    made = dict(raw)
    for end in ("inputs", "outputs"):
        if isinstance(made.get(end), list):
            made[end] = [e | {"type": "WAN_CORE_MODEL"} if e.get("type") == "MODEL" else dict(e) for e in made[end]]
    return made


def shift_of(chain: Chain) -> object:
    """The shift that native ComfyUI samples with."""
    return NATIVE_SHIFT if chain.shift is None else chain.shift
