"""The converter's tables against what they speak of, and what the package needs to run."""

import json
import subprocess
import sys

from tests.conftest import ROOT
from wan_core.workflows.ours import OURS
from wan_core.workflows.rules import LEFT_OUT, LOADERS, OTHER_MODELS, RENAMED, SCHEDULES, SOLVERS
from wan_core.workflows.widgets import WIDGET_TYPES

SNAPSHOT = json.loads((ROOT / "tests" / "nodes" / "schema_snapshot.json").read_text(encoding="utf-8"))
WITHOUT_TORCH = """
import sys
sys.modules |= dict.fromkeys(["torch", "numpy", "comfy", "safetensors"])
from wan_core.workflows.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_our_nodes_are_drawn_as_they_are():
    for kind, shape in OURS.items():
        declared = SNAPSHOT[kind]["inputs"]
        widgets = {entry["name"]: entry["type"] for entry in declared if entry["type"] in WIDGET_TYPES}
        assert {name: kind for name, (kind, _) in shape.widgets.items()} == widgets, kind
        assert list(shape.widgets) == list(widgets), kind
        sockets = [(entry["name"], entry["type"]) for entry in declared if entry["type"] not in WIDGET_TYPES]
        assert [*shape.sockets, *shape.last_sockets] == sockets, kind
        assert list(shape.outputs) == [(out["name"], out["type"]) for out in SNAPSHOT[kind]["outputs"]], kind
        defaults = {entry["name"]: entry["default"] for entry in declared if entry.get("default") is not None}
        told = {name: default for name, (_, default) in shape.widgets.items() if default is not None}
        assert {name: told[name] for name in told if name in defaults} == {
            n: defaults[n] for n in told if n in defaults
        }


def test_the_sampler_knows_every_name_that_the_tables_give_it():
    from wan_core.sampling.sigmas import SCHEDULES as OUR_SCHEDULES
    from wan_core.sampling.solvers import SOLVERS as OUR_SOLVERS

    assert set(SOLVERS.values()) <= set(OUR_SOLVERS)
    assert set(SCHEDULES.values()) <= {*OUR_SCHEDULES, "auto"}


def test_every_rule_makes_a_node_of_ours_and_fills_inputs_that_it_has():
    for rule in LOADERS.values():
        assert rule.our_file in OURS[rule.becomes].widgets
    for rule in RENAMED.values():
        shape = OURS[rule.becomes]
        assert set(rule.inputs) <= {*shape.widgets, *(name for name, _ in (*shape.sockets, *shape.last_sockets))}
    assert not set(LEFT_OUT) & set(OTHER_MODELS)


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], cwd=ROOT, capture_output=True)


def test_the_command_runs_without_torch_and_leaves_our_workflows_as_they_are(tmp_path):
    path = ROOT / "example_workflows" / "wan2.2_t2v_a14b_4steps.json"
    for given in (path, path.parent / "api" / path.name):
        done = run(str(given))
        assert (done.returncode, done.stdout) == (0, given.read_bytes())
        assert b"Nothing to convert" in done.stderr
        assert run(str(given), "-o", str(tmp_path / "out.json")).returncode == 0
        assert (tmp_path / "out.json").read_bytes() == given.read_bytes()


def test_the_command_tells_what_it_did_and_writes_what_it_made(tmp_path):
    from tests.wan_core.workflows.native import Native, ksampler

    native = Native()
    ksampler(native, native.add("CFGZeroStar", model=native.model()), sampler_name="uni_pc")
    (tmp_path / "native.json").write_text(json.dumps(native.prompt), encoding="utf-8")
    done = run(str(tmp_path / "native.json"))
    assert done.returncode == 0
    assert json.loads(done.stdout)["s"]["class_type"] == "WanCoreSampler"
    zero = "CFGZeroStar 3: put Wan Core CFG-Zero* between model and sampler"
    for words in ("KSampler s -> WanCoreSampler", zero, "uni_pc becomes unipc"):
        assert words in done.stderr.decode()
