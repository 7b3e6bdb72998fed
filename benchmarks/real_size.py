"""Real model sizes through a real ComfyUI: random weights in the official shapes and layouts, from prompt to MP4.

``python3 -m benchmarks.real_size [--jobs NAME ...] [--frames 5] [--steps 2] [--json]``

Writes the files once into ``.cache/real_size`` (tens of gigabytes; ``--clean`` removes them), starts the host on the
CPU for each job, and reports seconds per node, the host's peak resident memory and the video that came out. Random
weights show time and memory, not pictures. Needs what ``scripts/setup_host.py`` sets up.
"""

import argparse
import json
import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from scripts import api_client, demo, setup_host, tiny_models
from scripts.host import Host
from wan_core.configs import DitConfig, Umt5Config, VaeConfig
from wan_core.models.umt5 import Umt5Encoder
from wan_core.models.vace import build_dit
from wan_core.models.vae import WanVAE
from wan_core.variants import VARIANTS
from wan_core.weights.keymaps import to_naming

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "real_size"
SHARD_BYTES = 4_000_000_000
POOL = 1 << 25
"""Random numbers that all weights are cut from: enough to look random to a matrix product."""
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.uint8: "U8"}
STD = 0.02
ROWS = {row.name: row.dit for row in VARIANTS}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: the transformer's shape and layout, and the text encoder's storage."""

    dit: DitConfig
    layout: str
    """``sharded bf16`` (official folder) or ``fp8_scaled`` (one repackaged file)."""
    vae: str = "2.1"
    text: str = "bf16"
    pair: bool = False


JOBS: dict[str, Job] = {
    "t2v-1.3b-fp8": Job(dit=ROWS["t2v-1.3b"], layout="fp8_scaled", text="fp8_scaled"),
    "t2v-1.3b-bf16": Job(dit=ROWS["t2v-1.3b"], layout="sharded bf16"),
    "ti2v-5b-bf16": Job(dit=ROWS["ti2v-5b"], layout="sharded bf16", vae="2.2", text="fp8_scaled"),
    "ti2v-5b-fp8": Job(dit=ROWS["ti2v-5b"], layout="fp8_scaled", vae="2.2", text="fp8_scaled"),
    "t2v-a14b-4-layers": Job(
        dit=replace(ROWS["t2v-a14b"], num_layers=4), layout="fp8_scaled", text="fp8_scaled", pair=True
    ),
}
VAES = {"2.1": VaeConfig(), "2.2": VaeConfig(dim=160, dec_dim=256, z_dim=48, patch=2, shortcuts=True)}


class RandomWeights:
    """Slices of one pool of normal numbers, as any storage type."""

    def __init__(self, seed: int):
        numbers = torch.randn(POOL, generator=torch.Generator().manual_seed(seed))
        self.pools = {dtype: (numbers * STD).to(dtype) for dtype in (torch.float32, torch.bfloat16)}
        self.pools[torch.float8_e4m3fn] = (numbers * 64).clamp(-448, 448).to(torch.float8_e4m3fn)
        self.offset = 0

    def bytes(self, count: int, dtype: torch.dtype):
        """``count`` numbers as runs of raw bytes."""
        pool = self.pools[dtype].view(torch.uint8).numpy()
        left = count * dtype.itemsize
        while left:
            start = self.offset % (len(pool) // 2) // 64 * 64
            run = pool[start : start + left]
            yield memoryview(run)
            left -= len(run)
            self.offset += 7919 * 64


Tensors = dict[str, tuple[tuple[int, ...], torch.dtype]]


def write(path: Path, tensors: Tensors, seed: int, raw: dict[str, bytes]) -> None:
    """A safetensors file of random weights, written tensor by tensor; ``raw`` are byte tensors put in as they are."""
    header, at = {}, 0
    for name, (shape, dtype) in tensors.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    for name, data in raw.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    weights, path_tmp = RandomWeights(seed), path.with_suffix(".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path_tmp.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (shape, dtype) in tensors.items():
            if name.endswith(".scale_weight"):
                file.write(torch.tensor(STD / 64).numpy().tobytes())
                continue
            for run in weights.bytes(torch.Size(shape).numel(), dtype):
                file.write(run)
        for data in raw.values():
            file.write(data)
    path_tmp.replace(path)


def shapes(module: torch.nn.Module, kind: str, naming: str) -> dict[str, tuple[int, ...]]:
    meta: dict[str, Tensor] = to_naming(module.state_dict(), kind, naming)
    return {name: tuple(tensor.shape) for name, tensor in meta.items()}


def stored(sizes: dict[str, tuple[int, ...]], layout: str, linear) -> Tensors:
    """Names and shapes -> storage types; scaled fp8 as ComfyUI's repackaged files have it."""
    if layout != "fp8_scaled":
        return {name: (shape, torch.bfloat16) for name, shape in sizes.items()}
    found: Tensors = {"scaled_fp8": ((2,), torch.float8_e4m3fn)}
    for name, shape in sizes.items():
        found[name] = (shape, torch.float8_e4m3fn if linear(name) else torch.bfloat16)
        if linear(name):
            found[name.removesuffix("weight") + "scale_weight"] = ((), torch.float32)
    return found


