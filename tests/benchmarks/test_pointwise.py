"""The benchmark of norms and rotations runs, and fails where a result is off."""

import pytest
import torch

from benchmarks import pointwise as bench
from wan_core.runtime import pointwise


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(bench, "REPEATS", 1)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_every_step_has_a_line_with_a_small_error(capsys):
    assert bench.main(["--toy"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    of_a_block = {*pointwise.TORCH, "gelu_tanh"} - {"rms_silu"}  # the VAE's, which has no tokens
    assert {line.split()[0] for line in lines} == of_a_block
    errors = [float(line.split("torch error ")[1].split()[0]) for line in lines]
    assert len(errors) == 8 and all(one < 3e-3 for one in errors)


def test_a_step_that_is_off_is_named_and_fails_the_run(capsys, monkeypatch):
    right = pointwise.TORCH["norm_affine"]
    monkeypatch.setitem(pointwise.TORCH, "norm_affine", lambda *arguments: right(*arguments) * 1.02)
    assert bench.main(["--toy"]) == 1
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("WRONG")] == [
        "norm_affine"
    ]


def test_without_a_card_it_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        bench.main([])
    assert "--toy" in capsys.readouterr().err
