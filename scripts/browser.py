"""A Chromium for the tests of the page: the one that is there, or Debian's. Standard library only."""

from __future__ import annotations

import os
import shutil

from .setup_steps import BrowserUnavailable, run, say

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
APT = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
INSTALL = ([*APT, "update"], [*APT, "install", "--yes", "--no-install-recommends", "chromium"])


def find_browser() -> str | None:
    """The program that WAN_CORE_CHROMIUM names, else the first on the path."""
    return os.environ.get("WAN_CORE_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


def ensure_browser() -> str:
    """A Chromium's path. Installs Debian's package where that can be done without asking: as root, with apt-get.

    Raises BrowserUnavailable.
    """
    found = find_browser()
    if found is None and may_install():
        say("installing Debian's chromium for the tests of the page")
        for command in INSTALL:
            run(command, "Installing chromium", error=BrowserUnavailable)
        found = find_browser()
    if found is None:
        raise BrowserUnavailable(
            f"No browser was found (looked for {', '.join(BROWSERS)}), and only root with apt-get gets one by "
            "itself. Install Chromium, or name one with WAN_CORE_CHROMIUM."
        )
    return found


def may_install() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get") is not None
