"""Set-up: what it reads, what it refuses and how it says so. Nothing is installed here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import companions, setup_host, setup_steps
from scripts.setup_steps import SetupError


@pytest.fixture
def checkout(tmp_path) -> Path:
    for name in ("main.py", "folder_paths.py"):
        (tmp_path / name).touch()
    return tmp_path


def test_host_requirements_leave_out_torch_and_what_names_a_torch_of_its_own():
    text = "torch\ntorchsde\ntorchvision\ntorchaudio\nnumpy>=1.25.0\n\n#non essential:\nspandrel\nav>=16 # video\n"
    assert setup_host.host_requirements(text) == ["numpy>=1.25.0", "av>=16"]


def test_a_folder_that_is_no_checkout_is_refused_by_name(tmp_path):
    with pytest.raises(SetupError, match="is not a ComfyUI checkout"):
        setup_host.own_host(str(tmp_path))


def test_a_checkout_without_a_python_asks_for_one(checkout):
    with pytest.raises(SetupError, match=r"no Python environment of its own.*--python"):
        setup_host.own_host(str(checkout))


def test_a_python_that_does_not_exist_is_refused(checkout):
    with pytest.raises(SetupError, match="--python no-such-python is not a program"):
        setup_host.own_host(str(checkout), "no-such-python")


def test_missing_packages_in_a_users_environment_are_named_and_not_installed(checkout, monkeypatch):
    monkeypatch.setattr(setup_host, "missing_requirements", lambda python: ["ftfy"])
    monkeypatch.setattr(setup_host, "pip", lambda *args, **kwargs: pytest.fail("something was installed"))
    with pytest.raises(SetupError, match=r"lacks ftfy\. Nothing was changed there: run again with --install"):
        setup_host.own_host(str(checkout), sys.executable)


def test_install_installs_only_what_is_missing(checkout, monkeypatch):
    installed = []
    monkeypatch.setattr(setup_host, "missing_requirements", lambda python: ["ftfy"])
    monkeypatch.setattr(setup_host, "pip", lambda python, *args, what: installed.append((python, args)))
    env = setup_host.own_host(str(checkout), sys.executable, install=True)
    assert installed == [(env.python, ("ftfy",))]


def test_this_python_lacks_nothing_the_pack_needs():
    assert setup_host.missing_requirements(Path(sys.executable)) == []


def test_installing_the_requirements_changes_no_package_that_is_there(tmp_path):
    report = tmp_path / "report.json"
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", report]
    subprocess.run([*pip, "-r", setup_host.ROOT / "requirements.txt"], check=True)
    assert json.loads(report.read_text())["install"] == []


def test_a_failing_command_gives_a_sentence_and_its_last_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(setup_steps, "CACHE", tmp_path)
    monkeypatch.setattr(setup_steps, "SETUP_LOG", tmp_path / "setup.log")
    code = "import sys; print('first'); [print('line', i) for i in range(30)]; sys.exit('no space')"
    with pytest.raises(SetupError) as caught:
        setup_steps.run([sys.executable, "-c", code], "Installing a thing")
    message = str(caught.value)
    assert message.startswith("Installing a thing failed (exit code 1)")
    assert "no space" in message
    assert "first" not in message
    assert "first" in (tmp_path / "setup.log").read_text()


def test_torchvision_is_repaired_once(tmp_path):
    extension = tmp_path / "extension.py"
    extension.write_text("import torch\n\ndef _has_ops():\n    return False\n")
    companions.repair_torchvision(tmp_path)
    once = extension.read_text()
    companions.repair_torchvision(tmp_path)
    assert once.count("nms") == 2
    assert extension.read_text() == once
    compile(once, "extension.py", "exec")


def test_nothing_names_a_package_registry():
    folder = setup_host.ROOT
    files = [*folder.glob("scripts/*.py"), *folder.glob("requirements*.txt"), folder / ".ci" / "run"]
    assert len(files) > 5
    hosts = ("pypi" + ".org", "pythonhosted" + ".org", "download.pytorch" + ".org", "index" + "-url")
    assert [f"{path}: {host}" for path in files for host in hosts if host in path.read_text(encoding="utf-8")] == []
