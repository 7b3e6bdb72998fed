"""Every workflow file that must open and run: the examples, and those of every release, which live for ever."""

import json
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "example_workflows"
RELEASED = ROOT / "tests" / "workflows"


@dataclass(frozen=True, kw_only=True)
class Workflow:
    """One graph in its two forms."""

    name: str
    page_path: Path
    api_path: Path

    @property
    def page(self) -> dict:
        return json.loads(self.page_path.read_text(encoding="utf-8"))

    @property
    def api(self) -> dict:
        return json.loads(self.api_path.read_text(encoding="utf-8"))

    def content(self) -> tuple[bytes, bytes]:
        return self.page_path.read_bytes(), self.api_path.read_bytes()


def in_folder(folder: Path, prefix: str = "") -> list[Workflow]:
    return [
        Workflow(name=f"{prefix}{path.stem}", page_path=path, api_path=folder / "api" / path.name)
        for path in sorted(folder.glob("*.json"))
    ]


def examples() -> list[Workflow]:
    return in_folder(EXAMPLES)


def released() -> list[Workflow]:
    """The workflows of all releases, named ``version/name``."""
    return [w for folder in sorted(RELEASED.glob("*/")) for w in in_folder(folder, f"{folder.name}/")]


def distinct() -> list[Workflow]:
    """Examples and releases, a file that has not changed since once."""
    seen: dict[tuple[bytes, bytes], Workflow] = {}
    for workflow in (*examples(), *released()):
        seen.setdefault(workflow.content(), workflow)
    return list(seen.values())
