"""What users are told of LoRA files, right ones and wrong ones: the table of ``benchmarks/lora_report.py``."""

from dataclasses import replace

import pytest

from benchmarks import lora_report
from tests.lora_rows import OURS
from wan_core.errors import ModelFileError


def test_the_table_is_as_long_as_it_should_be():
    assert len(lora_report.ROWS) >= 30 and len(lora_report.ON_PURPOSE) >= 12
    assert len({row.id for row in lora_report.ROWS}) == len(lora_report.ROWS)


@pytest.mark.parametrize("row", lora_report.ROWS, ids=lambda row: row.id)
def test_users_are_told_what_the_file_is(row, tmp_path):
    found = lora_report.report(row, tmp_path)
    assert not found.problems, found.said


def test_a_verdict_that_is_not_the_expected_one_fails_the_command(monkeypatch, capsys):
    good = next(row for row in lora_report.ROWS if row.tensors is OURS and row.applied == 2)
    for wrong in (replace(good, applied=3), replace(good, error=ModelFileError), replace(good, words=("purple",))):
        monkeypatch.setattr(lora_report, "ROWS", [good, wrong])
        monkeypatch.setattr("sys.argv", ["lora_report"])
        assert lora_report.main() == 1
        assert capsys.readouterr().out.count("NOT AS EXPECTED") >= 1
    monkeypatch.setattr(lora_report, "ROWS", [good])
    assert lora_report.main() == 0
