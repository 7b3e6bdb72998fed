"""What a long-lived ComfyUI keeps of our runs, on the CPU: drift, ``POST /free``, and the peak of a pair.

``python3 -m benchmarks.host_drift [--host 0.33.0] [--runs 60] [--only drift free pair] [--malloc fixed] [--json]``

drift: jobs on one server in turns (two tiny models, our nodes and native ones, a new seed each time), and as many on a
    fresh server with native nodes alone. After each job the server's USS is read (memory that no other process shares).
    Least-squares slope over the last two thirds (of the means of four jobs, one of each kind), ours and native less
    native alone: at most 64 kB a run. ``--malloc fixed``: glibc gives blocks from 64 kB on back at once, so what grows
    is what is held; ``default`` keeps freed blocks, and one step of 8 or 40 MB of those, in either direction, is more
    than the limit over 40 runs.
free: two models of the 1.3B's width in one job, then ``POST /free``. USS that goes, of what they had brought: at least
    95 %. Once as the host reads files (mapped), once with ``--disable-mmap``; native nodes beside it, not judged.
pair: both experts of an A14B with few layers and real widths, one step each. Peak resident memory of the server: at
    most the bytes of its files and 3 GB.

Ends with 1 where a row misses. Linux only (``/proc``). Needs what ``scripts/setup_host.py`` sets up, and 8 GB of disk.
"""

import argparse
import ctypes
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts import api_client, setup_host
from scripts.host import Host, stop_on_sigterm

from . import host_drift_jobs as jobs
from .real_size import peak_rss_bytes

CACHE = Path(__file__).parent.parent / ".cache"
PARTS = ("drift", "free", "pair")
DRIFT_KB = 64.0
GIVEN_BACK = 0.95
PAIR_BYTES = 3_000_000_000
JUDGED = 2 / 3
"""Of a server's runs, the last ones: what it fills once (libraries, pools, bounded caches) is full by then."""
TURN = 4
"""Jobs until the same kind comes again: two models, ours and native."""
WIDE_LAYERS = 2
PAIR_LAYERS = 4
MIN_RUNS = 12
IDLE_S, SETTLED_S, PATIENCE_S, READ_S = 1.0, 3.0, 30.0, 0.25
SETTLED_BYTES = 256 * 1024
MALLOC = {"fixed": {"MALLOC_MMAP_THRESHOLD_": str(64 * 1024)}, "default": {}}
"""What the servers' environment has on top."""
PR_SET_THP_DISABLE = 41
"""Of Linux's prctl; children inherit it. With huge pages memory comes in steps of 2 MB, filled or not."""
LIBRARY = re.compile(r"\.so(\.[0-9.]+)?$|/bin/python[0-9.]*$")
"""How a mapping of a program's code ends."""
FULL_WIDTH_VAE = {"0.3.64"}
"""Hosts whose VAE loader knows the official width only."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure and its verdict; ``passed`` is None where it is there to compare with."""

    host: str
    part: str
    name: str
    value: float
    unit: str
    limit: str
    passed: bool | None
    detail: dict


# --- arithmetic ------------------------------------------------------------------------------------------------------


def uss_bytes(smaps: str) -> int:
    """Bytes of a process that no other process shares, from the text of ``/proc/<pid>/smaps``.

    Unchanged pages of shared libraries are left out: they are private or not as other servers come and go.
    """
    kilobytes, library = 0, False
    for line in smaps.splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):  # a mapping begins: range, permissions, offset, device, inode, path
            library = bool(LIBRARY.search(line))
        elif name in (("Anonymous:",) if library else ("Private_Clean:", "Private_Dirty:")):
            kilobytes += int(rest.split()[0])
    return kilobytes * 1024


def slope(values: Sequence[float]) -> float:
    """Least-squares growth from one value to the next."""
    middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
    over = sum((i - middle) ** 2 for i in range(len(values)))
    return sum((i - middle) * (value - mean) for i, value in enumerate(values)) / over


def growth_kb(uss: Sequence[int], last: int) -> float:
    """kB a run over the ``last`` runs, from the means of whole turns: what one kind of job holds more than the next
    would tilt a line through the runs themselves."""
    values = uss[-last:]
    turns = [sum(values[i : i + TURN]) / TURN for i in range(0, last, TURN)]
    return slope(turns) / TURN / 1024


