"""One implementation in a process of its own, for ``benchmarks.cpu``: built once, then run on command.

``python -I cpu_worker.py SPEC.json``. The parent writes lines to its standard input and reads one JSON line for each:
``run CASE COUNT`` (seconds of each run), ``save CASE FILE`` (runs once and writes the output), ``profile CASE`` (a
table), ``quit``. A failure is ``{"error": ...}``. Whatever a library prints goes to standard error.

The specification's ``path`` comes before everything else on ``sys.path``: ComfyUI has a module ``nodes`` and so has
this repository.
"""

import importlib
import json
import os
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import torch


class Span:
    """Seconds of one run: of all of it, or from the first of ``blocks`` to the last."""

    def __init__(self, blocks: list[torch.nn.Module] | None):
        self.began = self.ended = None
        if blocks is not None:
            blocks[0].register_forward_pre_hook(self._begin)
            blocks[-1].register_forward_hook(self._end)
        self.of_blocks = blocks is not None

    def _begin(self, *_) -> None:
        self.began = time.perf_counter()

    def _end(self, *_) -> None:
        self.ended = time.perf_counter()

    def of(self, run) -> float:
        began = time.perf_counter()
        run()
        ended = time.perf_counter()
        if not self.of_blocks:
            return ended - began
        if self.began is None or self.ended is None:
            raise RuntimeError("the blocks were not called as modules, so their time is not known")
        return self.ended - self.began


def profile(run) -> str:
    """The twelve operators that take the most time of their own."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        run()
    return trace.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=44)


def serve(spec: dict, out) -> None:
    """Build, then answer one line for each line read."""
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(spec["threads"])
    module, _, name = spec["builder"].partition(":")
    # Inference mode begins after building: weights made under it could not be replaced by the host's own loaders.
    step, blocks = getattr(importlib.import_module(module), name)(spec)
    inputs = {case: load_file(file) for case, file in spec["inputs"].items()}
    span = Span(blocks if spec["timed"] == "blocks" else None)
    _say(out, {"ready": True})
    with torch.inference_mode():
        for line in sys.stdin:
            word, *rest = line.rstrip("\n").split("\t")
            if word == "quit":
                return
            run = partial(step, **inputs[rest[0]])
            if word == "run":
                _say(out, [span.of(run) for _ in range(int(rest[1]))])
            elif word == "save":
                save_file({"output": run().float().contiguous()}, rest[1])
                _say(out, {"saved": rest[1]})
            elif word == "profile":
                _say(out, {"table": profile(run)})


def _say(out, message: object) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


def main() -> int:
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf8"))
    sys.path[:0] = spec["path"]
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.argv = ["main.py", *spec.get("flags", ())]  # ComfyUI reads the command line
    try:
        serve(spec, out)
    except Exception as error:  # noqa: BLE001 - the parent has to learn of anything, and says it
        traceback.print_exc()
        _say(out, {"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
