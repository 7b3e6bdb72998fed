"""Sets up like the demo and runs every test, those against a real ComfyUI included.

python3 scripts/test.py                      everything, in a random order whose seed is printed
python3 scripts/test.py tests/wan_core -x    other words go to pytest
python3 scripts/test.py --lint               ruff first
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import setup_host
from scripts.setup_host import ROOT, HostUnavailable, SetupError

RULE = "!" * 100


def prepare(args: argparse.Namespace) -> dict[str, str]:
    """Sets up; returns the environment for pytest. Without any host the tests that need one are skipped, aloud."""
    try:
        env = setup_host.ensure_host(args.comfyui, args.python, args.install)
    except HostUnavailable as reason:
        print(
            f"{RULE}\nNO COMFYUI HOST: the tests in tests/host are SKIPPED and this run does not judge them.\n"
            f"{reason}\n{RULE}"
        )
        return {**os.environ, "WAN_CORE_NO_HOST": "1"}
    return {**os.environ, "COMFYUI_DIR": str(env.folder), "COMFYUI_PYTHON": str(env.python)}


def lint(python: Path) -> int:
    commands = (["check", "."], ["format", "--check", "."])
    return max([subprocess.call([python, "-m", "ruff", *command], cwd=ROOT) for command in commands])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    setup_host.add_arguments(parser)
    parser.add_argument("--lint", action="store_true", help="run ruff first, and do not go on when it finds something")
    args, rest = parser.parse_known_args()
    began = time.monotonic()
    try:
        environ = prepare(args)
    except SetupError as reason:
        print(f"[test] {reason}", file=sys.stderr)
        return 1
    python = setup_host.venv_python(setup_host.VENV)
    print(f"[test] set-up took {time.monotonic() - began:.1f} s", flush=True)
    if args.lint and lint(python):
        print("[test] ruff found something; pytest was not run", file=sys.stderr)
        return 1
    if not any(word.startswith("--randomly-seed") for word in rest):
        rest.append(f"--randomly-seed={random.randrange(1 << 31)}")
    print(f"[test] pytest {' '.join(rest)}", flush=True)
    return subprocess.call([python, "-m", "pytest", *rest], cwd=ROOT, env=environ, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
