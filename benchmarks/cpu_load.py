"""What the pack costs before it computes: its import in ComfyUI (C8), and loading a 1.3B file (C9).

``benchmarks.cpu`` calls :func:`import_cost` and :func:`load_cost`. Each figure comes from a fresh process
(``cpu_load_child.py``), so that nobody finds anything warm but the page cache.
"""

import json
import os
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .cpu_child import OFFLINE, ROOT, Child, Places, place

CHILD = Path(__file__).with_name("cpu_load_child.py")
IMPORT_S = 0.25
RSS_OF_FILE = 1.05
TIME_OF_READ = 1.1
LOADERS = {
    "page-cache read": "ours",
    "ours": "ours",
    "diffusers, from_single_file": "diffusers",
    "diffusers, from_pretrained": "diffusers",
    "ComfyUI": "comfyui",
    "ComfyUI, bf16": "comfyui",
}


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Figures against fixed limits, as lines of text; ``failure`` is the verdict where one is broken."""

    title: str
    figures: dict[str, str]
    failure: str = ""
    values: dict[str, dict] | None = None

    @property
    def verdict(self) -> str:
        return self.failure or "ok"

    def as_json(self) -> dict:
        return asdict(self) | {"verdict": self.verdict}


def ask(host: str, places: Places, folder: Path, job: str, **more: str) -> dict:
    """One answer of a fresh process. Raises :class:`Child.Missing` with what it said last."""
    python, path = place(host, places)
    spec = folder / "load.json"
    spec.write_text(json.dumps({"path": path, "job": job, "threads": places.threads, **more}), encoding="utf8")
    environment = os.environ | OFFLINE | {"OMP_NUM_THREADS": str(places.threads)}
    done = subprocess.run([python, "-I", CHILD, spec], capture_output=True, text=True, env=environment, cwd=folder)
    if done.returncode:
        raise Child.Missing(done.stderr.strip()[-300:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def import_cost(places: Places, folder: Path, repeats: int) -> Iterator[Bound]:
    """C8: seconds and memory that the pack adds to a ComfyUI that is up, and whether it pulls a compiler in."""
    title = "C8 import of the pack in ComfyUI"
    try:
        found = [ask("comfyui", places, folder, "import pack", pack=str(ROOT)) for _ in range(max(3, repeats))]
    except Child.Missing as reason:
        yield Bound(title=title, figures={}, failure=f"NOT MEASURED: {reason}")
        return
    seconds = [one["seconds"] for one in found]
    compilers = sorted({name for one in found for name in one["compilers"]})
    failure = "" if min(seconds) <= IMPORT_S else f"MISS: {min(seconds):.3f} s, allowed {IMPORT_S}"
    failure = f"MISS: it imports {', '.join(compilers)}" if compilers else failure
    figures = {
        "seconds added (median, min)": f"{statistics.median(seconds):.3f}, {min(seconds):.3f} (allowed {IMPORT_S})",
        "resident memory added": f"{statistics.median(one['rss_added'] for one in found) / 1e6:.1f} MB",
        "ComfyUI without the pack": f"{statistics.median(one['rss_before'] for one in found) / 1e6:.0f} MB",
        "modules added": str(found[0]["modules"]),
        "torch.compile, triton": ", ".join(compilers) or "none imported",
    }
    yield Bound(title=title, figures=figures, failure=failure, values={"runs": dict(enumerate(found))})


def load_cost(places: Places, folder: Path, repeats: int) -> Iterator[Bound]:
    """C9: from the path of a file to weights of which every byte has been read; peak of resident memory."""
    files = _write_files(folder)
    size = files["official"].stat().st_size
    runs: dict[str, list[dict]] = {name: [] for name in LOADERS}
    missing: dict[str, str] = {}
    for repeat in range(max(1, repeats) + 1):
        order = list(LOADERS) if repeat % 2 == 0 else list(reversed(LOADERS))
        for name in (one for one in order if one not in missing):
            try:
                got = ask(LOADERS[name], places, folder, name, **{key: str(path) for key, path in files.items()})
            except Child.Missing as reason:
                missing[name] = str(reason)
                continue
            if repeat:  # the first turn fills the page cache
                runs[name].append(got)
    rows = {
        name: {
            "seconds": statistics.median(one["seconds"] for one in got),
            "best": min(one["seconds"] for one in got),
            "rss_of_file": max(one["rss_added"] for one in got) / size,
            "bytes_of_file": got[0]["bytes"] / size,
        }
        for name, got in runs.items()
        if got and name not in missing
    }
    yield judge_load(rows, missing, size)


def judge_load(rows: dict[str, dict], missing: dict[str, str], size: int) -> Bound:
    """Limits on ours: memory by the file, time by a plain read of the cached file."""
    title = f"C9 load of a {size / 1e9:.2f} GB file, every byte touched"
    figures = {
        name: f"{row['seconds']:.2f} s (best {row['best']:.2f}), resident memory {row['rss_of_file']:.3f} x the file, "
        f"weights {row['bytes_of_file']:.3f} x"
        for name, row in rows.items()
    } | {name: f"not measured: {reason}" for name, reason in missing.items()}
    if not {"ours", "page-cache read"} <= set(rows):
        return Bound(title=title, figures=figures, failure="NOT MEASURED: ours or the plain read failed")
    ours, read = rows["ours"], rows["page-cache read"]
    ratio = ours["seconds"] / read["seconds"]
    figures["ours / plain read"] = f"{ratio:.3f} (allowed {TIME_OF_READ})"
    broken = []
    if ours["bytes_of_file"] < 0.99:
        broken.append(f"only {ours['bytes_of_file']:.2f} of the bytes were touched")
    if ours["rss_of_file"] > RSS_OF_FILE:
        broken.append(f"memory {ours['rss_of_file']:.3f} x the file, allowed {RSS_OF_FILE}")
    if ratio > TIME_OF_READ:
        broken.append(f"time {ratio:.2f} x the read, allowed {TIME_OF_READ}")
    return Bound(title=title, figures=figures, failure=f"MISS: {'; '.join(broken)}" if broken else "", values=rows)


def _write_files(folder: Path) -> dict[str, Path]:
    """The same random 1.3B transformer in official names, and as a folder of diffusers."""
    import torch

    from wan_core.models.dit import WanDiT

    from .cpu_rows import WAN_1B
    from .real_size import shapes, write

    with torch.device("meta"):
        network = WanDiT(WAN_1B)
    made = {}
    for naming, path in (
        ("official", folder / "wan2.1_t2v_1.3B_bf16.safetensors"),
        ("diffusers", folder / "transformer" / "diffusion_pytorch_model.safetensors"),
    ):
        write(path, {n: (shape, torch.bfloat16) for n, shape in shapes(network, "dit", naming).items()}, 1, {})
        made[naming] = path
    config = {
        "_class_name": "WanTransformer3DModel", "num_attention_heads": WAN_1B.num_heads, "attention_head_dim": 128,
        "in_channels": 16, "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "ffn_dim": WAN_1B.ffn_dim,
        "num_layers": WAN_1B.num_layers, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "eps": 1e-6,
        "patch_size": [1, 2, 2],
    }  # fmt: skip
    (folder / "transformer" / "config.json").write_text(json.dumps(config), encoding="utf8")
    return made
