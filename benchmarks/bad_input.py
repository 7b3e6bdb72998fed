"""Everything wrong that a person can plug in, and what is answered.

``python3 -m benchmarks.bad_input [--json | --pairs] [--only TEXT]``

Runs the table of tests/bad_input/table.py: each row must get the expected verdict with the expected words, within 1 s
of CPU time and 256 MB, before any weight is asked for or step is run, and may execute, import or write nothing (an
audit hook listens). ``--pairs``: the wrong pairs of editing and control tasks alone (tests/bad_input/editing.py), as a
table. ``python3 -O -m benchmarks.bad_input`` does the same without asserts. Memory is measured on Linux.
"""

import argparse
import json
import logging
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object instead of a list")
    form.add_argument("--pairs", action="store_true", help="a table of the wrong pairs of editing and control tasks")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds this")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    from tests.bad_input.rig import run, warm_up
    from tests.bad_input.table import ROWS

    rows = [row for row in ROWS if args.only in row.id and (row.sides or not args.pairs)]
    with tempfile.TemporaryDirectory() as folder:
        warm_up(Path(folder))
        verdicts = [run(row, Path(folder) / str(number)) for number, row in enumerate(rows)]
    wrong = [verdict for verdict in verdicts if verdict.problems]
    summary = {
        "rows": len(verdicts),
        "as_expected": len(verdicts) - len(wrong),
        "wrong_pairs": dict(Counter(_answer(row) for row in rows if row.sides)),
        "outcomes": dict(Counter(verdict.outcome for verdict in verdicts)),
        "slowest_cpu_s": round(max((verdict.cpu_s for verdict in verdicts), default=0), 3),
        "most_mb": round(max((verdict.mb or 0 for verdict in verdicts), default=0)),
        "asserts": __debug__,
        "pass": bool(verdicts) and not wrong,
    }
    if args.json:
        listed = [
            {
                "id": verdict.row.id, "outcome": verdict.outcome, "said": verdict.said, "problems": verdict.problems,
                "cpu_s": round(verdict.cpu_s, 4), "mb": verdict.mb and round(verdict.mb, 1),
            }
            for verdict in verdicts
        ]  # fmt: skip
        print(json.dumps({"summary": summary, "rows": listed}, indent=1))
        return 0 if summary["pass"] else 1
    if args.pairs:
        print("| wrong pair | answer | what is said |\n|---|---|---|")
        for verdict in verdicts:
            print(f"| {verdict.row.id} | {_answer(verdict.row)} | {verdict.said} |")
    for verdict in wrong if args.pairs else verdicts:
        print(f"{verdict.row.id}\n    {verdict.outcome}: {verdict.said or '(nothing to say)'}")
        print("".join(f"    WRONG: {problem}\n" for problem in verdict.problems), end="")
    print(json.dumps(summary))
    return 0 if summary["pass"] else 1


def _answer(row) -> str:
    return "warned" if row.error is None else "refused"


if __name__ == "__main__":
    sys.exit(main())
