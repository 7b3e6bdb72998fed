"""One load or import in a fresh process, for ``benchmarks.cpu_load``: ``python -I cpu_load_child.py SPEC.json``.

Prints one JSON object. Linux only: it reads ``/proc/self/status`` and resets the peak through ``clear_refs``.
"""

import gc
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

CHUNK = 1 << 24
# As main.py imports them, `utils` first: later that name may mean another module.
COMFYUI_MODULES = (
    "utils.extra_config", "torch", "comfy.sd", "comfy.samplers", "folder_paths", "server", "execution", "nodes",
    "comfy_api.latest",
)  # fmt: skip
COMPILERS = ("triton", "torch._dynamo", "torch._inductor", "torch._functorch")


def status_bytes(field: str) -> int:
    """``VmRSS`` (resident now) or ``VmHWM`` (its peak)."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def touch(tensors: Iterable) -> int:
    """Reads every byte of every tensor; returns how many."""
    import torch

    total = 0
    for tensor in tensors:
        flat = tensor.detach().reshape(-1).view(torch.uint8)
        even = flat.numel() // 8 * 8
        flat[:even].view(torch.int64).amax() if even else None
        total += flat.numel()
    return total


# --- loaders: import first, then give a function that loads and yields the weights -----------------------------------


def plain_read(spec: dict) -> Callable[[], Iterable]:
    """The file through one buffer: the least that a cached file costs."""
    import torch

    def load():
        buffer = torch.empty(CHUNK, dtype=torch.uint8)
        view = memoryview(buffer.numpy())
        with open(spec["official"], "rb", buffering=0) as file:
            while count := file.readinto(view):
                yield buffer[:count]

    return load


def ours(spec: dict) -> Callable[[], Iterable]:
    import torch

    from wan_core.runtime.ports import Compute, Ports
    from wan_core.stages import load

    def run():
        compute = Compute(device=torch.device("cpu"), bf16=True)
        handle = load.load_model(Path(spec["official"]), compute=compute, dtype="auto", notify=print_err)
        module = Ports().memory.place(handle.high, 0)
        return [*module.parameters(), *module.buffers()]

    return run


def single_file(spec: dict) -> Callable[[], Iterable]:
    import torch
    from diffusers import WanTransformer3DModel

    folder = str(Path(spec["diffusers"]).parent)
    return lambda: list(
        WanTransformer3DModel.from_single_file(
            spec["official"], config=folder, torch_dtype=torch.bfloat16, local_files_only=True
        ).parameters()
    )


def pretrained(spec: dict) -> Callable[[], Iterable]:
    import torch
    from diffusers import WanTransformer3DModel

    folder = str(Path(spec["diffusers"]).parent)
    return lambda: list(WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.bfloat16).parameters())


def comfyui(spec: dict) -> Callable[[], Iterable]:
    start_comfyui()
    import torch

    loader, manager = (importlib.import_module(f"comfy.{name}") for name in ("sd", "model_management"))
    options = {"dtype": torch.bfloat16} if spec["job"].endswith("bf16") else {}

    def run():
        patcher = loader.load_diffusion_model(spec["official"], model_options=options)
        manager.load_models_gpu([patcher])
        return list(patcher.model.diffusion_model.parameters())

    return run


LOADERS = {
    "page-cache read": plain_read,
    "ours": ours,
    "diffusers, from_single_file": single_file,
    "diffusers, from_pretrained": pretrained,
    "ComfyUI": comfyui,
    "ComfyUI, bf16": comfyui,
}


def loaded(spec: dict) -> dict:
    """Seconds from a path to touched weights, and what the peak of resident memory rose by."""
    import torch

    torch.set_num_threads(spec["threads"])
    load = LOADERS[spec["job"]](spec)
    touch([torch.zeros(CHUNK)])  # the threads are up
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    began = time.perf_counter()
    with torch.no_grad():
        count = touch(load())
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "rss_added": status_bytes("VmHWM") - before, "bytes": count}


# --- the import ------------------------------------------------------------------------------------------------------


def start_comfyui() -> None:
    sys.argv = ["main.py", "--cpu"]
    importlib.import_module("comfy.options").enable_args_parsing()


def import_pack(spec: dict) -> dict:
    """The pack imported as ComfyUI does it, with its nodes listed and their schemas made."""
    import asyncio
    import importlib.util

    start_comfyui()
    for name in COMFYUI_MODULES:
        importlib.import_module(name)
    gc.collect()
    before, modules, began = status_bytes("VmRSS"), set(sys.modules), time.perf_counter()
    init = Path(spec["pack"]) / "__init__.py"
    name = "custom_nodes/ComfyUI-WanCore"
    found = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(init.parent)])
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    extension = asyncio.run(module.comfy_entrypoint())
    for node in asyncio.run(extension.get_node_list()):
        node.GET_SCHEMA()
    seconds = time.perf_counter() - began
    added = set(sys.modules) - modules
    compilers = sorted({one for one in COMPILERS for name in added if name == one or name.startswith(one + ".")})
    rss = status_bytes("VmRSS")
    return {
        "seconds": seconds, "rss_before": before, "rss_added": rss - before, "modules": len(added),
        "compilers": compilers,
    }  # fmt: skip


def print_err(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf8"))
    sys.path[:0] = spec["path"]
    result = import_pack(spec) if spec["job"] == "import pack" else loaded(spec)
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
