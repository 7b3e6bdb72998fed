"""Runs of native samplers -> our sampler; two runs over the experts of a pair become one."""

from dataclasses import dataclass
from math import isclose

from .graph import Graph, Node, NotConvertible, Wire
from .models import Builder, Chain, Reader, place_of, shift_of
from .ours import defaults
from .report import Report
from .rules import LEFT_OUT, NEAREST_SCHEDULE, NEAREST_SOLVER, OTHER_MODELS, SCHEDULES, SOLVERS
from .runs import LAST_STEP, SAMPLERS, Run, dormant, read_run
from .widgets import CONTROLS
from .wrapper import SAMPLER as WRAPPED
from .wrapper import start

EXACT_SOLVERS = {"euler", "lcm", "unipc", "dpm++"}


@dataclass(frozen=True, kw_only=True)
class Found:
    """A run that can be converted."""

    run: Run
    chain: Chain
    shift: object


def find(graph: Graph, report: Report) -> list[Found]:
    """The native samplers of Wan models that can be converted; the report says why others cannot."""
    found = []
    for node in list(graph.nodes.values()):
        if node.kind not in SAMPLERS or not is_wan(graph, node):
            continue
        try:
            found.append(_found(graph, node, report))
        except NotConvertible as reason:
            report.kept.append(f"{node}, because {reason}.")
    return found


def is_wan(graph: Graph, node: Node) -> bool:
    """Whether a sampler runs a Wan model: its prompt comes from the text encoder of Wan, or its files are called so."""
    if node.kind == WRAPPED:
        return True
    nodes = [graph.nodes[key] for key in graph.upstream(node.key)]
    kinds = [str(graph.constant(n.wires.get("type", n.value("type")))) for n in nodes if n.kind == "CLIPLoader"]
    if kinds:
        return "wan" in kinds
    files = [str(value) for n in nodes for value in (n.values or {}).values() if "oader" in n.kind]
    return any("wan" in name.lower() for name in files)


def _found(graph: Graph, node: Node, report: Report) -> Found:
    for key in sorted(graph.upstream(node.key)):
        kind = graph.nodes[key].kind
        if kind in OTHER_MODELS:
            raise NotConvertible(f"{kind} is made for {OTHER_MODELS[kind]}, a model that the pack does not have")
    run = read_run(graph, node)
    reader = Reader(graph=graph, report=report, dormant=dormant(node))
    chain = reader.chain(run.model)
    timing = chain if run.timing in (run.model, None) else reader.chain(run.timing)
    missing = [name for name in ("positive", "negative", "latent") if getattr(run, name) is None]
    if missing:
        raise NotConvertible(f"nothing is connected to its {' and '.join(missing)}")
    return Found(run=run, chain=chain, shift=shift_of(timing) if run.shift is None else run.shift)


def pairs(graph: Graph, found: list[Found]) -> list[tuple[Found, Found | None]]:
    """The runs, those that belong together joined: ``(high, low)``, or ``(run, None)``."""
    by_key = {one.run.node.key: one for one in found}
    joined, taken = [], set()
    for low in found:
        wire = graph.behind(low.run.latent, dormant(low.run.node))
        high = by_key.get(wire.node) if wire else None
        if high and high.run.node.key not in taken and _one_run(graph, high, low):
            joined.append((high, low))
            taken |= {high.run.node.key, low.run.node.key}
    partner = {high.run.node.key: low for high, low in joined}
    lows = {low.run.node.key for _, low in joined}
    return [(one, partner.get(one.run.node.key)) for one in found if one.run.node.key not in lows]


def _one_run(graph: Graph, high: Found, low: Found) -> bool:
    """Whether ``low`` goes on where ``high`` stops, with another model and the same wishes."""
    first, second = high.run, low.run

    def same(one: object, other: object) -> bool:
        if _behind(graph, one, first) == _behind(graph, other, second):
            return True
        values = [graph.constant(value, dormant(first.node)) for value in (one, other)]
        if all(isinstance(value, int | float) for value in values):
            return isclose(*values, rel_tol=1e-6)
        return None not in values and values[0] == values[1]

    wishes = ("steps", "solver", "scheduler", "positive", "negative", "denoise")
    others = [node for node, _, _ in graph.consumers(first.node.key) if node.key != second.node.key]
    return (
        high.chain.file().key != low.chain.file().key
        and first.sigmas is None
        and second.sigmas is None
        and first.leaves_noise
        and second.add_noise is False
        and same(first.end, second.start)
        and same(high.shift, low.shift)
        and all(same(getattr(first, name), getattr(second, name)) for name in wishes)
        and first.node.mode == second.node.mode
        and not others
    )


