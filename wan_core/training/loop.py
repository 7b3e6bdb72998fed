"""The loop that every training shares: steps, averages, states on disk, the loss curve, samples, and how it ends."""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import TrainingError, first_few
from ..runtime.ports import Ports
from .curve import draw_curve
from .optim import Average, Optimizer, OptimSettings, lr_at
from .state import RunState, load_state, save_state, states

log = logging.getLogger(__name__)


Watch = Callable[[list[tuple[int, float]]], None]
"""Told the points of the loss curve, at each line of the log and at the end."""


class Task(Protocol):
    """What is trained, and on what."""

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Everything that is trained, by name."""
        ...

    def loss(self, step: int, part: int) -> Tensor:
        """The loss of one batch. The same ``step`` and ``part`` (of an accumulated step) always draw the same batch,
        noise and captions, which is what makes a resumed run equal to an unbroken one."""
        ...

    def export(self, weights: Mapping[str, Tensor], folder: Path) -> list[Path]:
        """Write model files of these weights into ``folder``."""
        ...

    def sample(self, weights: Mapping[str, Tensor], path: Path) -> str | None:
        """Show what these weights can do, as a file beginning with ``path``; returns a line for the log."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """``steps`` in all; the rest is how often (in steps, 0: never)."""

    steps: int
    accumulate: int = 1
    save_every: int = 250
    sample_every: int = 500
    log_every: int = 50


def train(
    task: Task,
    folder: Path,
    loop: LoopSettings,
    optim: OptimSettings,
    settings: dict,
    ports: Ports | None = None,
    watch: Watch = lambda losses: None,
) -> list[Path]:
    """Train to the end, from the newest state in ``folder`` if there is one. The caller holds the folder's lock.

    Args:
        task: what to train.
        folder: gets states, ``loss.png``, samples and, at the end, the model files.
        settings: everything else that the result depends on; a state made with others is refused.
        ports: a host's cancel and progress.
        watch: told the loss curve as it grows.

    Returns:
        The model files, made of the averaged weights.

    Raises:
        TrainingError: the loss is not finite (the last good state is kept), the disk is full, other settings.
    """
    ports = Ports() if ports is None else ports
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(task, folder, loop, optim, settings | asdict(optim) | {"accumulate": loop.accumulate})
    run.resume()
    watch(run.losses)
    try:
        while run.step < loop.steps:
            ports.check_cancel()
            if run.one_step():
                watch(run.losses)
            ports.progress(run.step, loop.steps, None)
    except TrainingError:
        raise  # a loss that is no number, or a full disk: the states that are there are the good ones
    except BaseException:
        run.save_if_whole()  # Ctrl-C, a host's cancel, no memory: go on from here next time
        raise
    run.save_if_whole()
    draw_curve(run.losses, folder / "loss.png")  # a run that was killed behind its last state has an older one
    return task.export(run.average.values, folder)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the end of what is inside: a step that is half taken could not be saved."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: wanted.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if wanted:
        raise KeyboardInterrupt


class _Run:
    """Where a run is."""

    def __init__(self, task: Task, folder: Path, loop: LoopSettings, optim: OptimSettings, settings: dict):
        self.task, self.folder, self.loop, self.optim, self.settings = task, folder, loop, optim, settings
        self.parameters = task.parameters()
        self.optimizer = Optimizer(self.parameters, optim)
        self.average = Average(self.parameters, optim.ema)
        self.losses: list[tuple[int, float]] = []
        self.recent: list[float] = []
        self.step, self.seconds, self.last_logged = 0, 0.0, 0
        self.saved, self.whole = False, True
        self.began = self.last_log = time.monotonic()

    def resume(self) -> None:
        state = load_state(self.folder, self.settings)
        if state is None:
            return
        stored = {name.split(":", 1)[1] for name in state.tensors if name.startswith("now:")}
        if stored != set(self.parameters):
            raise TrainingError(
                f"{self.folder} holds a run of other networks ({first_few(sorted(stored ^ set(self.parameters)))}). "
                "Use the same options, or another folder."
            )
        parts: dict[str, dict[str, Tensor]] = {"now": {}, "average": {}, "optimizer": {}}
        for full, value in state.tensors.items():
            part, name = full.split(":", 1)
            parts[part][name] = value
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(parts["now"][name])
                self.average.values[name].copy_(parts["average"][name])
        self.optimizer.load(parts["optimizer"])
        self.step, self.seconds, self.saved = state.step, state.seconds, True
        self.losses, self.recent, self.last_logged = state.losses, state.recent, state.step
        log.info("going on from step %d (%.0f s of training behind it)", self.step, self.seconds)

    def one_step(self) -> bool:
        """Take a step; tells whether the curve has a new point."""
        total = 0.0
        for part in range(self.loop.accumulate):
            loss = self.task.loss(self.step, part) / self.loop.accumulate
            total += float(loss.detach())
            self._check_finite(total, "loss")
            loss.backward()
        norm = self.optimizer.clip()
        self._check_finite(norm, "gradient")
        with uninterrupted():
            self.whole = False
            self.optimizer.step(lr_at(self.step, self.loop.steps, self.optim))
            self.average.update(self.parameters, self.step)
            self.step += 1
            self.saved, self.whole = False, True
        self.recent.append(total)
        logged = self._due(self.loop.log_every)
        if logged:
            self._log(norm)
        if self._due(self.loop.save_every):
            self.save()
        if self._due(self.loop.sample_every):
            said = self.task.sample(self.average.values, self.folder / f"sample-{self.step:08d}")
            log.info("step %d: %s", self.step, said)
        return logged

    def _check_finite(self, value: float, what: str) -> None:
        if math.isfinite(value):
            return
        kept = states(self.folder)
        good = f"the last good state is {kept[-1]}" if kept else "no state had been written yet"
        raise TrainingError(
            f"the {what} became {value} at step {self.step + 1}. Nothing of this step was kept; {good}. Train anew "
            "under another name or folder with a lower learning rate or in fp32, or look at the data."
        )

    def save_if_whole(self) -> None:
        """Write a state where there is none of this step yet and the step is not half taken."""
        if self.whole and not self.saved:
            self.save()

    def save(self) -> None:
        groups = {
            "now": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "average": self.average.values,
            "optimizer": self.optimizer.state(),
        }
        tensors = {f"{part}:{name}": value for part, values in groups.items() for name, value in values.items()}
        save_state(
            self.folder,
            RunState(
                step=self.step,
                settings=self.settings,
                tensors=tensors,
                losses=self.losses,
                recent=self.recent,
                seconds=self._elapsed(),
            ),
        )
        draw_curve(self.losses, self.folder / "loss.png")
        self.saved = True

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.began

    def _log(self, norm: float) -> None:
        mean = sum(self.recent) / len(self.recent)
        self.losses.append((self.step, mean))
        now = time.monotonic()
        pace = (now - self.last_log) / (self.step - self.last_logged)
        self.last_log, self.last_logged = now, self.step
        left = int(pace * (self.loop.steps - self.step))
        log.info(
            "step %d/%d  loss %.4f  gradient %.2f  %.0f ms/step  %d:%02d:%02d left",
            self.step, self.loop.steps, mean, norm, pace * 1000, left // 3600, left // 60 % 60, left % 60,
        )  # fmt: skip
        self.recent.clear()
