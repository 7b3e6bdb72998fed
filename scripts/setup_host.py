"""Sets up the project's own `.venv` and a ComfyUI host. Standard library only: it runs on a bare Python with git.

Two ways to a host:
- a checkout of yours (`--comfyui DIR` or COMFYUI_DIR) with the Python that it already uses; nothing in that Python
  is changed unless `--install` asks for it;
- else the public repository at a pinned commit: HOSTS has the newest version, which the project's `.venv` runs, and the
  oldest one that the pack supports, in a folder and an environment of its own.

What a set-up took in is kept as hashes in the environment's `wan-core-setup.json`; while they match, a second run
installs nothing.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - `python3` may be older than what the project asks for
    found = ".".join(str(part) for part in sys.version_info[:2])
    sys.exit("Wan Core needs Python 3.10 or newer; this is Python " + found + ". Run it with a newer one.")

import argparse
import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.companions import repair_companions
from scripts.setup_steps import ROOT, WINDOWS, HostUnavailable, SetupError, digest, pip, run, say, venv_python

VENV = ROOT / ".venv"
CHECKOUT = ROOT / ".comfyui"
STAMP = "wan-core-setup.json"
CONSTRAINTS = "wan-core-constraints.txt"

COMFYUI_URL = "https://github.com/comfyanonymous/ComfyUI"

TORCH = "torch==2.13.0"  # pinned: an unpinned one may bring a newer CUDA build of several gigabytes
# Installed without their dependencies, because those name a torch of their own.
HOST_NO_DEPS = ("torchvision==0.28.0", "torchaudio==2.11.0", "torchsde", "trampoline", "boltons", "spandrel")
HOST_HANDLED = {"torch", "torchvision", "torchaudio", "torchsde", "spandrel"}
HOST_UNDECLARED = ("requests",)  # imported by 0.3.64, listed only later


@dataclass(frozen=True, kw_only=True)
class HostEnv:
    """A ComfyUI checkout, and the Python that runs it."""

    folder: Path
    python: Path

    @property
    def version(self) -> str:
        """As the checkout names itself; empty where it does not."""
        file = self.folder / "comfyui_version.py"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        return next(iter(re.findall(r'__version__ = "(.+)"', text)), "")


@dataclass(frozen=True, kw_only=True)
class PinnedHost:
    """A ComfyUI that the project sets up itself: which one, where, and what of ours its environment holds."""

    version: str
    commit: str
    folder: Path
    venv: Path
    requirements: tuple[str, ...]


HOSTS = {
    host.version: host
    for host in (
        PinnedHost(
            version="0.33.0",
            commit="783545f689a0af730065994b46b382ae24844c99",
            folder=CHECKOUT,
            venv=VENV,
            requirements=("requirements.txt", "requirements-dev.txt"),
        ),
        PinnedHost(
            version="0.3.64",
            commit="a125cd84b054a57729b5eecab930ca9408719832",
            folder=ROOT / ".comfyui-0.3.64",
            venv=ROOT / ".venv-0.3.64",
            requirements=("requirements.txt",),
        ),
    )
}
NEWEST = "0.33.0"


# --- environments ---------------------------------------------------------------------------------------------------


def read_stamp(venv: Path) -> dict[str, str]:
    try:
        return json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_stamp(venv: Path, **groups: str) -> None:
    (venv / STAMP).write_text(json.dumps(read_stamp(venv) | groups, indent=1) + "\n", encoding="utf-8")


def ensure_env(host: PinnedHost, *, host_packages: bool = True) -> Path:
    """Makes the host's environment hold torch, its share of our requirements and, if wanted, what the host needs.

    Returns the environment's Python. Installs nothing when the inputs are the ones of the last complete set-up.
    """
    venv, python = host.venv, venv_python(host.venv)
    packages = venv / "Lib" / "site-packages" if WINDOWS else next(venv.glob("lib/python*/site-packages"), venv)
    if not python.exists() or not (packages / "pip").exists():  # a failed attempt leaves a venv without pip
        running = f"{sys.version_info[0]}.{sys.version_info[1]}"
        say(f"making a virtual environment with Python {running} in {venv.name}")
        run([sys.executable, "-m", "venv", venv], "Making the virtual environment (is Python's venv module installed?)")
    requirements = [ROOT / name for name in host.requirements]
    base = digest(TORCH, *(path.read_text(encoding="utf-8") for path in requirements))
    if read_stamp(venv).get("base") != base:
        ensure_torch(venv)
        say(f"installing {' and '.join(host.requirements)} into {venv.name}")
        files = [word for path in requirements for word in ("-r", str(path))]
        pip(python, "-c", str(venv / CONSTRAINTS), *files, what="Installing the requirements")
        write_stamp(venv, base=base)
    if host_packages:
        ensure_host_packages(venv, host.folder)
    return python


def ensure_torch(venv: Path) -> None:
    """Installs the pinned torch unless some torch is there, and pins whatever is there for all later installs."""
    python = venv_python(venv)
    probe = [python, "-c", "import torch; print('torch', torch.__version__)"]
    try:
        found = run(probe, "Looking for torch")
    except SetupError:
        say(f"installing {TORCH} into {venv.name} (about 200 MB without CUDA)")
        pip(python, TORCH, what=f"Installing {TORCH} (another torch >= 2.4, installed there by hand, is kept)")
        found = run(probe, f"Importing {TORCH} after its installation")
    version = re.findall(r"^torch (\S+)$", found, re.MULTILINE)[-1]
    say(f"torch {version} is in {venv.name} and stays as it is")
    (venv / CONSTRAINTS).write_text(f"torch=={version}\n", encoding="utf-8")


def host_requirements(text: str) -> list[str]:
    """The host's requirement lines without torch and the packages that are installed without dependencies."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() not in HOST_HANDLED]


