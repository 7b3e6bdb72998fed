"""Which browser the tests of the page get, and who may have one installed."""

import pytest

from scripts import browser
from scripts.setup_steps import BrowserUnavailable


@pytest.fixture
def bare(monkeypatch):
    """A machine without a browser."""
    monkeypatch.delenv("WAN_CORE_CHROMIUM", raising=False)
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)


def test_the_named_program_goes_before_the_path(monkeypatch):
    monkeypatch.setenv("WAN_CORE_CHROMIUM", "/opt/chrome")
    assert browser.ensure_browser() == "/opt/chrome"


def test_without_root_nothing_is_installed_and_the_way_out_is_said(bare, monkeypatch):
    monkeypatch.setattr(browser, "run", lambda *args, **kwargs: pytest.fail("something was installed"))
    with pytest.raises(BrowserUnavailable, match=r"Install Chromium, or name one with WAN_CORE_CHROMIUM"):
        browser.ensure_browser()


def test_root_with_apt_gets_debians_chromium(bare, monkeypatch):
    ran = []
    monkeypatch.setattr(browser, "may_install", lambda: True)
    monkeypatch.setattr(browser, "run", lambda command, what, **_: ran.append(command[3:]))
    monkeypatch.setattr(browser, "find_browser", lambda: "/usr/bin/chromium" if len(ran) == 2 else None)
    assert browser.ensure_browser() == "/usr/bin/chromium"
    assert [command[-1] for command in ran] == ["update", "chromium"]


def test_a_browser_that_cannot_be_installed_is_not_a_failed_set_up(bare, monkeypatch, tmp_path):
    from scripts import setup_steps

    monkeypatch.setattr(setup_steps, "CACHE", tmp_path)
    monkeypatch.setattr(setup_steps, "SETUP_LOG", tmp_path / "setup.log")
    monkeypatch.setattr(browser, "may_install", lambda: True)
    monkeypatch.setattr(browser, "INSTALL", (["env", "false"],))
    with pytest.raises(BrowserUnavailable, match="Installing chromium failed"):
        browser.ensure_browser()
