"""Ours beside diffusers, transformers and native ComfyUI on the CPU: same weights, inputs, types and threads.

``python3 -m benchmarks.cpu [--rows C1 C2 ...] [--repeats N] [--dtype fp32]
[--json FILE] [--profile ROW ...] [--comfyui DIR]``

Each implementation runs in a process of its own from one file of random weights (up to 2.9 GB in ``.cache/cpu``,
removed again), in each of its settings. They take turns (A B C C B A); the ratio is ours by the rival that is hardest
to beat, the median over turns of the ratio within a turn; where the machine was not quiet, the best runs decide and the
verdict says so. Outputs are first compared with ours in float32: a row whose
outputs disagree is void. ``floor`` are the matrix products and attentions alone,
or the convolutions, by PyTorch's own functions. ``--profile`` shows where time goes.

Rows: C1 small transformers (overhead), C2 the 1.3B transformer, C3 one 14B block, C4 the VAE, C5 the VAE's
memory, C6 the VAE in parts, C7 umT5, C8 import, C9 load plan, C10 streaming on a simulated clock
(``benchmarks.offload_sim``).
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from scripts import setup_host

from . import cpu_load, cpu_vae
from .cpu_child import ROOT, Places
from .cpu_rows import ROWS, Result, Row, measure

CACHE = ROOT / ".cache" / "cpu"
SIMULATION = "benchmarks.offload_sim"
OTHERS = {
    "C5": lambda places, folder, repeats: cpu_vae.memory(places, folder),
    "C6": lambda places, folder, repeats: cpu_vae.parts(places, folder),
    "C8": cpu_load.import_cost,
    "C9": cpu_load.load_cost,
}
KEYS = (*ROWS, *OTHERS, "C10")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.cpu", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=KEYS, default=list(KEYS), metavar="ROW", help=", ".join(KEYS))
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="cases with TEXT in their title or name, e.g. 128x128x9"
    )
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16"),
        help="C1 to C4 and C7 in it alone (bf16 says little without hardware for it)",
    )
    parser.add_argument("--repeats", type=int, default=4, help="turns there and back for each implementation")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.add_argument("--profile", nargs="+", choices=list(ROWS), default=[], metavar="ROW")
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="a ComfyUI checkout (default: the project's own)")
    args = parser.parse_args(argv)
    places = Places(comfyui=comfyui(args.comfyui), threads=args.threads)
    print(f"{os.cpu_count()} cores, {args.threads} threads, PyTorch {torch.__version__}", flush=True)
    found, passed = [], True
    for key in args.rows:
        for result in run(key, places, args.repeats, key in args.profile, args.only, args.dtype):
            print("\n".join(lines(result)), flush=True)
            passed &= result.verdict.split()[0] == "ok"
            found.append(result.as_json())
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "rows": found}, indent=1) + "\n", encoding="utf8")
    return 0 if passed else 1


def in_dtype(rows: tuple[Row, ...], dtype: str | None) -> list[Row]:
    """The rows in one type; of those that differ by it alone there is one."""
    if dtype is None:
        return list(rows)
    found = {row.title: row for row in rows if row.dtype == dtype}
    for row in rows:
        title = row.title.replace(row.dtype, dtype)
        tolerance = 1e-3 if dtype == "fp32" else 0.05
        found.setdefault(title, replace(row, dtype=dtype, title=title, tolerance=tolerance))
    return list(found.values())


def run(
    key: str, places: Places, repeats: int, profiled: bool, only: str = "", dtype: str | None = None
) -> Iterator[Result | cpu_load.Bound]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        if key in OTHERS:
            yield from OTHERS[key](places, folder, repeats)
        elif key == "C10":
            yield simulation()
        else:
            for row in in_dtype(ROWS[key], dtype):
                cases = tuple(case for case in row.cases if only in f"{row.title} {case.name}")
                if cases:
                    yield from measure(key, replace(row, cases=cases), folder, places, repeats, profiled)


def comfyui(folder: Path | None) -> tuple[Path, Path] | None:
    """A checkout and its Python; None where there is none, which each row then says."""
    try:
        if folder is None:
            env = setup_host.find_host()
            return env.folder, env.python
        return folder.resolve(), setup_host.host_python(folder.resolve())
    except setup_host.SetupError as reason:
        print(f"ComfyUI is not compared: {reason}", file=sys.stderr)
        return None


def simulation() -> cpu_load.Bound:
    """C10 judges itself."""
    title = f"C10 streaming on a simulated clock ({SIMULATION})"
    if importlib.util.find_spec(SIMULATION) is None:
        return cpu_load.Bound(title=title, figures={}, failure="NOT MEASURED: the module is not there")
    done = subprocess.run([sys.executable, "-m", SIMULATION], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout.strip())
    failure = "" if done.returncode == 0 else f"MISS: {(done.stderr or done.stdout).strip()[-300:]}"
    return cpu_load.Bound(title=title, figures={}, failure=failure)


def lines(result: Result | cpu_load.Bound) -> list[str]:
    """What is printed of one result."""
    if isinstance(result, cpu_load.Bound):
        return [
            f"{result.title}: {result.verdict}",
            *(f"    {name:44} {text}" for name, text in result.figures.items()),
        ]
    head = f"{result.row} {result.title}, {result.case}: {result.verdict}"
    if result.ratio is not None:
        head += f"  (ours / {result.rival} = {result.ratio:.3f}, of the best runs {result.ratio_of_best:.3f}, "
        head += f"target {result.target})"
    rows = [head]
    for name in result.turns:
        last = f"error {result.errors[name]:.1e}" if name in result.errors else ""
        if name == "floor":
            last = f"{100 / result.ratio_to(name):.0f} % of ours"
        elif name != "ours":
            last += f"  ours is {result.ratio_to(name):.3f} x"
        times = f"median {result.median(name) * 1e3:10.3f} ms  min {result.best(name) * 1e3:10.3f} ms"
        rows.append(f"    {name:28} {times}  {last}")
    rows += [f"    {name:28} not measured: {reason}" for name, reason in result.missing.items()]
    for name, table in result.tables.items():
        rows += [f"    profile of {name}:", table]
    return rows


if __name__ == "__main__":
    sys.exit(main())
