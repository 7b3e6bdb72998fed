"""Sets up the project's own `.venv` and a ComfyUI host. Standard library only: it runs on a bare Python with git.

Two ways to a host:
- a checkout of yours (`--comfyui DIR` or COMFYUI_DIR) with the Python that it already uses; nothing in that Python
  is changed unless `--install` asks for it;
- else a clone of the public repository at a pinned commit in `.comfyui`, run by the project's `.venv`.

What a set-up took in is kept as hashes in `.venv/wan-core-setup.json`; while they match, a second run installs nothing.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - `python3` may be older than what the project asks for
    found = ".".join(str(part) for part in sys.version_info[:2])
    sys.exit("Wan Core needs Python 3.10 or newer; this is Python " + found + ". Run it with a newer one.")

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
CHECKOUT = ROOT / ".comfyui"
CACHE = ROOT / ".cache"
SETUP_LOG = CACHE / "setup.log"
STAMP = VENV / "wan-core-setup.json"
CONSTRAINTS = VENV / "wan-core-constraints.txt"

COMFYUI_URL = "https://github.com/comfyanonymous/ComfyUI"
COMFYUI_COMMIT = "783545f689a0af730065994b46b382ae24844c99"  # 0.33.0

TORCH = "torch==2.13.0"  # pinned: an unpinned one may bring a newer CUDA build of several gigabytes
# Installed without their dependencies, because those name a torch of their own.
HOST_NO_DEPS = ("torchvision==0.28.0", "torchaudio==2.11.0", "torchsde", "trampoline", "boltons", "spandrel")
HOST_HANDLED = {"torch", "torchvision", "torchaudio", "torchsde", "spandrel"}
HOST_UNDECLARED = ("requests",)  # imported by 0.3.64, listed only later

WINDOWS = os.name == "nt"
TAIL_LINES = 12


class SetupError(RuntimeError):
    """A set-up step failed; the message is a sentence for the user, and the failing command's last lines."""


class HostUnavailable(SetupError):
    """No ComfyUI could be obtained, and none was named: for instance there is no network."""


@dataclass(frozen=True, kw_only=True)
class HostEnv:
    """A ComfyUI checkout, and the Python that runs it."""

    folder: Path
    python: Path


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def venv_python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if WINDOWS else "bin/python")


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """The last non-empty lines, indented, for the end of an error message."""
    kept = [line for line in text.splitlines() if line.strip()][-lines:]
    return "\n".join(f"    {line}" for line in kept)


def run(command: list, what: str, *, cwd: Path = ROOT, error: type[SetupError] = SetupError) -> str:
    """Runs a command without stdin, logs and returns its output. Raises `error` with a sentence."""
    CACHE.mkdir(exist_ok=True)
    words = [str(word) for word in command]
    try:
        result = subprocess.run(
            words,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as reason:
        raise error(f"{what} failed: {words[0]} could not be started ({reason}).") from reason
    with SETUP_LOG.open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(words)}\n{result.stdout}\n")
    if result.returncode != 0:
        raise error(f"{what} failed (exit code {result.returncode}); the last lines were:\n{tail(result.stdout)}")
    return result.stdout


def pip(python: Path, *args: str, what: str) -> None:
    run([python, "-m", "pip", "install", "--progress-bar", "off", "--disable-pip-version-check", *args], what)


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


# --- the project's own .venv ---------------------------------------------------------------------------------------


def read_stamp() -> dict[str, str]:
    try:
        return json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_stamp(**groups: str) -> None:
    STAMP.write_text(json.dumps(read_stamp() | groups, indent=1) + "\n", encoding="utf-8")


def ensure_env(host_folder: Path | None = None) -> Path:
    """Makes `.venv` hold torch, the runtime and test requirements and, for a `host_folder`, what that host needs.

    Returns the venv's Python. Installs nothing when the inputs are the ones of the last complete set-up.
    """
    python = venv_python(VENV)
    packages = VENV / "Lib" / "site-packages" if WINDOWS else next(VENV.glob("lib/python*/site-packages"), VENV)
    if not python.exists() or not (packages / "pip").exists():  # a failed attempt leaves a venv without pip
        say(f"making a virtual environment with Python {sys.version_info[0]}.{sys.version_info[1]} in .venv")
        run([sys.executable, "-m", "venv", VENV], "Making the virtual environment (is Python's venv module installed?)")
    requirements = ROOT / "requirements.txt", ROOT / "requirements-dev.txt"
    base = digest(TORCH, *(path.read_text(encoding="utf-8") for path in requirements))
    if read_stamp().get("base") != base:
        ensure_torch(python)
        say("installing the runtime and test requirements")
        files = [word for path in requirements for word in ("-r", str(path))]
        pip(python, "-c", str(CONSTRAINTS), *files, what="Installing the requirements")
        write_stamp(base=base)
    if host_folder is not None:
        ensure_host_packages(python, host_folder)
    return python


