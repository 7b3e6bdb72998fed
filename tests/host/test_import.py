"""Loading the pack inside the host's Python: fast, without CUDA, and without touching anything of the host."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CHILD = """
import asyncio, gc, importlib.util, json, os, sys, time
host, root = sys.argv[1:3]
sys.path.insert(0, host)
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import utils.extra_config  # as main.py does: later the name `utils` may mean another module
import torch, comfy.sd, comfy.samplers, comfy.model_management, folder_paths, server, execution, nodes
import comfy_api.latest

def snapshot():
    modules = [m for name, m in sorted(sys.modules.items()) if m is not None and (
        name.split(".")[0] in ("comfy", "comfy_api", "comfy_execution", "nodes", "execution", "server", "folder_paths")
        or name in ("torch", "torch.nn", "torch.nn.functional", "torch.cuda", "torch.backends.cudnn"))]
    ids = {f"{m.__name__}.{key}": id(value) for m in modules for key, value in list(vars(m).items())}
    flags = {
        "threads": torch.get_num_threads(), "grad": torch.is_grad_enabled(), "dtype": str(torch.get_default_dtype()),
        "rng": torch.get_rng_state().sum().item(), "tf32": torch.backends.cuda.matmul.allow_tf32,
        "benchmark": torch.backends.cudnn.benchmark, "precision": torch.get_float32_matmul_precision(),
        "environ": dict(os.environ), "path": list(sys.path), "cwd": os.getcwd(),
    }
    return ids, flags

def raiser(*args, **kwargs):
    raise RuntimeError("CUDA was initialised at import")

torch.cuda._lazy_init = raiser
before = snapshot()
gc.collect()  # a full collection over the host's own objects takes 0.3 s, and is due just here on 0.3.64
began = time.perf_counter()
name = "custom_nodes/ComfyUI-WanCore"
init = os.path.join(root, "__init__.py")
spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[root])
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
at_import = time.perf_counter() - began
extension = asyncio.run(module.comfy_entrypoint())
listed = asyncio.run(extension.get_node_list())
schemas = [node.GET_SCHEMA() for node in listed]
seconds = time.perf_counter() - began
after = snapshot()
changed = sorted(key for key in before[0] if after[0].get(key) != before[0][key])
added = sorted(set(after[0]) - set(before[0]))
flags = [key for key in before[1] if before[1][key] != after[1][key]]
print("RESULT" + json.dumps({"at_import": at_import, "seconds": seconds, "changed": changed, "added": added,
    "flags": flags, "ids": [s.node_id for s in schemas], "v1": hasattr(module, "NODE_CLASS_MAPPINGS")}))
"""


@pytest.fixture(scope="module")
def loaded(host_env) -> list[dict]:
    """Three fresh processes; the fastest counts for time, all of them for everything else.

    They may keep bytecode, as Python does unless it is told not to: only the very first start of a user compiles.
    """
    results, environment = [], {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(3):
        done = subprocess.run(
            [host_env.python, "-c", CHILD, host_env.folder, ROOT], capture_output=True, text=True, timeout=300,
            env=environment,
        )  # fmt: skip
        assert "RESULT" in done.stdout, done.stderr[-2000:]
        results.append(json.loads(done.stdout.split("RESULT")[1]))
    return results


def test_loading_the_pack_with_all_its_schemas_adds_at_most_a_quarter_of_a_second(loaded):
    assert min(result["seconds"] for result in loaded) <= 0.25, [result["seconds"] for result in loaded]


def test_loading_changes_nothing_of_comfy_torch_or_the_environment(loaded):
    for result in loaded:
        assert not result["changed"]
        assert not result["flags"]
        assert not [name for name in result["added"] if not name.startswith("comfy_api")], result["added"]


def test_the_pack_is_loaded_by_its_entrypoint_and_every_id_has_the_prefix(loaded):
    assert not loaded[0]["v1"], "with NODE_CLASS_MAPPINGS the host would never call comfy_entrypoint"
    assert len(loaded[0]["ids"]) >= 11
    assert all(node_id.startswith("WanCore") for node_id in loaded[0]["ids"])
