"""The arithmetic and the verdicts of the benchmark of a long-lived host. No server is started here."""

import json
from dataclasses import replace

import pytest

from benchmarks import host_drift as bench

KB, MB = 1024, 1024**2
HOST = "0.33.0"
SMAPS = """\
7f2122800000-7f213eca6000 rw-p 00000000 fe:00 5693657                    /home/a b/models/wan_high.safetensors
Size:             470000 kB
Rss:              300000 kB
Shared_Clean:       1000 kB
Shared_Dirty:          0 kB
Private_Clean:     20000 kB
Private_Dirty:       500 kB
Anonymous:             0 kB
VmFlags: rd wr mr mw me ac
7f2196077000-7f21960b3000 r-xp 00000000 fe:00 5383925                    /home/.venv/lib/libtorch_cpu.so
Rss:              130000 kB
Private_Clean:    120000 kB
Private_Dirty:     10000 kB
Anonymous:            30 kB
7f2196077000-7f21960b3000 rw-p 00000000 fe:00 5383926                    /usr/lib/libc.so.6
Private_Clean:        50 kB
Private_Dirty:         9 kB
Anonymous:             9 kB
55d0c0a00000-55d0c1a00000 rw-p 00000000 00:00 0                          [heap]
Private_Clean:         0 kB
Private_Dirty:    400000 kB
Anonymous:        400000 kB
7ffd0c5f6000-7ffd0c5f8000 rw-p 00000000 00:00 0
Private_Clean:         1 kB
Private_Dirty:         2 kB
Anonymous:             3 kB
"""
LEVELS = {"before": 500 * MB, "loaded": 1500 * MB, "after": 549 * MB}


def grown(kb_a_run: float, runs: int = 60, saw_kb: int = 12_000) -> list[int]:
    """USS that grows evenly, and is higher after one kind of job than after the other."""
    return [round(500 * MB + i * kb_a_run * KB + (i % 2) * saw_kb * KB) for i in range(runs)]


def test_uss_is_what_only_this_process_has_in_memory_without_untouched_library_pages():
    assert bench.uss_bytes(SMAPS) == (20_500 + 30 + 9 + 400_000 + 3) * KB


def test_the_slope_is_that_of_a_line_through_the_points():
    assert bench.slope([7 + 3 * i for i in range(40)]) == pytest.approx(3)
    assert bench.slope([5.0] * 12) == 0
    assert bench.slope([0, 1, 1, 2]) == pytest.approx(0.6)  # 3 / 5


@pytest.mark.parametrize(("runs", "judged"), [(60, 40), (12, 8), (31, 20)])
def test_the_last_two_thirds_are_judged_in_whole_turns(runs, judged):
    assert bench.judged_runs(runs) == judged


@pytest.mark.parametrize(("ours", "native", "passed"), [(70, 10, True), (80, 10, False), (10, 80, True)])
def test_drift_is_judged_by_what_our_nodes_add_to_the_native_ones(ours, native, passed):
    row = bench.drift_row(HOST, grown(ours), grown(native, saw_kb=0))
    assert row.passed is passed
    assert row.value == pytest.approx(ours - native, abs=0.1), "the saw between two kinds of jobs is no drift"
    assert row.detail["native_kb"] == pytest.approx(native, abs=0.1)


def test_what_the_first_third_fills_is_not_drift():
    flat = [500 * MB] * 40
    filling = [(430 + 3 * i) * MB for i in range(20)]
    assert bench.drift_row(HOST, filling + flat, [500 * MB] * 60).value == 0


def test_of_what_the_models_brought_95_percent_must_go():
    size = 1000 * MB
    row = bench.free_row(HOST, "ours", LEVELS, size, judged=True)
    assert row.value == pytest.approx(95.1) and row.passed is True
    assert bench.free_row(HOST, "ours", LEVELS | {"after": 551 * MB}, size, judged=True).passed is False
    assert bench.free_row(HOST, "native", LEVELS | {"after": 551 * MB}, size, judged=False).passed is None


def test_models_that_never_were_in_memory_are_a_miss_and_no_division_by_zero():
    assert bench.free_row(HOST, "ours", LEVELS, 2000 * MB, judged=True).passed is False
    nothing = {"before": 500 * MB, "loaded": 500 * MB, "after": 500 * MB}
    row = bench.free_row(HOST, "ours", nothing, 1000 * MB, judged=True)
    assert row.value == 0 and row.passed is False


def test_a_pair_may_take_its_files_and_3_gb():
    assert bench.pair_row(HOST, 9_000_000_000, 600_000_000, 6_000_000_000).passed is True
    row = bench.pair_row(HOST, 9_000_000_001, 600_000_000, 6_000_000_000)
    assert row.passed is False and row.limit == "<= 9.00"


def rows(*passed: bool | None) -> list[bench.Row]:
    row = bench.pair_row(HOST, 1, 1, 1)
    return [replace(row, passed=one) for one in passed]


def test_one_miss_gives_exit_code_1_and_rows_for_comparison_none():
    assert bench.exit_code(rows(True, None, True)) == 0
    assert bench.exit_code(rows(True, False, True)) == 1


class FakeBench:
    """Stands for a host; the drift misses."""

    def __init__(self, version, folder, say):
        self.version = version

    def drift(self, runs):
        return [bench.drift_row(self.version, grown(100, runs), grown(10, runs))]

    def pair(self):
        return [bench.pair_row(self.version, 2_000_000_000, 600_000_000, 1_000_000_000)]


def test_the_command_prints_a_row_for_each_figure_and_says_which_missed(monkeypatch, capsys):
    monkeypatch.setattr(bench, "Bench", FakeBench)
    monkeypatch.setattr(bench, "stop_on_sigterm", lambda: None)
    monkeypatch.setattr(bench, "steady_memory", lambda malloc: None)
    assert bench.main(["--host", HOST, "0.3.64", "--only", "drift", "pair"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [(line.split()[:2], "MISS" in line) for line in lines] == [
        ([HOST, "drift"], True), ([HOST, "pair"], False), (["0.3.64", "drift"], True), (["0.3.64", "pair"], False),
    ]  # fmt: skip
    assert bench.main(["--host", HOST, "--only", "pair", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["part"] == "pair" and row["passed"] is True


def test_a_slope_of_too_few_runs_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--runs", "8"])
    assert "at least 12" in capsys.readouterr().err
