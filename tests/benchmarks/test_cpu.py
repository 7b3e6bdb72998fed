"""The comparison on the CPU runs to its end at toy size, and does not believe an implementation that disagrees."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from benchmarks import cpu, cpu_load, cpu_models, cpu_rows
from benchmarks.cpu_child import Child, Places, place
from benchmarks.cpu_rows import Case, Maker, Result, Row
from wan_core.configs import DitConfig

TOY = DitConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=2, in_dim=16, out_dim=16, text_dim=32)
TOY_ROW = Row(
    title="toy", config=TOY, dtype="fp32", cases=(Case(name="L=4", latent=(1, 4, 4)),), target=0.9, tolerance=1e-3,
    makers={name: cpu_rows.DIT_MAKERS[name] for name in ("ours", "diffusers", "ComfyUI, pytorch attention")},
)  # fmt: skip


def wrong(spec: dict) -> cpu_models.Built:
    """Ours, at a timestep that is off by a hundredth; built in a child process by its name."""
    step, blocks = cpu_models.ours_dit(spec)
    return lambda x, t, text: step(x, t * 1.01, text), blocks


def missing(spec: dict) -> cpu_models.Built:
    """Something that cannot be built here."""
    raise ImportError("no such library")


@pytest.fixture(scope="module")
def places() -> Places:
    return Places(comfyui=cpu.comfyui(None), threads=1)


def result(**more) -> Result:
    empty = {"row": "C1", "title": "toy", "case": "L=4", "target": 0.9, "turns": {}, "errors": {}}
    return Result(**(empty | more))


def test_a_toy_row_is_timed_in_every_implementation_and_written_down(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(cpu.ROWS, "C1", (replace(TOY_ROW, timed="blocks"),))
    file = tmp_path / "figures.json"
    code = cpu.main(["--rows", "C1", "--repeats", "1", "--threads", "1", "--json", str(file), "--profile", "C1"])
    (row,) = json.loads(file.read_text())["rows"]
    no_host = {"ComfyUI, pytorch attention"} if os.environ.get("WAN_CORE_NO_HOST") == "1" else set()
    assert set(row["missing"]) <= no_host and not row["void"]
    assert set(row["turns"]) == set(TOY_ROW.makers) - set(row["missing"])
    assert all(len(turns) == 2 and min(map(min, turns)) > 0 for turns in row["turns"].values())
    assert all(error <= 1e-5 for error in row["errors"].values()), row["errors"]
    assert (code == 0) == row["verdict"].startswith("ok")
    printed = capsys.readouterr().out
    assert "profile of ours" in printed and "aten::" in printed


def test_a_row_with_a_wrong_implementation_is_void_and_one_that_cannot_be_built_is_named(tmp_path, places):
    makers = {
        "ours": cpu_rows.DIT_MAKERS["ours"],
        "wrong": Maker(builder="tests.benchmarks.test_cpu:wrong"),
        "missing": Maker(builder="tests.benchmarks.test_cpu:missing"),
    }
    (found,) = cpu_rows.measure("C1", replace(TOY_ROW, makers=makers), tmp_path, places, repeats=1)
    assert found.verdict.startswith("VOID: wrong is ")
    assert found.errors["ours"] <= 1e-6 < 1e-3 < found.errors["wrong"]
    assert "no such library" in found.missing["missing"]
    assert not list(tmp_path.glob("weights*")), "gigabytes would be left behind"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda x: x * 1.01, "1.0e-02 off"),
        (lambda x: x.masked_fill(x > 1, math.nan), "nan off"),
        (lambda x: x[:2], "gives [2, 8], not [4, 8]"),
        (lambda x: torch.zeros_like(x), "1.0e+00 off"),
    ],
)
def test_an_output_that_disagrees_is_told_with_its_error(spoil: Callable, says: str):
    good = torch.randn(4, 8)
    errors, void = cpu_rows.disagreement({"ours": good * 1.0001, "rival": spoil(good)}, good, 1e-3)
    assert void.startswith("rival ") and says in void
    assert errors["ours"] == pytest.approx(1e-4, rel=1e-3)
    assert not cpu_rows.disagreement({"ours": good * 1.0001}, good, 1e-3)[1]


def test_turns_go_there_and_back():
    order = []

    def run(name: str) -> Callable[[int], list[float]]:
        return lambda count: order.append(name) or [1.0] * count

    turns = cpu_rows.in_turns({name: run(name) for name in "ABC"}, repeats=2)
    assert "".join(order[6:]) == "ABCCBAABCCBA"
    assert turns == {name: [[1.0]] * 4 for name in "ABC"}


def test_the_ratio_is_taken_within_a_turn_and_against_the_rival_that_is_hardest_to_beat():
    # The machine is twice as slow in every third turn; ours always takes 0.8 of B, and the floor is no rival.
    speeds = {"ours": 0.8, "A": 3.0, "B": 1.0, "floor": 0.1}
    turns = {name: [[speed], [2 * speed], [speed]] for name, speed in speeds.items()}
    found = result(turns=turns, errors={"ours": 0.0})
    assert found.rival == "B"
    assert found.ratio == pytest.approx(0.8) and found.ratio_of_best == pytest.approx(0.8)
    assert found.verdict == "ok"
    assert "125" not in cpu.lines(found)[0] and "12 % of ours" in cpu.lines(found)[-1]
    assert replace(found, target=0.7).verdict == "MISS"
    assert replace(found, turns=turns | {"B": [[0.5], [1.0], [0.5]]}).verdict == "SLOWER"
    assert result(turns={"ours": [[1.0]]}).verdict.startswith("NOT MEASURED")


def test_on_a_machine_that_is_not_quiet_the_best_runs_decide_and_that_is_said():
    found = result(turns={"ours": [[0.8], [3.0], [3.0]], "A": [[1.0], [1.0], [1.0]]})
    assert found.ratio == pytest.approx(3.0) and found.noise == pytest.approx(3.75)
    assert found.verdict.startswith("ok by the best runs (machine not quiet: medians are 3.8 x")


def test_the_same_numbers_stand_in_the_files_of_both_types(tmp_path):
    from safetensors.torch import load_file

    wide = load_file(cpu_rows.write_weights(TOY_ROW, tmp_path / "fp32.safetensors"))
    narrow = load_file(cpu_rows.write_weights(replace(TOY_ROW, dtype="bf16"), tmp_path / "bf16.safetensors"))
    assert {tensor.dtype for tensor in wide.values()} == {torch.float32}
    assert {tensor.dtype for tensor in narrow.values()} == {torch.bfloat16}
    assert all(torch.equal(tensor.float(), wide[name]) for name, tensor in narrow.items())
    assert all(tensor.count_nonzero() > 0.99 * tensor.numel() for tensor in wide.values())


def test_only_rivals_are_given_padding(tmp_path):
    from safetensors.torch import load_file

    (row, _) = cpu_rows.ROWS["C7"]
    files = cpu_rows.write_inputs(row, Case(name="3 tokens", tokens=3, padded=8), tmp_path)
    ours, rivals = load_file(files["ours"]), load_file(files["rivals"])
    assert ours["ids"].shape == (1, 3) and rivals["ids"].tolist() == [[*ours["ids"][0].tolist(), 0, 0, 0, 0, 0]]
    assert int(ours["count"]) == int(rivals["count"]) == 3


def test_comfyui_comes_before_this_repository_on_the_path(tmp_path):
    python, path = place("comfyui", Places(comfyui=(tmp_path, tmp_path / "python")))
    assert path[0] == str(tmp_path) and python == str(tmp_path / "python")
    with pytest.raises(Child.Missing, match="--comfyui"):
        place("comfyui", Places())


def test_a_toy_file_is_loaded_whole_and_judged_against_a_plain_read(tmp_path, places, monkeypatch):
    monkeypatch.setattr(cpu_rows, "WAN_1B", replace(TOY, text_dim=4096))
    monkeypatch.setattr(cpu_load, "LOADERS", {name: cpu_load.LOADERS[name] for name in ("page-cache read", "ours")})
    (found,) = cpu_load.load_cost(places, tmp_path, repeats=1)
    assert set(found.values) == {"page-cache read", "ours"}
    assert all(row["bytes_of_file"] > 0.98 and row["seconds"] > 0 for row in found.values.values()), found.values


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "ok"),
        ({"rss_of_file": 1.2}, "MISS: memory 1.200 x the file"),
        ({"seconds": 1.3}, "MISS: time 1.30 x the read"),
        ({"bytes_of_file": 0.5}, "MISS: only 0.50 of the bytes"),
    ],
)
def test_a_load_is_judged_by_memory_time_and_completeness(change: dict, verdict: str):
    row = {"seconds": 1.0, "best": 0.9, "rss_of_file": 1.0, "bytes_of_file": 1.0}
    found = cpu_load.judge_load({"page-cache read": row, "ours": row | change}, {}, 1000)
    assert found.verdict.startswith(verdict)
    assert cpu_load.judge_load({"ours": row}, {}, 1000).verdict.startswith("NOT MEASURED")


def test_rows_in_one_type_are_each_there_once_and_judged_by_it():
    for dtype in ("fp32", "bf16"):
        rows = cpu.in_dtype(cpu_rows.ROWS["C1"], dtype)
        assert [row.dtype for row in rows] == [dtype] and dtype in rows[0].title
    (row,) = cpu.in_dtype(cpu_rows.ROWS["C3"], "fp32")
    assert row.dtype == "fp32" and "fp32" in row.title and row.tolerance == 1e-3
    assert cpu.in_dtype(cpu_rows.ROWS["C1"], None) == list(cpu_rows.ROWS["C1"])
