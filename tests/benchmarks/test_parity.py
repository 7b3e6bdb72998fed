"""The parity runner passes on our vectors, and fails on everything that it should."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.parity import judge_file
from tests.conftest import GOLDENS, ROOT

COVERED = [
    "clip_visual_tiny", "conditioning", "dit_vace", "dit_flf2v_2_1", "dit_i2v_2_1", "dit_i2v_2_2", "dit_t2v",
    "dit_t2v_batch2_padded", "dit_t2v_hd128", "dit_ti2v_per_token_t", "pipeline_moe_t2v", "pipeline_t2v",
    "pipeline_ti2v_image", "rope", "schedulers", "umt5_tiny", "vae21", "vae21_17f_z16", "vae22",
]  # fmt: skip


def changed(name: str, folder: Path, change) -> Path:
    """A copy of a golden file with its tensors and metadata changed."""
    with safe_open(GOLDENS / f"{name}.safetensors", "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    change(tensors, metadata)
    path = folder / f"{name}.safetensors"
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize("name", COVERED)
def test_every_base_kind_of_reference_vector_is_met(name):
    rows = judge_file(GOLDENS / f"{name}.safetensors")
    judged = [row for row in rows if row.verdict != "uncovered"]
    assert judged
    assert all(row.verdict == "pass" for row in judged), [row for row in judged if row.verdict != "pass"]
    assert judged == rows


@pytest.mark.parametrize("name", COVERED)
def test_a_small_change_to_an_expected_value_is_a_miss(name, tmp_path):
    def spoil(tensors, _):
        key = next(key for key in sorted(tensors) if key.startswith("out."))
        value = tensors[key].flatten()
        value[0] += 1 if not value.is_floating_point() else 1e-2
        tensors[key] = value.view(tensors[key].shape)

    assert "miss" in {row.verdict for row in judge_file(changed(name, tmp_path, spoil))}


def test_what_cannot_be_judged_is_a_failure(tmp_path):
    (tmp_path / "dit_broken.safetensors").write_bytes(b"not a file")
    save_file({"out.x": torch.zeros(1)}, tmp_path / "rope_no_config.safetensors")
    save_file({"out.x": torch.zeros(1)}, tmp_path / "novel_kind.safetensors", {"config": "{}"})
    changed("dit_t2v", tmp_path, lambda tensors, _: tensors.update({"out.mystery": torch.zeros(1)}))
    verdicts = {path.stem: [row.verdict for row in judge_file(path)] for path in tmp_path.glob("*.safetensors")}
    assert verdicts["dit_broken"] == verdicts["rope_no_config"] == verdicts["novel_kind"] == ["cannot judge"]
    assert sorted(verdicts["dit_t2v"]) == ["cannot judge", "pass"]


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.parity", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_the_command_fails_on_uncovered_kinds_unless_they_are_allowed(tmp_path):
    for name in ("dit_t2v", "dit_s2v"):
        (tmp_path / f"{name}.safetensors").symlink_to(GOLDENS / f"{name}.safetensors")
    strict, lenient = command("--goldens", str(tmp_path)), command("--goldens", str(tmp_path), "--allow-uncovered")
    assert strict.returncode == 1 and "FAILED" in strict.stdout
    assert lenient.returncode == 0 and "S2V" in lenient.stdout


def test_json_names_every_tensor_with_its_error_and_tolerance(tmp_path):
    (tmp_path / "dit_t2v.safetensors").symlink_to(GOLDENS / "dit_t2v.safetensors")
    done = command("--goldens", str(tmp_path), "--json")
    report = json.loads(done.stdout)
    assert report["passed"] and done.returncode == 0
    assert report["rows"][0]["tensor"] == "out.0"
    assert 0 <= report["rows"][0]["max_abs_error"] <= report["rows"][0]["tolerance"] == 1e-4