def make_dit(job: Job, name: str, seed: int) -> str:
    """The transformer file or folder; returns the name that the loader's list shows."""
    with torch.device("meta"):
        sizes = shapes(build_dit(job.dit), "dit", "official")
    tensors = stored(sizes, job.layout, lambda n: n.startswith("blocks.") and n.endswith(".weight") and "norm" not in n)
    folder = CACHE / "models" / "diffusion_models"
    if job.layout == "fp8_scaled":
        path = folder / f"{name}.safetensors"
        if not path.exists():
            write(path, tensors, seed, {})
        return path.name
    parts: list[dict] = [{}]
    size = 0
    for key, (shape, dtype) in tensors.items():
        size += torch.Size(shape).numel() * dtype.itemsize
        if size > SHARD_BYTES:
            parts.append({})
            size = 0
        parts[-1][key] = (shape, dtype)
    files = [f"diffusion_pytorch_model-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    for number, (file, part) in enumerate(zip(files, parts)):
        if not (folder / name / file).exists():
            write(folder / name / file, part, seed + number, {})
    index = {"metadata": {}, "weight_map": {key: file for file, part in zip(files, parts) for key in part}}
    (folder / name / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return f"{name}/{files[0]}"


def make_text_encoder(layout: str) -> str:
    path = CACHE / "models" / "text_encoders" / f"umt5_xxl_{layout}.safetensors"
    if not path.exists():
        with torch.device("meta"):
            sizes = shapes(Umt5Encoder(Umt5Config()), "umt5", "hf")
        linear = re.compile(r"\.(q|k|v|o|wi_0|wi_1|wo)\.weight$")
        write(path, stored(sizes, layout, linear.search), 7, {"spiece_model": tiny_models.sentencepiece_model()})
    return path.name


def make_vae(version: str) -> str:
    path = CACHE / "models" / "vae" / f"vae_{version}.safetensors"
    if not path.exists():
        with torch.device("meta"):
            sizes = shapes(WanVAE(VAES[version]), "vae", "official")
        write(path, {name: (shape, torch.float32) for name, shape in sizes.items()}, 8, {})
    return path.name


def prompt_for(job: Job, name: str, frames: int, steps: int) -> dict:
    """The text-to-video workflow with this job's files."""
    source = "wan2.2_t2v_a14b" if job.pair else "wan2.1_t2v"
    prompt = json.loads((ROOT / "example_workflows" / "api" / f"{source}.json").read_text(encoding="utf8"))
    files = {"model_name": make_dit(job, f"{name}_high" if job.pair else name, 1)}
    if job.pair:
        files["low_noise_model"] = make_dit(job, f"{name}_low", 2)
    values = {
        "WanCoreLoadModel": files,
        "WanCoreLoadTextEncoder": {"text_encoder_name": make_text_encoder(job.text)},
        "WanCoreLoadVAE": {"vae_name": make_vae(job.vae)},
        "WanCoreEmptyLatent": {"width": 832, "height": 480, "frames": frames},
        "WanCoreSampler": {"steps": steps, "guidance": 5.0},
    }
    for node in prompt.values():
        node["inputs"] |= values.get(node["class_type"], {})
    return prompt


class NodeClock:
    """Seconds per node, from the moments at which the server reports progress."""

    def __init__(self, prompt: dict):
        self.names = {number: node["class_type"] for number, node in prompt.items()}
        self.seconds: dict[str, float] = {}
        self.last = time.monotonic()

    def __call__(self, node: str, value: float, maximum: float) -> None:
        now = time.monotonic()
        name = self.names.get(node, node)
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now


def peak_rss_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def rss_parts(pid: int) -> dict[str, int]:
    """Resident bytes now: private ones, and pages of mapped files, which the system may take back."""
    status = Path(f"/proc/{pid}/status").read_text()
    return {key: int(re.search(rf"{key}:\s+(\d+) kB", status)[1]) * 1024 for key in ("RssAnon", "RssFile")}


def run(name: str, frames: int, steps: int) -> dict:
    job = JOBS[name]
    prompt = prompt_for(job, name, frames, steps)
    env = setup_host.find_host()
    with Host(env, CACHE / "host", models=CACHE / "models") as host:
        idle = peak_rss_bytes(host.process.pid)
        clock, began = NodeClock(prompt), time.monotonic()
        history = api_client.run(host.url, prompt, on_progress=clock)
        seconds = time.monotonic() - began
        peak, parts = peak_rss_bytes(host.process.pid), rss_parts(host.process.pid)
        (video,) = api_client.download(host.url, history, CACHE / "output")
    clip = demo.Clip(width=832, height=480, frames=frames, steps=steps)
    return {
        "job": name, **asdict(job), "seconds": round(seconds, 1),
        "seconds_per_node": {key: round(value, 1) for key, value in clock.seconds.items()},
        "idle_rss_bytes": idle, "peak_rss_bytes": peak, **parts, "video": read_back(video, clip),
    }  # fmt: skip


def read_back(video: Path, clip: demo.Clip) -> dict:
    """What PyAV finds in the file."""
    import av

    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        count = sum(1 for _ in container.decode(stream))
        found = {"frames": count, "width": stream.width, "height": stream.height, "fps": float(stream.average_rate)}
    wanted = {"frames": clip.frames, "width": clip.width, "height": clip.height}
    if any(found[key] != value for key, value in wanted.items()):
        raise SystemExit(f"{video.name}: {found}, asked for {wanted}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.real_size", description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS), metavar="NAME")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--clean", action="store_true", help="remove the files and stop")
    args = parser.parse_args()
    if args.clean:
        shutil.rmtree(CACHE, ignore_errors=True)
        return
    results = []
    for name in args.jobs:
        results.append(run(name, args.frames, args.steps))
        if not args.json:
            one = results[-1]
            print(f"{name}: {one['seconds']} s, peak RSS {one['peak_rss_bytes'] / 1e9:.2f} GB, {one['video']}")
            print("   " + ", ".join(f"{key} {value} s" for key, value in one["seconds_per_node"].items()), flush=True)
    if args.json:
        print(json.dumps(results, default=str))


if __name__ == "__main__":
    sys.exit(main())
