"""Is the memory of a streamed VAE constant in the length of the clip?

``python3 -m benchmarks.vae_memory [--vae 2.1|2.2] [--frames 9 33 129] [--size 256] [--dtype fp32|bf16] [--json]``

Builds the VAE at its real width with random weights, streams a random clip through it, drops every run of frames at
once, and takes the peak of the resident memory minus the resident memory right after loading. Each length has a fresh
process. Passes where the lengths differ by at most 2 % of what the longest clip's fp32 frames occupy. Linux only: it
reads ``/proc/self/status`` and resets the peak through ``/proc/self/clear_refs``.

glibc's malloc keeps freed memory and decides by history what it gives back, so that the same work leaves different
amounts resident. The child processes therefore run with the fixed settings of ``MALLOC``, which send every large
block straight to the operating system and back; what is measured is then what the tensors occupy. A few hundred kB
of noise (small blocks, stacks, code pages) stay: at sizes well below 256 they alone exceed the tolerance.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

TOLERANCE = 0.02
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
DIRECTIONS = ("decode", "encode")
ROOT = Path(__file__).parent.parent


def status_bytes(field: str) -> int:
    """``VmRSS`` (resident now) or ``VmHWM`` (its peak) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}: this benchmark needs Linux.")


def measure(args: argparse.Namespace) -> dict:
    """The child's work: one model, one clip, one number."""
    import torch

    from wan_core.configs import VaeConfig
    from wan_core.models.vae import WanVAE

    configs = {"2.1": VaeConfig(), "2.2": VaeConfig(dim=160, dec_dim=256, z_dim=48, patch=2, shortcuts=True)}
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(1)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    torch.set_default_dtype(dtype)
    vae = WanVAE(configs[args.vae])
    torch.set_default_dtype(torch.float32)
    cfg, (frames,) = vae.config, args.frames

    def latents() -> Iterator[torch.Tensor]:
        side = args.size // cfg.stride_hw
        for _ in range((frames - 1) // cfg.stride_t + 1):
            yield torch.randn(1, cfg.z_dim, 1, side, side, generator=generator)

    def video() -> Iterator[torch.Tensor]:
        for _ in range(frames):
            yield torch.rand(1, 3, 1, args.size, args.size, generator=generator) * 2 - 1

    stream = vae.decode_stream(latents()) if args.child == "decode" else vae.encode_stream(video())
    loaded = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start, out_frames, finite = time.perf_counter(), 0, True
    for run in stream:
        out_frames += run.shape[2]
        finite &= bool(run.isfinite().all())
        del run
    seconds = time.perf_counter() - start
    peak = status_bytes("VmHWM")
    return {
        "frames": frames,
        "out_frames": out_frames,
        "finite": finite,
        "loaded_bytes": loaded,
        "peak_minus_loaded_bytes": peak - loaded,
        "seconds": round(seconds, 1),
    }


def in_child(args: argparse.Namespace, direction: str, frames: int) -> dict:
    command = [sys.executable, "-m", "benchmarks.vae_memory", "--child", direction, "--vae", args.vae]
    command += [
        "--frames",
        str(frames),
        "--size",
        str(args.size),
        "--dtype",
        args.dtype,
        "--threads",
        str(args.threads),
    ]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **MALLOC}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{direction} of {frames} frames ended with exit code {done.returncode}; its error is above.")
    return json.loads(done.stdout)


def judge(args: argparse.Namespace, direction: str) -> dict:
    """All lengths in one direction, and the verdict."""
    rows = []
    for frames in args.frames:
        row = in_child(args, direction, frames)
        rows.append(row)
        if not args.json:
            print(
                f"{direction} {frames:4d} frames: peak - loaded {row['peak_minus_loaded_bytes'] / 1e6:9.2f} MB, "
                f"loaded {row['loaded_bytes'] / 1e6:.0f} MB, {row['seconds']:.1f} s",
                flush=True,
            )
    peaks = [row["peak_minus_loaded_bytes"] for row in rows]
    spread, allowed = max(peaks) - min(peaks), int(TOLERANCE * max(args.frames) * 3 * args.size**2 * 4)
    passed = spread <= allowed and all(row["finite"] for row in rows)
    if not args.json:
        print(
            f"{direction}: spread {spread / 1e6:.2f} MB, allowed {allowed / 1e6:.2f} MB: {'ok' if passed else 'MISS'}"
        )
    return {"direction": direction, "rows": rows, "spread_bytes": spread, "allowed_bytes": allowed, "passed": passed}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.vae_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--vae", choices=("2.1", "2.2"), default="2.1")
    parser.add_argument("--frames", type=int, nargs="+", default=[9, 33, 129], help="4n+1 each")
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--direction", choices=DIRECTIONS, nargs="+", default=list(DIRECTIONS))
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--child", choices=DIRECTIONS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.child:
        print(json.dumps(measure(args)))
        return 0
    settings = {"vae": args.vae, "size": args.size, "dtype": args.dtype, "threads": args.threads, "malloc": MALLOC}
    if not args.json:
        print(
            f"VAE {args.vae}, {args.size}x{args.size}, {args.dtype}, {args.threads} threads, malloc settings {MALLOC}"
        )
    results = [judge(args, direction) for direction in args.direction]
    if args.json:
        print(json.dumps({**settings, "results": results}, indent=2))
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