def ensure_torch(python: Path) -> None:
    """Installs the pinned torch unless some torch is there, and pins whatever is there for all later installs."""
    probe = [python, "-c", "import torch; print('torch', torch.__version__)"]
    try:
        found = run(probe, "Looking for torch")
    except SetupError:
        say(f"installing {TORCH} (about 200 MB without CUDA)")
        pip(python, TORCH, what=f"Installing {TORCH} (another torch >= 2.4, installed into .venv by hand, is kept)")
        found = run(probe, f"Importing {TORCH} after its installation")
    version = re.findall(r"^torch (\S+)$", found, re.MULTILINE)[-1]
    say(f"torch {version} is in .venv and stays as it is")
    CONSTRAINTS.write_text(f"torch=={version}\n", encoding="utf-8")


def host_requirements(text: str) -> list[str]:
    """The host's requirement lines without torch and the packages that are installed without dependencies."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() not in HOST_HANDLED]


def ensure_host_packages(python: Path, host_folder: Path) -> None:
    wanted = host_requirements((host_folder / "requirements.txt").read_text(encoding="utf-8"))
    key = digest(*wanted, *HOST_NO_DEPS, read_stamp().get("base", ""), "recipe 1")
    if read_stamp().get("host") == key:
        return
    say(f"installing what ComfyUI needs ({len(wanted) + len(HOST_NO_DEPS)} packages, about a minute the first time)")
    pip(python, "-c", str(CONSTRAINTS), *wanted, *HOST_UNDECLARED, what="Installing ComfyUI's requirements")
    pip(
        python,
        "--no-deps",
        "-c",
        str(CONSTRAINTS),
        *HOST_NO_DEPS,
        what="Installing torchvision, torchaudio and what belongs to them",
    )
    repair_companions(python)
    write_stamp(host=key)


# --- torchvision and torchaudio beside a torch without CUDA ---------------------------------------------------------

PROBE = """
import importlib, importlib.util, json, torch
def state(name):
    try:
        importlib.import_module(name)
        error = None
    except (ImportError, OSError, RuntimeError) as reason:
        error = f"{type(reason).__name__}: {reason}"
    return {"folder": list(importlib.util.find_spec(name).submodule_search_locations)[0], "error": error}
print(json.dumps({"cuda": torch.version.cuda, "vision": state("torchvision"), "audio": state("torchaudio")}))
"""

VISION_MARK = "# Wan Core set-up: schemas of the two ops that are declared at import"
VISION_PATCH = f"""

{VISION_MARK}
if not _has_ops():
    _schemas = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _schemas.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def probe_companions(python: Path) -> dict:
    output = run([python, "-c", PROBE], "Importing torch, torchvision and torchaudio", cwd=CACHE)
    return json.loads(output.strip().splitlines()[-1])


def repair_companions(python: Path) -> None:
    """Makes torchvision and torchaudio importable where only their CUDA builds are on offer and torch has no CUDA.

    ComfyUI imports both at start and uses neither's compiled part for Wan. Done in the project's `.venv` alone, and
    only for a package that does not import.
    """
    state = probe_companions(python)
    broken = [name for name in ("vision", "audio") if state[name]["error"]]
    if broken and state["cuda"] is None:
        for name in broken:
            {"vision": repair_torchvision, "audio": repair_torchaudio}[name](Path(state[name]["folder"]))
        state = probe_companions(python)
    for name in ("vision", "audio"):
        if state[name]["error"]:
            raise SetupError(
                f"torch{name} in .venv cannot be imported, so ComfyUI cannot start: {state[name]['error']}"
            )