def ensure_host_packages(venv: Path, host_folder: Path) -> None:
    wanted = host_requirements((host_folder / "requirements.txt").read_text(encoding="utf-8"))
    key = digest(*wanted, *HOST_NO_DEPS, read_stamp(venv).get("base", ""), "recipe 1")
    if read_stamp(venv).get("host") == key:
        return
    count = len(wanted) + len(HOST_NO_DEPS)
    say(f"installing what ComfyUI needs into {venv.name} ({count} packages, about a minute the first time)")
    python, constraints = venv_python(venv), ("-c", str(venv / CONSTRAINTS))
    pip(python, *constraints, *wanted, *HOST_UNDECLARED, what="Installing ComfyUI's requirements")
    what = "Installing torchvision, torchaudio and what belongs to them"
    pip(python, "--no-deps", *constraints, *HOST_NO_DEPS, what=what)
    repair_companions(python)
    write_stamp(venv, host=key)


# --- checkouts ------------------------------------------------------------------------------------------------------


def ensure_checkout(host: PinnedHost) -> Path:
    """The host's folder at its commit: `.comfyui` is a clone, every other folder a work tree of that clone."""
    if head_of(host.folder) == host.commit and (host.folder / "main.py").exists():
        return host.folder
    if shutil.which("git") is None:
        raise HostUnavailable(
            "git was not found, so ComfyUI cannot be cloned; install git, or name a checkout with --comfyui DIR."
        )
    ensure_clone()
    if head_of(host.folder) is None:
        shutil.rmtree(host.folder, ignore_errors=True)
        command = ["git", "worktree", "add", "--force", "--detach", "--no-checkout", host.folder, host.commit]
        run(command, f"Adding {host.folder.name} to the clone", cwd=CHECKOUT, error=HostUnavailable)
    say(f"checking out ComfyUI {host.version} in {host.folder.name}")
    try:
        run(["git", "checkout", "-q", "-f", host.commit], "Checking ComfyUI out", cwd=host.folder)
    except SetupError as reason:
        # A mirror's partial copy may lack a large tokenizer file of another model. Nothing of Wan reads it.
        if head_of(host.folder) != host.commit or not (host.folder / "main.py").exists():
            raise HostUnavailable(
                f"The ComfyUI clone in {CHECKOUT.name} lacks {host.commit[:12]}; delete the folder and try again. "
                f"{reason}"
            ) from reason
        say("some files of other models are missing from the clone; going on without them")
    return host.folder


def ensure_clone() -> None:
    if head_of(CHECKOUT) is not None:
        return
    shutil.rmtree(CHECKOUT, ignore_errors=True)  # what an interrupted clone left
    say(f"cloning {COMFYUI_URL} into {CHECKOUT.name}")
    command = ["git", "clone", "--quiet", "--no-checkout", COMFYUI_URL, CHECKOUT]
    run(command, f"Cloning {COMFYUI_URL}", error=HostUnavailable)