def _behind(graph: Graph, value: object, run: Run) -> object:
    return graph.behind(value, dormant(run.node)) if isinstance(value, Wire) else value


def build(graph: Graph, builder: Builder, high: Found, low: Found | None, report: Report) -> Node:
    """Put our sampler in for a run or a pair, and hang on it what hung on theirs. Raises NotConvertible."""
    run, last = high.run, (low or high).run
    model = builder.pair(high.chain.model, low and low.chain.model)
    node = Node(key=graph.fresh(f"{run.node.key}:ours"), kind="WanCoreSampler", mode=run.node.mode)
    node.raw, node.values = place_of(run.node) | {"control": _control(run)}, defaults(node.kind)
    node.wires = {"model": model, "positive": run.positive, "negative": run.negative, "latent": run.latent}
    node.wires["latent"] = builder.moved.get(run.latent.node, run.latent)
    if run.node.kind == WRAPPED:
        node.wires |= start(graph, run.node, model, dormant(run.node), report, builder.replaced)
        node.wires["latent"] = builder.moved.get(node.wires["latent"].node, node.wires["latent"])
    wishes = {
        "seed": run.seed,
        "steps": run.steps,
        "guidance": run.cfg,
        "guidance_low": last.cfg if low else 0.0,
        "shift": high.shift if isinstance(high.shift, Wire) else round(high.shift, 6),
        "solver": _solver(graph, run, report),
        "schedule": _schedule(graph, run, report),
        "denoise": run.denoise,
        "start_step": run.start,
        "end_step": last.end,
        "switch_step": last.start if low else 0,
        "add_noise": run.add_noise,
    }
    if run.sigmas is not None:
        wishes |= {"sigmas": run.sigmas, "schedule": "auto", "shift": 0.0}
    for name, value in wishes.items():
        if isinstance(value, Wire):
            node.wires[name] = value
        else:
            node.values[name] = value
    _tell(graph, report, node, high, low)
    builder.replaced[node.key] = run.node.key
    new = graph.add(node)
    for one in (high, low):
        if one:
            graph.redirect(one.run.node.key, new)
            builder.moved[one.run.node.key] = new
            del graph.nodes[one.run.node.key]
    return node


def _tell(graph: Graph, report: Report, node: Node, high: Found, low: Found | None) -> None:
    names = " + ".join(str(one.run.node) for one in (high, low) if one)
    report.converted.append(f"{names} -> {node.kind}")
    for one in (high, low):
        for left in one.chain.left_out if one else ():
            report.drop(f"{left}: {LEFT_OUT[left.kind]}.")
    last = (low or high).run
    if not last.leaves_noise and not _runs_out(graph, last):
        report.note(
            f"{last.node} removed all noise at its end_at_step; our sampler stops there and leaves that of the step."
        )
    if graph.constant(high.run.cfg) == 0:
        report.note(f"{high.run.node} had cfg 0; our guidance 0 means the model's own value.")


def _runs_out(graph: Graph, run: Run) -> bool:
    """Whether it ends with the last step."""
    end, steps = graph.constant(run.end), graph.constant(run.steps)
    if isinstance(end, int) and isinstance(steps, int):
        return end >= steps
    return end == LAST_STEP or run.end == run.steps


def _solver(graph: Graph, run: Run, report: Report) -> str:
    name = graph.constant(run.solver, dormant(run.node))
    ours = SOLVERS.get(name, NEAREST_SOLVER) if isinstance(name, str) else NEAREST_SOLVER
    if name not in SOLVERS:
        report.note(f"sampler {name or 'chosen while the workflow runs'} is not there: {run.node} uses {ours}.")
    elif name not in EXACT_SOLVERS:
        report.note(f"sampler {name} becomes {ours}, the same method as the official code has it; numbers differ.")
    return ours


def _schedule(graph: Graph, run: Run, report: Report) -> str:
    name = graph.constant(run.scheduler, dormant(run.node))
    ours = SCHEDULES.get(name, NEAREST_SCHEDULE) if isinstance(name, str) else NEAREST_SCHEDULE
    if run.sigmas is None and name not in SCHEDULES:
        report.note(f"scheduler {name or 'chosen while the workflow runs'} is not there: {run.node} uses {ours}.")
    return ours


def _control(run: Run) -> str:
    """What the page does with the seed after a run."""
    for node in (run.node, *run.parts):
        values = node.raw.get("widgets_values")
        found = [value for value in values if value in CONTROLS] if isinstance(values, list) else []
        if found:
            return found[0]
    return "fixed"
