"""Shared fixtures. ``wan_core`` is one package here, whether a test imports it by itself or through the pack."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
GOLDENS = ROOT / "tests" / "goldens"

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of reference vectors."""
    return GOLDENS


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test draws the same random numbers, in whatever order they run."""
    torch.manual_seed(0)
