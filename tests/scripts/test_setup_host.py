"""Set-up: what it reads, what it refuses and how it says so. Nothing is installed here."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import companions, setup_host, setup_steps
from scripts.setup_host import HostEnv
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
    monkeypatch.setattr(setup_host, "missing_requirements", lambda python: ["sentencepiece"])
    monkeypatch.setattr(setup_host, "pip", lambda *args, **kwargs: pytest.fail("something was installed"))
    with pytest.raises(SetupError, match=r"lacks sentencepiece\. Nothing was changed there: run again with --install"):
        setup_host.own_host(str(checkout), sys.executable)


def test_install_installs_only_what_is_missing(checkout, monkeypatch):
    installed = []
    monkeypatch.setattr(setup_host, "missing_requirements", lambda python: ["sentencepiece"])
    monkeypatch.setattr(setup_host, "pip", lambda python, *args, what: installed.append((python, args)))
    env = setup_host.own_host(str(checkout), sys.executable, install=True)
    assert installed == [(env.python, ("sentencepiece",))]


def test_this_python_lacks_nothing_the_pack_needs():
    assert setup_host.missing_requirements(Path(sys.executable)) == []


@pytest.fixture
def two_hosts(tmp_path, monkeypatch) -> dict[str, setup_host.PinnedHost]:
    """A repository of two commits in the place of ComfyUI's, and hosts pinned to them."""
    source = tmp_path / "source"
    source.mkdir()
    git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    hosts = {}
    for version in ("1.0", "2.0"):
        (source / "main.py").touch()
        (source / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "--quiet", "-m", version], check=True)
        hosts[version] = setup_host.PinnedHost(
            version=version,
            commit=setup_host.head_of(source),
            folder=tmp_path / ("clone" if version == "2.0" else "older"),
            venv=tmp_path / f"venv-{version}",
            requirements=(),
        )
    monkeypatch.setattr(setup_host, "CHECKOUT", tmp_path / "clone")
    monkeypatch.setattr(setup_host, "COMFYUI_URL", str(source))
    return hosts


@pytest.mark.parametrize("order", [("1.0", "2.0"), ("2.0", "1.0")])
def test_two_versions_stand_beside_each_other_in_whatever_order_they_are_set_up(two_hosts, order):
    folders = {version: setup_host.ensure_checkout(two_hosts[version]) for version in order}
    assert {version: HostEnv(folder=folders[version], python=Path()).version for version in order} == {
        "1.0": "1.0",
        "2.0": "2.0",
    }


def test_a_checkout_that_was_taken_away_or_moved_is_made_again(two_hosts):
    older, clone = (setup_host.ensure_checkout(two_hosts[version]) for version in ("1.0", "2.0"))
    subprocess.run(["git", "-C", str(older), "checkout", "-q", two_hosts["2.0"].commit], check=True)
    setup_host.ensure_checkout(two_hosts["1.0"])
    assert setup_host.head_of(older) == two_hosts["1.0"].commit
    shutil.rmtree(clone)
    setup_host.ensure_checkout(two_hosts["1.0"])
    assert setup_host.head_of(older) == two_hosts["1.0"].commit
    shutil.rmtree(older)
    assert (setup_host.ensure_checkout(two_hosts["1.0"]) / "main.py").exists()


def test_a_commit_that_the_clone_lacks_is_said(two_hosts):
    with pytest.raises(setup_steps.HostUnavailable, match="older"):
        setup_host.ensure_checkout(replace(two_hosts["1.0"], commit="0" * 40))


def test_a_version_that_is_not_in_the_table_is_refused_with_those_that_are(monkeypatch):
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    with pytest.raises(SetupError, match=r"no ComfyUI 1\.0 here; there are 0\.33\.0 and 0\.3\.64"):
        setup_host.find_host("1.0")


def test_the_floor_of_the_table_is_what_the_pack_declares():
    declared = (setup_host.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'requires-comfyui = ">=0.3.64"' in declared
    assert min(setup_host.HOSTS, key=lambda version: [int(n) for n in version.split(".")]) == "0.3.64"


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