def judged_runs(runs: int) -> int:
    """How many of the last runs are judged: two thirds, in whole turns."""
    return round(runs * JUDGED) // TURN * TURN


def drift_row(host: str, mixed: Sequence[int], native: Sequence[int]) -> Row:
    """USS in bytes after each run of the two servers -> kB a run that our nodes add."""
    last = judged_runs(len(mixed))
    both, alone = (growth_kb(values, last) for values in (mixed, native))
    return Row(
        host=host, part="drift", name=f"both less native, last {last} of {len(mixed)} runs", value=both - alone,
        unit="kB a run", limit=f"<= {DRIFT_KB:g}", passed=both - alone <= DRIFT_KB,
        detail={"both_kb": both, "native_kb": alone, "both_uss": list(mixed), "native_uss": list(native)},
    )  # fmt: skip


def free_row(host: str, name: str, levels: dict[str, int], file_bytes: int, judged: bool) -> Row:
    """``levels``: USS in bytes ``before`` the models, with them ``loaded``, and ``after`` /free.

    Models that brought less than nine tenths of their files were not there to be given back: a miss.
    """
    brought = levels["loaded"] - levels["before"]
    there = brought >= 0.9 * file_bytes
    share = (levels["loaded"] - levels["after"]) / brought if brought > 0 else 0.0
    return Row(
        host=host, part="free", name=f"given back, {name}", value=100 * share, unit="%", limit=f">= {GIVEN_BACK:.0%}",
        passed=(there and share >= GIVEN_BACK) if judged else None, detail={**levels, "file_bytes": file_bytes},
    )  # fmt: skip


def pair_row(host: str, peak: int, idle: int, file_bytes: int) -> Row:
    limit = file_bytes + PAIR_BYTES
    return Row(
        host=host, part="pair", name="peak RSS", value=peak / 1e9, unit="GB", limit=f"<= {limit / 1e9:.2f}",
        passed=peak <= limit, detail={"peak": peak, "idle": idle, "file_bytes": file_bytes},
    )  # fmt: skip


def exit_code(rows: Sequence[Row]) -> int:
    return int(any(row.passed is False for row in rows))


# --- servers ---------------------------------------------------------------------------------------------------------


class Bench:
    """One version of the host; its servers begin in fresh folders and share one models tree."""

    def __init__(self, version: str, folder: Path, say: Callable[[str], None]):
        self.env = setup_host.find_host(version)
        self.version, self.folder, self.say = self.env.version, folder, say
        self.models = folder / "models"
        self.files = jobs.tiny_files(self.models, self.version in FULL_WIDTH_VAE)

    def server(self, *flags: str) -> Host:
        return Host(self.env, Path(tempfile.mkdtemp(dir=self.folder)), models=self.models, flags=flags)

    def drift(self, runs: int) -> list[Row]:
        both = [(make, role) for role in jobs.MODELS for make in (jobs.ours, jobs.native)]
        return [drift_row(self.version, self._series("both", both, runs), self._series("native", both[1::2], runs))]

    def _series(self, name: str, kinds: list, runs: int) -> list[int]:
        """USS after each of so many jobs, the kinds in turns, on a fresh server."""
        found, began = [], time.monotonic()
        with self.server() as host:
            for number in range(1, runs + 1):
                make, role = kinds[(number - 1) % len(kinds)]
                run(host, make(self.files, role, number))
                found.append(uss(host))
        self.say(f"{self.version} drift, {name}: {runs} runs in {time.monotonic() - began:.0f} s")
        return found

    def free(self) -> list[Row]:
        files = self.files | jobs.wide_files(self.models, WIDE_LAYERS)
        return [
            self._free("ours, files mapped", files, (), by_host=False),
            self._free("ours, --disable-mmap", files, ("--disable-mmap",), by_host=False),
            self._free("native, for comparison", files, (), by_host=True),
        ]

    def _free(self, name: str, files: jobs.Files, flags: tuple[str, ...], *, by_host: bool) -> Row:
        """A tiny model goes first, so that libraries and what a first job fills are there before."""
        wide = ("wide_a", "wide_b")
        with self.server(*flags) as host:
            run(host, jobs.several(files, ("t2v",), 1, by_host=by_host))
            levels = {"before": self._freed(host)}
            run(host, jobs.several(files, wide, 2, by_host=by_host))
            levels["loaded"] = settled(host)
            levels["after"] = self._freed(host)
        self.say(f"{self.version} free, {name}: {levels}")
        size = sum(files[role].stat().st_size for role in wide)
        return free_row(self.version, name, levels, size, judged=not by_host)

    def _freed(self, host: Host) -> int:
        """USS after ``POST /free``. The host may miss it for 10 s where it comes just as a job ends."""
        time.sleep(IDLE_S)
        host.post("/free", {"unload_models": True, "free_memory": True})
        return settled(host)

    def pair(self) -> list[Row]:
        files = self.files | jobs.pair_files(self.models, PAIR_LAYERS)
        used = [files[role] for role in ("pair_high", "pair_low", "text_encoder", "vae")]
        with self.server() as host:
            idle = peak_rss_bytes(host.process.pid)
            run(host, jobs.pair(files))
            peak, log = peak_rss_bytes(host.process.pid), host.log()
        missing = [file.name for file in used if f"{file.name}: " not in log]
        if missing:
            raise SystemExit(f"The job did not read {' and '.join(missing)}, so the pair's peak says nothing.\n{log}")
        self.say(f"{self.version} pair: peak {peak / 1e9:.2f} GB, idle {idle / 1e9:.2f} GB")
        return [pair_row(self.version, peak, idle, sum(file.stat().st_size for file in used))]


