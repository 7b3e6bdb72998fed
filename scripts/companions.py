"""Makes torchvision and torchaudio importable beside a torch without CUDA. Standard library only."""

from __future__ import annotations

import json
from pathlib import Path

from .setup_steps import CACHE, SetupError, run, say

PROBE = """
import importlib, importlib.util, json, torch
def state(name):
    try:
        importlib.import_module(name)
        error = None
    except (ImportError, OSError, RuntimeError) as reason:
        error = f"{type(reason).__name__}: {reason}"
    return {"folder": list(importlib.util.find_spec(name).submodule_search_locations)[0], "error": error}
print(json.dumps({"cuda": torch.version.cuda, "vision": state("torchvision"), "audio": state("torchaudio")}))
"""

VISION_MARK = "# Wan Core set-up: schemas of the two ops that are declared at import"
VISION_PATCH = f"""

{VISION_MARK}
if not _has_ops():
    _schemas = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _schemas.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def probe_companions(python: Path) -> dict:
    output = run([python, "-c", PROBE], "Importing torch, torchvision and torchaudio", cwd=CACHE)
    return json.loads(output.strip().splitlines()[-1])


def repair_companions(python: Path) -> None:
    """Makes torchvision and torchaudio importable where only their CUDA builds are on offer and torch has no CUDA.

    ComfyUI imports both at start and uses neither's compiled part for Wan. Done in environments that the set-up made
    itself, and only for a package that does not import.
    """
    state = probe_companions(python)
    broken = [name for name in ("vision", "audio") if state[name]["error"]]
    if broken and state["cuda"] is None:
        for name in broken:
            {"vision": repair_torchvision, "audio": repair_torchaudio}[name](Path(state[name]["folder"]))
        state = probe_companions(python)
    for name in ("vision", "audio"):
        if state[name]["error"]:
            raise SetupError(
                f"torch{name} cannot be imported by {python}, so ComfyUI cannot start: {state[name]['error']}"
            )


def repair_torchvision(folder: Path) -> None:
    """Lets torchvision declare the schemas of its two detection ops when the compiled ones do not load."""
    extension = folder / "extension.py"
    text = extension.read_text(encoding="utf-8")
    if VISION_MARK not in text:
        say("torchvision's compiled ops need CUDA: declaring their schemas instead")
        extension.write_text(text + VISION_PATCH, encoding="utf-8")


def repair_torchaudio(folder: Path) -> None:
    """Sets torchaudio's compiled libraries aside; without them it runs as pure Python."""
    say("torchaudio's compiled libraries need CUDA: setting them aside")
    for library in (folder / "lib").glob("*.so"):
        library.rename(library.with_name(library.name + ".aside"))
