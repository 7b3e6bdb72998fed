"""Sets up both pinned versions of ComfyUI and runs every test, those against the real servers included.

python3 scripts/test.py                      everything, in a random order whose seed is printed
python3 scripts/test.py --host 0.33.0        on one version only
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

from scripts import browser, setup_host
from scripts.setup_steps import ROOT, BrowserUnavailable, HostUnavailable, SetupError, venv_python

RULE = "!" * 100


def warn(text: str) -> None:
    print(f"{RULE}\n{text}\n{RULE}", flush=True)


def prepare(args: argparse.Namespace) -> dict[str, str]:
    """Sets up; returns what pytest's environment has on top. What cannot be obtained is skipped, aloud."""
    hosts = prepare_hosts(args)
    if "WAN_CORE_NO_HOST" in hosts or os.environ.get("WAN_CORE_NO_BROWSER") == "1":
        return hosts
    try:
        return {**hosts, "WAN_CORE_CHROMIUM": browser.ensure_browser()}
    except BrowserUnavailable as reason:
        warn(f"NO BROWSER: the tests of the page are SKIPPED and this run does not judge them.\n{reason}")
        return {**hosts, "WAN_CORE_NO_BROWSER": "1"}


def prepare_hosts(args: argparse.Namespace) -> dict[str, str]:
    if args.comfyui or os.environ.get("COMFYUI_DIR"):
        if args.host:
            raise SetupError(
                "--host names a version of the project's own; it goes with neither --comfyui nor COMFYUI_DIR."
            )
        env = setup_host.ensure_host(args.comfyui, args.python, args.install)
        return {"COMFYUI_DIR": str(env.folder), "COMFYUI_PYTHON": str(env.python)}
    ready = []
    for version in args.host or setup_host.HOSTS:
        try:
            setup_host.ensure_host(version=version)
            ready.append(version)
        except HostUnavailable as reason:
            warn(f"NO COMFYUI {version}: its tests are SKIPPED and this run does not judge them.\n{reason}")
    return {"WAN_CORE_HOSTS": " ".join(ready)} if ready else {"WAN_CORE_NO_HOST": "1"}


def lint(python: Path) -> int:
    commands = (["check", "."], ["format", "--check", "."])
    return max([subprocess.call([python, "-m", "ruff", *command], cwd=ROOT) for command in commands])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    setup_host.add_arguments(parser)
    hosts = ", ".join(setup_host.HOSTS)
    parser.add_argument(
        "--host",
        action="append",
        choices=setup_host.HOSTS,
        help=f"one version of {hosts}; may be repeated (default: all)",
    )
    parser.add_argument("--lint", action="store_true", help="run ruff first, and do not go on when it finds something")
    args, rest = parser.parse_known_args()
    began = time.monotonic()
    try:
        environ = {**os.environ, **prepare(args)}
    except SetupError as reason:
        print(f"[test] {reason}", file=sys.stderr)
        return 1
    python = venv_python(setup_host.VENV)
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
