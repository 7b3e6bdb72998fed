"""Runs one row of the table, and judges it: verdict, words, time, memory, and that nothing was executed or written."""

import codecs
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wan_core.errors import CapacityError, WanError
from wan_core.runtime.memory import CHUNKS
from wan_core.runtime.ports import PlainMemory, Ports

from .pack import Run

MAX_CPU_S = 1.0
MAX_MB = 256
ACT_EVENTS = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn",
    "socket.connect", "socket.bind", "socket.__new__", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link",
    "os.symlink", "os.truncate", "shutil.", "ctypes.", "webbrowser.", "urllib.", "exec", "compile", "import",
)  # fmt: skip
"""Audit events (or their beginnings) that no row may cause; opening a file to write counts too."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that a person can plug in. ``make`` prepares it and returns the act itself, which is measured."""

    id: str
    make: Callable[["Rig"], Callable[[], object]]
    error: type[WanError] | None
    """None: it is accepted."""
    words: tuple[str, ...]
    """What the message holds; of what is accepted, what the notices hold."""
    sides: tuple[str, ...] = ()
    """Of a wrong pair of an editing or control task: what its one sentence calls each of the two ..."""
    fix: str = ""
    """... and what to do. It is said before a block is walked, whether it is refused or only told."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What happened, and everything that is wrong with it (nothing: as expected)."""

    row: Row
    outcome: str
    said: str
    cpu_s: float
    mb: float | None
    problems: tuple[str, ...]


class Rig(PlainMemory):
    """A scratch folder, and ports that note what is asked of the host."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder
        self.canary = folder / "canary"
        self.notices: list[str] = []
        self.early: list[str] = []
        """Those that were told before anything was computed."""
        self.placed = 0
        self.steps = 0
        self.blocks = 0
        self.memory_bytes = 2**62
        self.ports = Ports(memory=self, notify=self._notify, progress=self._progress, check_cancel=self._walk)

    @property
    def has_begun(self) -> bool:
        return bool(self.placed or self.steps or self.blocks)

    def _notify(self, sentence: str) -> None:
        self.notices.append(sentence)
        if not self.has_begun:
            self.early.append(sentence)

    def forget(self) -> None:
        """What was computed until here was made ready, and does not count."""
        self.placed = self.steps = self.blocks = 0

    def _walk(self) -> None:
        """What is asked before each block."""
        self.blocks += 1

    def _progress(self, done: int, total: int, x0: object) -> None:
        self.steps += 1

    def place(self, weights, activation_bytes: int, **more):
        """As a host's memory: refuses what cannot fit."""
        if activation_bytes > self.memory_bytes:
            raise CapacityError(f"{weights.name} needs {activation_bytes} bytes. Use fewer frames or a smaller size.")
        self.placed += 1
        return super().place(weights, activation_bytes, **more)

    def plan(self, weights, sizes, work, budget_bytes):
        """As a host's memory: refuses what cannot fit however it is cut."""
        least = work.bytes_at(CHUNKS[-1], False)
        if least > self.memory_bytes:
            raise CapacityError(f"{weights[0].name} needs {least} bytes. Use fewer frames or a smaller size.")
        return super().plan(weights, sizes, work, budget_bytes)

    def write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path


_watched: list[str] | None = None


def _hook(event: str, args: tuple) -> None:
    if _watched is None:
        return
    if event == "open":
        mode, flags = args[1], args[2] if isinstance(args[2], int) else 0
        if (isinstance(mode, str) and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _watched.append(f"open {args[0]} to write")
    elif event.startswith(ACT_EVENTS):
        _watched.append(f"{event} {str(args)[:80]}")


sys.addaudithook(_hook)


@contextmanager
def watched() -> Iterator[list[str]]:
    """Notes what is executed, imported or written inside."""
    global _watched
    events = _watched = []
    try:
        yield events
    finally:
        _watched = None


def _status_mb(field: str) -> float:
    text = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{field}:"))) / 1024


@contextmanager
def peak_memory(result: list[float]) -> Iterator[None]:
    """The peak of the resident memory over what there was, in MB; nothing where the system does not tell it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_mb("VmRSS")
    except OSError:
        yield
        return
    yield
    result.append(_status_mb("VmHWM") - before)


def run(row: Row, folder: Path) -> Verdict:
    """Prepare, act and judge. What is wrong by its time alone gets a second chance: threads that spin
    and caches that are cold count too. What a first time costs a process is not seen so."""
    verdict = _judged(row, folder)
    if verdict.cpu_s >= MAX_CPU_S and len(verdict.problems) == 1:
        verdict = _judged(row, folder.with_name(f"{folder.name} again"))
    return verdict


def _judged(row: Row, folder: Path) -> Verdict:
    folder.mkdir(parents=True)
    rig = Rig(folder)
    Run.ports = rig.ports
    act = row.make(rig)
    peak: list[float] = []
    outcome, said = "accepted", ""
    with peak_memory(peak), watched() as events:
        began = time.process_time()
        try:
            act()
        except Exception as error:  # noqa: BLE001 (whatever it is, it is judged)
            outcome, said = type(error).__name__, str(error)
        cpu_s = time.process_time() - began
    said = said or _one_sentence(row, rig) or " ".join(rig.notices)
    mb = peak[0] if peak else None
    problems = [*_wrong_answer(row, rig, outcome, said), *_cost(cpu_s, mb), *events]
    if rig.canary.exists():
        problems.append("the file ran code")
    return Verdict(row=row, outcome=outcome, said=said, cpu_s=cpu_s, mb=mb, problems=tuple(problems))


def _one_sentence(row: Row, rig: Rig) -> str:
    """Of a wrong pair that is run: what was told before the first block and says it all."""
    return next((one for one in rig.early if row.sides and all(word in one for word in row.words)), "")


def _wrong_answer(row: Row, rig: Rig, outcome: str, said: str) -> Iterator[str]:
    expected = "accepted" if row.error is None else row.error.__name__
    if outcome != expected:
        yield f"{outcome}, expected {expected}"
    yield from (f"{word!r} is not said" for word in row.words if word not in said)
    if row.error is not None and rig.has_begun:
        yield f"late: {rig.placed} times weights were asked for, {rig.blocks} blocks and {rig.steps} steps were run"
    if row.error is None and row.sides and not _one_sentence(row, rig):
        yield "no one sentence before the first block says it all"
    if row.error is not None and not said.endswith((".", "OUT.safetensors")):
        yield "no whole sentence"


def _cost(cpu_s: float, mb: float | None) -> Iterator[str]:
    if cpu_s >= MAX_CPU_S:
        yield f"took {cpu_s:.2f} s"
    if mb is not None and mb > MAX_MB:
        yield f"took {mb:.0f} MB"


def warm_up(folder: Path) -> None:
    """Whatever libraries import or compile at their first use, before somebody listens."""
    from . import warm

    codecs.lookup("cp437")  # of the names in a zip archive
    for number, row in enumerate(warm.ROWS):
        run(row, folder / f"warm{number}")
