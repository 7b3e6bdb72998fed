"""The README's table of what runs is that of the variants."""

import re
from dataclasses import replace

import pytest

from scripts import models_table
from wan_core.variants import VARIANTS

TEXT = models_table.README.read_text(encoding="utf-8")


def test_the_readme_has_the_table_of_the_variants():
    assert models_table.written(TEXT) == TEXT, "run .venv/bin/python scripts/models_table.py"


def test_every_variant_that_is_not_exact_has_its_size_in_one_line_of_its_family():
    cells = [line.split(" | ")[0].removeprefix("| ") for line in models_table.table().splitlines()[2:]]
    named = [re.fullmatch(r"(.+?) (A?[\d.]+B(?:, A?[\d.]+B)*)", cell).groups() for cell in cells]
    listed = [(family, size) for family, sizes in named for size in sizes.split(", ")]
    assert sorted(listed) == sorted(models_table._name(row) for row in VARIANTS if not row.exact)


def test_rows_share_a_line_only_where_nothing_but_the_size_differs():
    row = VARIANTS[0]
    same = replace(row, title="Wan 2.1 T2V 2B")
    other = replace(same, title="Wan 2.1 T2V 3B", defaults=replace(row.defaults, shift=1.0))
    first, second = models_table.table((row, same, other)).splitlines()[2:]
    assert first == "| Wan 2.1 T2V 1.3B, 2B | one model | | 50 steps, shift 5, guidance 5 |"
    assert second == "| Wan 2.1 T2V 3B | one model | | 50 steps, shift 1, guidance 5 |"


def test_a_readme_without_the_marks_is_not_written():
    with pytest.raises(ValueError):
        models_table.written(TEXT.replace(models_table.END, ""))
