"""What a conversion did, for people."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Report:
    """Lines of text, each about one thing."""

    converted: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    """What is not in the new graph, and why."""
    notes: list[str] = field(default_factory=list)
    """What is not quite as it was."""
    kept: list[str] = field(default_factory=list)
    """What stays native because it could not be converted, and why."""

    def note(self, line: str) -> None:
        """Say something once."""
        if line not in self.notes:
            self.notes.append(line)

    def drop(self, line: str) -> None:
        """Say once what is left out."""
        if line not in self.dropped:
            self.dropped.append(line)

    def text(self) -> str:
        """All of it."""
        parts = {
            "Converted": self.converted,
            "Dropped": self.dropped,
            "Changed": self.notes,
            "Not converted": self.kept,
        }
        lines = [f"{title}:\n" + "".join(f"  {line}\n" for line in found) for title, found in parts.items() if found]
        return "".join(lines) or "Nothing to convert: the workflow is as it was.\n"