def repair_torchvision(folder: Path) -> None:
    """Lets torchvision declare the schemas of its two detection ops when the compiled ones do not load."""
    extension = folder / "extension.py"
    text = extension.read_text(encoding="utf-8")
    if VISION_MARK not in text:
        say("torchvision's compiled ops need CUDA: declaring their schemas in .venv instead")
        extension.write_text(text + VISION_PATCH, encoding="utf-8")


def repair_torchaudio(folder: Path) -> None:
    """Sets torchaudio's compiled libraries aside; without them it runs as pure Python."""
    say("torchaudio's compiled libraries need CUDA: setting them aside in .venv")
    for library in (folder / "lib").glob("*.so"):
        library.rename(library.with_name(library.name + ".aside"))


# --- the host -------------------------------------------------------------------------------------------------------


def ensure_checkout() -> Path:
    """Clones ComfyUI at the pinned commit into `.comfyui`, or moves the clone that is there to it."""
    if head_of(CHECKOUT) == COMFYUI_COMMIT and (CHECKOUT / "main.py").exists():
        return CHECKOUT
    if shutil.which("git") is None:
        raise HostUnavailable(
            "git was not found, so ComfyUI cannot be cloned; install git, or name a checkout with --comfyui DIR."
        )
    if head_of(CHECKOUT) is None:
        shutil.rmtree(CHECKOUT, ignore_errors=True)  # what an interrupted clone left
        say(f"cloning {COMFYUI_URL} into .comfyui")
        run(
            ["git", "clone", "--quiet", "--no-checkout", COMFYUI_URL, CHECKOUT],
            f"Cloning {COMFYUI_URL}",
            error=HostUnavailable,
        )
    say(f"checking out ComfyUI {COMFYUI_COMMIT[:12]}")
    try:
        run(["git", "checkout", "-q", "-f", COMFYUI_COMMIT], "Checking ComfyUI out", cwd=CHECKOUT)
    except SetupError as reason:
        # A mirror's partial copy may lack a large tokenizer file of another model. Nothing of Wan reads it.
        if head_of(CHECKOUT) != COMFYUI_COMMIT or not (CHECKOUT / "main.py").exists():
            raise HostUnavailable(
                f"The ComfyUI clone in .comfyui lacks {COMFYUI_COMMIT[:12]}; delete the folder and try again. {reason}"
            ) from reason
        say("some files of other models are missing from the clone; going on without them")
    return CHECKOUT


def head_of(checkout: Path) -> str | None:
    """The commit that a git checkout stands on, or None where there is no checkout."""
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return None
    result = subprocess.run(["git", "rev-parse", "--verify", "HEAD"], cwd=checkout, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else None


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


def ensure_host(comfyui: str | None = None, python: str | None = None, install: bool = False) -> HostEnv:
    """A host that can be started, and the project's `.venv` beside it.

    `comfyui` defaults to COMFYUI_DIR and `python` to COMFYUI_PYTHON. Raises HostUnavailable when none is named and none
    can be cloned; the `.venv` is then complete but for the host's packages.
    """
    comfyui = comfyui or os.environ.get("COMFYUI_DIR")
    python = python or os.environ.get("COMFYUI_PYTHON")
    if comfyui:
        ensure_env()
        return own_host(comfyui, python, install)
    try:
        checkout = ensure_checkout()
    except HostUnavailable:
        ensure_env()
        raise
    return HostEnv(folder=checkout, python=ensure_env(checkout))


def find_host() -> HostEnv:
    """The host that ensure_host() would give, without setting anything up. Raises SetupError when it is not there."""
    if os.environ.get("COMFYUI_DIR"):
        folder = Path(os.environ["COMFYUI_DIR"]).resolve()
        return HostEnv(folder=folder, python=host_python(folder, os.environ.get("COMFYUI_PYTHON")))
    if not (CHECKOUT / "main.py").exists() or "host" not in read_stamp():
        raise SetupError("No ComfyUI host is set up. Run: python3 scripts/test.py (or scripts/demo.py)")
    return HostEnv(folder=CHECKOUT, python=venv_python(VENV))


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
    args = parser.parse_args()
    began = time.monotonic()
    try:
        env = ensure_host(args.comfyui, args.python, args.install)
    except SetupError as reason:
        sys.exit(f"[setup] {reason}")
    say(f"ready in {time.monotonic() - began:.1f} s: {env.folder} with {env.python}")


if __name__ == "__main__":
    main()
