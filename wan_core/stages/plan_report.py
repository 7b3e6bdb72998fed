"""What is known of a run before it begins, in words and as plain values."""

from dataclasses import asdict, dataclass

from ..errors import gigabytes


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage of a run: what it takes and how long. Bytes and seconds."""

    name: str
    files: tuple[str, ...]
    device: str
    on_card: bool
    weight_bytes: int
    """Of the files, as stored."""
    work_bytes: int
    peak_bytes: int
    """On the device, weights and work: with streamed weights less than the sum of the two above."""
    budget_bytes: int
    """What there is of that: on a card the runtime's budget, else the host's memory."""
    host_mapped_bytes: int
    """Pages of files, which the system can drop and read again."""
    host_private_bytes: int
    placement: str
    seconds: float
    problem: str = ""
    """Why it cannot be done; empty: it can."""
    warning: str = ""
    """What may go wrong, where the estimate is too rough to refuse the work by it."""

    @property
    def host(self) -> str:
        """Host memory in words."""
        return f"{gigabytes(self.host_mapped_bytes)} of files mapped + {gigabytes(self.host_private_bytes)}"

    @property
    def text(self) -> str:
        """One line."""
        if self.problem:
            return f"{self.name} on {self.device}: cannot run. {self.problem}"
        peak = f"{gigabytes(self.peak_bytes)} of {gigabytes(self.budget_bytes)}"
        line = (
            f"{self.name} on {self.device}: {peak} at the peak (files {gigabytes(self.weight_bytes)}, work "
            f"{gigabytes(self.work_bytes)}), host memory {self.host} private, about {duration(self.seconds)}. "
            f"{self.placement}"
        )
        return f"{line} {self.warning}".rstrip()


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run, stage by stage, and what does not fit together."""

    title: str
    files: tuple[str, ...]
    size: str
    settings: str
    stages: tuple[StagePlan, ...]
    problems: tuple[str, ...]
    """What will be refused, each with what to do."""
    notes: tuple[str, ...]
    basis: str
    """Where the seconds come from."""

    @property
    def is_possible(self) -> bool:
        return not self.problems and not any(stage.problem for stage in self.stages)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    def as_text(self) -> str:
        """The plan in lines, for a person."""
        verdict = f"Can run, about {duration(self.seconds)} in all." if self.is_possible else "CANNOT RUN as it is."
        return "\n".join(
            (
                f"{self.title}: {', '.join(self.files)}",
                f"{self.size}; {self.settings}",
                verdict,
                *(f"- {problem}" for problem in self.problems),
                *(stage.text for stage in self.stages),
                *(f"Note: {note}" for note in self.notes),
                self.basis,
            )
        )

    def as_dict(self) -> dict:
        """The plan as plain values, for a program."""
        return {"is_possible": self.is_possible, "seconds": self.seconds, **asdict(self)}


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
