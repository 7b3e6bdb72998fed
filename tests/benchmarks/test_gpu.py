"""The GPU benchmark runs to its end on tiny models without a GPU, and judges nothing there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASES = ["ceilings", "resident", "memory", "short", "switch", "lora", "plan", "text", "growth", "vae"]


@pytest.mark.slow
def test_every_case_runs_on_tiny_models(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", *CASES, "--toy", "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "FAILED" not in done.stdout, done.stdout + done.stderr
    found = json.loads((tmp_path / "rows.json").read_text())
    assert {row["case"] for row in found["rows"]} == set(CASES)
    assert all(row["met"] is None for row in found["rows"])
    bits = [row for row in found["rows"] if "bits" in row["name"]]
    assert len(bits) >= 8 and all(row["value"] == 1 for row in bits)