def steady_memory(malloc: str) -> None:
    """For the servers that are started from here: how they allocate, and no huge pages with ``fixed``."""
    os.environ.update(MALLOC[malloc])
    if malloc == "fixed":
        ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)


def run(host: Host, prompt: dict) -> None:
    try:
        history = api_client.run(host.url, prompt)
    except api_client.JobError as reason:
        raise SystemExit(f"A job failed: {reason}\n{host.log_tail()}") from reason
    if not api_client.saved_files(history):
        raise SystemExit(f"A job saved no video.\n{host.log_tail()}")


def uss(host: Host) -> int:
    return uss_bytes(Path(f"/proc/{host.process.pid}/smaps").read_text(errors="replace"))


def settled(host: Host) -> int:
    """USS once it has stayed within 256 kB for 3 s, or after half a minute."""
    began, since = time.monotonic(), time.monotonic()
    value = uss(host)
    while time.monotonic() - since < SETTLED_S and time.monotonic() - began < PATIENCE_S:
        time.sleep(READ_S)
        now = uss(host)
        if abs(now - value) > SETTLED_BYTES:
            value, since = now, time.monotonic()
    return uss(host)


# --- the command -----------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.host_drift", description=__doc__.splitlines()[0])
    parser.add_argument("--host", nargs="+", choices=setup_host.HOSTS, default=list(setup_host.HOSTS))
    parser.add_argument("--runs", type=int, default=60, help="jobs on each of the two servers (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument(
        "--malloc", choices=MALLOC, default="fixed", help="how the servers allocate (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    args = parser.parse_args(argv)
    if args.runs < MIN_RUNS:
        parser.error(f"--runs {args.runs}: a slope takes at least {MIN_RUNS} runs.")
    return args


def line(row: Row) -> str:
    verdict = {True: "ok", False: "MISS", None: "not judged"}[row.passed]
    text = f"{row.host:8} {row.part:6} {row.name:42} {row.value:8.2f} {row.unit:8} {row.limit:>9}  {verdict}"
    if row.part == "drift":
        text += f" (both {row.detail['both_kb']:.1f}, native {row.detail['native_kb']:.1f})"
    return text


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    stop_on_sigterm()
    steady_memory(args.malloc)
    rows: list[Row] = []
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="host_drift_", dir=CACHE) as folder:
        for version in args.host:
            bench = Bench(version, Path(folder), lambda text: print(text, file=sys.stderr, flush=True))
            for part in args.only:
                rows += bench.drift(args.runs) if part == "drift" else getattr(bench, part)()
    if args.json:
        print(json.dumps({"malloc": args.malloc, "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        print("\n".join(line(row) for row in rows))
    return exit_code(rows)


if __name__ == "__main__":
    sys.exit(main())
