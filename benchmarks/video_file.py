"""Decode into a file and encode from one: is memory flat, is the file whole, is nothing left when it goes wrong?

``python3 -m benchmarks.video_file [--vae nano] [--frames 33 65 257] [--size 128] [--codec h264]
[--quality highest] [--json]``

Uses the small trained VAE of ``models/``, or with ``--vae 2.1`` one of real width with random weights, on the CPU. Four
tables:

* memory: each length in a process of its own; the peak of the resident memory, while a latent becomes a file and while
  that file becomes a latent again. Flat is: the longest within 1 % of the shortest. ``in memory`` is the same with the
  whole clip decoded first.
* file: its frames are counted, and compared with a decode in memory (PSNR; the encoder's colours are stored for pairs
  of pixels in most codecs, which no quality setting changes).
* kills: a process that writes files is killed at ten moments. Partial files under a final name, and files that were
  there before and changed.
* full disk: a limit on the size of files at ten points of a file (the error a file system gives that takes no more).

Where the VAE is small, the shortest length should be past the encoder's look-ahead (20 frames for h264), which is
memory that every longer video takes too. Linux only; see ``benchmarks/vae_memory.py`` for the fixed settings of malloc.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count, cycle, islice
from pathlib import Path

from benchmarks.vae_memory import MALLOC, ROOT, status_bytes

FLAT = 0.01
LIMITS = 10
KILLS = 10
JOBS = ("decode", "encode", "in memory")


def pattern(frames: int, size: int) -> Iterator:
    """Soft colours that move, and a disc with an edge: uint8 ``[H, W, 3]`` each."""
    import numpy as np

    y, x = np.mgrid[0:size, 0:size]
    for t in range(frames):
        waves = np.stack([np.sin(x / 37 + t / 9 + c) * np.cos(y / (29 + 7 * c)) for c in range(3)], -1)
        disc = ((x - size / 4 - 2 * t) ** 2 + (y - size / 2) ** 2 < (size / 8) ** 2)[..., None]
        yield (127 + 80 * waves + 40 * disc).clip(0, 255).astype(np.uint8)


def vae_of(name: str):
    if name != "nano":
        import torch

        from benchmarks.vae_exact import CONFIGS, handle

        return handle(CONFIGS[name], torch.float32)
    from benchmarks.nano_run import COMPUTE
    from wan_core.stages.load import load_vae

    return load_vae(ROOT / "models" / "vae" / "wan_nano_vae.safetensors", compute=COMPUTE, dtype="fp32")


def latent_of(vae, frames: int, size: int):
    """A latent of 17 frames of the pattern, there and back to the length that is asked for."""
    import numpy as np
    import torch

    from wan_core.runtime.ports import Ports
    from wan_core.stages.vae import encode

    clip = torch.from_numpy(np.stack(list(pattern(17, size))))[None].float() / 255
    latent = encode(vae, clip, Ports())
    there_and_back = [0, 1, 2, 3, 4, 3, 2, 1]
    order = list(islice(cycle(there_and_back), (frames - 1) // 4 + 1))
    return latent[:, :, order].clone()


def settings_of(args):
    from wan_core.media.write import VideoSettings

    return VideoSettings(fps=16, codec=args.codec, quality=args.quality)


def child(args: argparse.Namespace) -> dict:
    """One job at one length: its peak, and what came out."""
    import torch

    from wan_core.media.part import Place
    from wan_core.media.write import write_video
    from wan_core.runtime.ports import Ports
    from wan_core.stages import vae as vae_stage
    from wan_core.stages.video_file import Cut, byte_frames, decoded_frames, encode_file

    torch.set_num_threads(args.threads)
    vae, (frames,) = vae_of(args.vae), args.frames
    place = Place(folder=Path(args.folder), name=f"clip_{frames}")
    if args.child == "encode":
        before, path = None, next(Path(args.folder).glob(f"clip_{frames}_*"))
    else:
        before, path = latent_of(vae, frames, args.size), None
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    if args.child == "encode":
        latent, _ = encode_file(vae, path, Cut(), Ports())
        made = (latent.shape[2] - 1) * 4 + 1
    else:
        if args.child == "decode":
            pictures = decoded_frames(vae, before, Ports())
        else:
            pictures = byte_frames(iter([vae_stage.decode(vae, before, Ports())]))
        path = write_video(pictures, place, settings_of(args))
        made = frames
    seconds, peak = time.perf_counter() - start, status_bytes("VmHWM")
    return {"frames": frames, "made": made, "peak_bytes": peak, "seconds": round(seconds, 2), "file": path.name}


def in_child(args: argparse.Namespace, job: str, frames: int, folder: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.video_file", "--child", job, "--folder", folder]
    command += ["--frames", str(frames), "--size", str(args.size), "--codec", args.codec, "--quality", args.quality]
    command += ["--threads", str(args.threads), "--vae", args.vae]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **MALLOC}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{job} of {frames} frames ended with exit code {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def memory(args: argparse.Namespace, folder: str) -> list[dict]:
    results = []
    for job in JOBS:
        rows = [in_child(args, job, frames, folder) for frames in args.frames]
        peaks = [row["peak_bytes"] for row in rows]
        growth = peaks[-1] / peaks[0] - 1
        whole = all(row["made"] == row["frames"] for row in rows)
        passed = job == "in memory" or (growth <= FLAT and whole)
        results.append({"job": job, "rows": rows, "growth": growth, "passed": passed})
        line = ", ".join(f"{row['frames']} frames {row['peak_bytes'] / 1e6:.1f} MB" for row in rows)
        verdict = "" if job == "in memory" else ": ok" if passed else ": MISS"
        say(args, f"memory  {job:9s}  {line}; {rows[-1]['seconds']:.1f} s; growth {100 * growth:+.2f} %{verdict}")
    return results


def played(args: argparse.Namespace, folder: str) -> list[dict]:
    """Each file read back, beside a decode in memory."""
    import numpy as np
    import torch

    from wan_core.media.read import VideoFile
    from wan_core.runtime.ports import Ports
    from wan_core.stages.video_file import decoded_frames

    torch.set_num_threads(args.threads)
    vae, results = vae_of(args.vae), []
    for frames in args.frames:
        (path,) = (p for p in Path(folder).glob(f"clip_{frames}_00001_*"))
        errors, read = [], 0
        with VideoFile(path) as file:
            stored = file.frames()
            for direct in decoded_frames(vae, latent_of(vae, frames, args.size), Ports()):
                found = next(stored, None)
                if found is not None:
                    read += 1
                    errors.append(np.mean((found.astype(float) - direct.numpy()) ** 2))
            read += sum(1 for _ in stored)
        psnr = 10 * np.log10(255**2 / max(np.mean(errors), 1e-10))
        results.append({"frames": frames, "read": read, "psnr": float(psnr), "passed": read == frames})
        say(
            args,
            f"file    {path.name}: {read} of {frames} frames, {path.stat().st_size / 1e6:.2f} MB, PSNR {psnr:.1f} dB",
        )
    return results


def write_for_ever(args: argparse.Namespace) -> None:
    """The victim: one file after another."""
    from wan_core.media.part import Place
    from wan_core.media.write import write_video

    pictures = list(pattern(4, 128))
    place = Place(folder=Path(args.folder), name="victim")
    print("ready", flush=True)
    for _ in count():
        write_video(islice(cycle(pictures), 24), place, settings_of(args))


def kills(args: argparse.Namespace, folder: str) -> dict:
    from wan_core.media.part import Place
    from wan_core.media.read import read_video
    from wan_core.media.write import write_video

    kept = write_video(pattern(8, 128), Place(folder=Path(folder), name="victim"), settings_of(args))
    before, partial, left = kept.read_bytes(), 0, 0
    for number in range(KILLS):
        command = [sys.executable, "-m", "benchmarks.video_file", "--child", "victim", "--folder", folder]
        command += ["--codec", args.codec, "--quality", args.quality]
        victim = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        victim.stdout.readline()
        time.sleep(0.03 + 0.061 * number)
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        left += any(path.suffix == ".part" for path in Path(folder).iterdir())
        partial += sum(len(read_video(p, 99)) != 24 for p in Path(folder).glob("victim_*") if p != kept)
    files = len(list(Path(folder).glob("victim_*"))) - 1
    harmed = kept.read_bytes() != before
    say(
        args,
        f"kills   {KILLS} kills, {left} of them met an unfinished file; {files} files under final names, {partial} of "
        f"them partial; the older file is {'CHANGED' if harmed else 'unharmed'}",
    )
    return {"kills": KILLS, "met": left, "files": files, "partial": partial, "harmed": harmed,
            "passed": not partial and not harmed}  # fmt: skip


def full_disk(args: argparse.Namespace, folder: str) -> dict:
    from wan_core.errors import OutputError
    from wan_core.media.part import Place
    from wan_core.media.write import write_video

    place = Place(folder=Path(folder), name="full")
    size = write_video(pattern(24, 128), place, settings_of(args)).stat().st_size
    before = sorted(os.listdir(folder))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    said = ""
    refused = 0
    for number in range(LIMITS):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size * number // (LIMITS + 1), hard))
        try:
            write_video(pattern(24, 128), place, settings_of(args))
        except OutputError as error:
            refused, said = refused + 1, str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    left = sorted(set(os.listdir(folder)) - set(before))
    say(
        args,
        f"full    {refused} of {LIMITS} points answered by a sentence, {len(left)} files left behind; it says: {said}",
    )
    return {"points": LIMITS, "refused": refused, "left": left, "passed": refused == LIMITS and not left}


def say(args: argparse.Namespace, line: str) -> None:
    if not args.json:
        print(line, flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.video_file", description=__doc__.splitlines()[0])
    parser.add_argument("--vae", choices=("nano", "2.1"), default="nano", help="2.1: real width, random weights")
    parser.add_argument("--frames", type=int, nargs="+", default=[33, 65, 257], help="4n+1 each, the shortest first")
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels")
    parser.add_argument("--codec", default="h264")
    parser.add_argument("--quality", default="highest")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--child", choices=(*JOBS, "victim"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.child == "victim":
        write_for_ever(args)
    if args.child:
        print(json.dumps(child(args)))
        return 0
    say(args, f"{args.codec} at {args.quality}, {args.size}x{args.size}, {args.threads} threads, malloc {MALLOC}")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        results = {"memory": memory(args, folder), "file": played(args, folder), "kills": kills(args, other)}
        results["full_disk"] = full_disk(args, other)
    if args.json:
        print(json.dumps(results, indent=2))
    rows = [*results["memory"], *results["file"], results["kills"], results["full_disk"]]
    return 0 if all(row["passed"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
