"""A headless Chromium for the tests of pages: where it is, and how it is started."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

ARGUMENTS = ("--headless=shell", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
MADE = Path(sys.prefix) / "browser"
"""Where `make browser` puts it."""


@contextmanager
def browser() -> Iterator[Browser]:
    """Skips the test that asks for it if there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("no playwright: pip install -e '.[test]', then `make browser`")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(**found_at(playwright), args=list(ARGUMENTS))
        yield found
        found.close()


def found_at(playwright: Playwright) -> dict[str, Any]:
    """As $AUTOPAR_CHROMIUM says, as `make browser` made it, or playwright's own."""
    if named := os.environ.get("AUTOPAR_CHROMIUM"):
        assert Path(named).exists(), f"AUTOPAR_CHROMIUM: there is no {named}"
        return {"executable_path": named}
    if (made := MADE / "chromium").exists():
        return {"executable_path": str(made), "env": {**os.environ, **libraries()}}
    if Path(playwright.chromium.executable_path).exists():
        return {}
    pytest.skip("no Chromium: `make browser`, or name one with AUTOPAR_CHROMIUM")


def libraries() -> dict[str, str]:
    """Those that came with it, where the system has none."""
    return {} if find_library("nss3") else {"LD_LIBRARY_PATH": str(MADE / "lib")}
