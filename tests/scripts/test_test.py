"""What scripts/test.py hands to pytest, and what it says when something cannot be obtained."""

from argparse import Namespace
from pathlib import Path

import pytest

from scripts import test as runner
from scripts.setup_steps import BrowserUnavailable, HostUnavailable, SetupError


@pytest.fixture
def args(monkeypatch) -> Namespace:
    for name in ("COMFYUI_DIR", "WAN_CORE_NO_BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runner.browser, "ensure_browser", lambda: "/usr/bin/chromium")
    return Namespace(comfyui=None, python=None, install=False, host=None)


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The versions that were set up."""
    asked: list[str] = []
    monkeypatch.setattr(runner.setup_host, "ensure_host", lambda *_, version=None: asked.append(version))
    return asked


def test_every_version_of_the_table_is_set_up_and_named_to_pytest(args, asked):
    assert runner.prepare(args) == {"WAN_CORE_HOSTS": "0.33.0 0.3.64", "WAN_CORE_CHROMIUM": "/usr/bin/chromium"}
    assert asked == ["0.33.0", "0.3.64"]


def test_one_version_may_be_asked_for(args, asked):
    args.host = ["0.3.64"]
    assert runner.prepare(args)["WAN_CORE_HOSTS"] == "0.3.64"
    assert asked == ["0.3.64"]


def test_a_version_that_cannot_be_obtained_is_said_aloud_and_the_other_is_judged(args, monkeypatch, capsys):
    def ensure(version):
        if version == "0.3.64":
            raise HostUnavailable("no network")

    monkeypatch.setattr(runner.setup_host, "ensure_host", ensure)
    assert runner.prepare(args)["WAN_CORE_HOSTS"] == "0.33.0"
    assert "NO COMFYUI 0.3.64: its tests are SKIPPED" in capsys.readouterr().out


def test_without_any_host_no_browser_is_looked_for(args, monkeypatch):
    def ensure(version):
        raise HostUnavailable("no network")

    monkeypatch.setattr(runner.setup_host, "ensure_host", ensure)
    monkeypatch.setattr(runner.browser, "ensure_browser", lambda: pytest.fail("a browser was looked for"))
    assert runner.prepare(args) == {"WAN_CORE_NO_HOST": "1"}


def test_without_a_browser_the_page_tests_are_switched_off_aloud(args, asked, monkeypatch, capsys):
    def ensure():
        raise BrowserUnavailable("No browser was found")

    monkeypatch.setattr(runner.browser, "ensure_browser", ensure)
    assert runner.prepare(args)["WAN_CORE_NO_BROWSER"] == "1"
    assert "NO BROWSER" in capsys.readouterr().out


def test_a_checkout_of_the_users_is_the_only_host(args, monkeypatch):
    env = runner.setup_host.HostEnv(folder=Path("/own"), python=Path("/own/python"))
    monkeypatch.setattr(runner.setup_host, "ensure_host", lambda *_: env)
    args.comfyui = "/own"
    assert runner.prepare_hosts(args) == {"COMFYUI_DIR": str(env.folder), "COMFYUI_PYTHON": str(env.python)}
    args.host = ["0.33.0"]
    with pytest.raises(SetupError, match="goes with neither --comfyui nor COMFYUI_DIR"):
        runner.prepare_hosts(args)
