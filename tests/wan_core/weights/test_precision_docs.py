"""docs/precision.md says what the code does."""

from tests.conftest import ROOT
from wan_core.weights.precision import ISLANDS, policy_table


def rows(text: str) -> list[tuple[str, ...]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def test_the_page_and_the_code_hold_the_same_tables():
    text = (ROOT / "docs" / "precision.md").read_text(encoding="utf8")
    page = rows(text.partition("## Measured")[0])
    assert [row for row in page if len(row) == 5][1:] == policy_table()
    islands = {kind: ", ".join(f"`{name}`" for name in names) or "none" for kind, names in ISLANDS.items()}
    assert dict(row for row in page if len(row) == 2 and row[0] in ISLANDS) == islands