def head_of(checkout: Path) -> str | None:
    """The commit that a git checkout stands on, or None where there is no checkout."""
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return None
    result = subprocess.run(["git", "rev-parse", "--verify", "HEAD"], cwd=checkout, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else None


# --- a ComfyUI of the user's ----------------------------------------------------------------------------------------


def host_python(folder: Path, named: str | None = None) -> Path:
    """The Python of a ComfyUI of yours: the named one, else that of its own environment."""
    if named is not None:
        found = shutil.which(named)
        if found is None:
            raise SetupError(f"--python {named} is not a program that can be run.")
        return Path(found).absolute()
    places = [
        venv_python(folder / ".venv"),
        venv_python(folder / "venv"),
        folder.parent / "python_embeded" / "python.exe",
    ]
    for place in places:
        if place.exists():
            return place
    looked = ", ".join(str(place) for place in places[:2])
    raise SetupError(
        f"The ComfyUI in {folder} has no Python environment of its own (looked for {looked}). "
        "Name its Python with --python."
    )


def missing_requirements(python: Path) -> list[str]:
    """The distributions of requirements.txt that a Python does not have."""
    lines = host_requirements((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines]
    code = (
        "import importlib.metadata as m, sys\n"
        "have = {d.metadata['Name'].lower().replace('_', '-') for d in m.distributions() if d.metadata['Name']}\n"
        "print('missing', *[n for n in sys.argv[1:] if n.lower() not in have])"
    )
    return run([python, "-c", code, *names], f"Reading the packages of {python}").strip().splitlines()[-1].split()[1:]


def own_host(folder: str, python: str | None = None, install: bool = False) -> HostEnv:
    """A checkout of the user's, checked: nothing in its environment changes unless `install` says so."""
    checkout = Path(folder).expanduser().resolve()
    if not (checkout / "main.py").exists() or not (checkout / "folder_paths.py").exists():
        raise SetupError(f"{checkout} is not a ComfyUI checkout: it has no main.py and folder_paths.py.")
    env = HostEnv(folder=checkout, python=host_python(checkout, python))
    missing = missing_requirements(env.python)
    if missing and install:
        say(f"installing {', '.join(missing)} into {env.python}, as --install asks")
        pip(env.python, *missing, what=f"Installing {', '.join(missing)}")
    elif missing:
        raise SetupError(
            f"The Python of {checkout} lacks {', '.join(missing)}. Nothing was changed there: run again with "
            f"--install, or run: {env.python} -m pip install {' '.join(missing)}"
        )
    return env


# --- either ---------------------------------------------------------------------------------------------------------


def ensure_host(
    comfyui: str | None = None, python: str | None = None, install: bool = False, version: str = NEWEST
) -> HostEnv:
    """A host that can be started, and the project's `.venv` beside it.

    `comfyui` defaults to COMFYUI_DIR and `python` to COMFYUI_PYTHON; where no checkout is named, `version` says which
    of HOSTS it is. Raises HostUnavailable when none is named and none can be cloned; the `.venv` is then complete but
    for the host's packages.
    """
    comfyui = comfyui or os.environ.get("COMFYUI_DIR")
    host = HOSTS[version]
    if comfyui or host.venv != VENV:
        ensure_env(HOSTS[NEWEST], host_packages=False)
    if comfyui:
        return own_host(comfyui, python or os.environ.get("COMFYUI_PYTHON"), install)
    try:
        checkout = ensure_checkout(host)
    except HostUnavailable:
        ensure_env(HOSTS[NEWEST], host_packages=False)
        raise
    return HostEnv(folder=checkout, python=ensure_env(host))


def find_host(version: str = NEWEST) -> HostEnv:
    """The host that ensure_host() would give, without setting anything up. Raises SetupError when it is not there.

    COMFYUI_DIR goes before `version`.
    """
    if os.environ.get("COMFYUI_DIR"):
        folder = Path(os.environ["COMFYUI_DIR"]).resolve()
        return HostEnv(folder=folder, python=host_python(folder, os.environ.get("COMFYUI_PYTHON")))
    if version not in HOSTS:
        raise SetupError(f"There is no ComfyUI {version} here; there are {' and '.join(HOSTS)}.")
    host = HOSTS[version]
    if not (host.folder / "main.py").exists() or "host" not in read_stamp(host.venv):
        raise SetupError(
            f"ComfyUI {version} is not set up. Run: python3 scripts/test.py (or scripts/setup_host.py --host {version})"
        )
    return HostEnv(folder=host.folder, python=venv_python(host.venv))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--comfyui", metavar="DIR", help="use this ComfyUI checkout (default: COMFYUI_DIR, else an own clone)"
    )
    parser.add_argument(
        "--python", metavar="FILE", help="the Python that runs that checkout (default: COMFYUI_PYTHON, else its venv)"
    )
    parser.add_argument(
        "--install", action="store_true", help="install missing requirements into that checkout's Python"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Set up .venv and a ComfyUI host.")
    add_arguments(parser)
    parser.add_argument("--host", choices=HOSTS, default=NEWEST, help="which ComfyUI, unless --comfyui names one")
    args = parser.parse_args()
    began = time.monotonic()
    try:
        env = ensure_host(args.comfyui, args.python, args.install, args.host)
    except SetupError as reason:
        sys.exit(f"[setup] {reason}")
    say(f"ready in {time.monotonic() - began:.1f} s: {env.folder} with {env.python}")


if __name__ == "__main__":
    main()
