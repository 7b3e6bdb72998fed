"""The pack's nodes without a host: what they import of ComfyUI is replaced by stand-ins that do nothing."""

import importlib
import pkgutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import torch

import wan_core
from wan_core.runtime.ports import Compute, Ports

PACK = "wan_core_without_host"
STAND_INS = ("comfy_api", "comfy_api.latest")


class Run:
    """In place of the host's NodeRun; ``ports`` are those of whoever runs the node."""

    ports = Ports()

    def __init__(self, node: type):
        self.ports, self.notify, self.node_id = Run.ports, Run.ports.notify, None

    def output(self, *values) -> tuple:
        return values


class Node:
    """In place of ComfyUI's base class of nodes."""

    hidden = SimpleNamespace(unique_id="1", prompt=None)


def _module(name: str, **names) -> None:
    module = ModuleType(name)
    module.__dict__.update(names)
    module.__getattr__ = lambda _: MagicMock()
    sys.modules[name] = module


def load(*names: str) -> list[ModuleType]:
    """Modules of ``nodes/``. Their ``wan_core`` is the one that tests import; the stand-ins are taken away again."""
    root = Path(wan_core.__file__).parents[1]
    for folder, name in ((root, PACK), (root / "nodes", f"{PACK}.nodes")):
        _module(name, __path__=[str(folder)])
    sys.modules[f"{PACK}.wan_core"] = wan_core
    for info in pkgutil.walk_packages(wan_core.__path__, "wan_core."):
        if info.name.endswith("_triton"):  # imported where a card needs it, and no CPU has what it imports
            continue
        sys.modules[f"{PACK}.{info.name}"] = importlib.import_module(info.name)
    cpu = Compute(device=torch.device("cpu"))
    _module(f"{PACK}.nodes.host", NodeRun=Run, host_ports=lambda: Run.ports, compute=lambda kind: cpu, NONE="none")
    absent = [name for name in STAND_INS if name not in sys.modules]
    for name in absent:
        _module(name, io=MagicMock(ComfyNode=Node), ComfyExtension=Node)
    try:
        return [importlib.import_module(f"{PACK}.nodes.{name}") for name in names]
    finally:
        for name in absent:
            del sys.modules[name]
