"""Chromium, where it is installed: what tests of pages drive."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def chromium() -> str:
    """Its path; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"NO BROWSER: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")
    return found


@contextmanager
def page(path: Path, **options: Any) -> Iterator[tuple[Any, list[str]]]:
    """The page at ``path``, and what went wrong with it so far: errors on the console, requests for anything else."""
    playwright = pytest.importorskip("playwright.sync_api", reason="NO BROWSER DRIVER: pip install playwright")
    faults: list[str] = []
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        try:
            shown = browser.new_page(**options)
            shown.on("console", lambda message: faults.append(f"console: {message.text}"))
            shown.on("pageerror", lambda error: faults.append(f"error: {error}"))
            shown.on("request", lambda request: _note(faults, request.url, path))
            shown.goto(path.resolve().as_uri())
            yield shown, faults
        finally:
            browser.close()


def _note(faults: list[str], url: str, path: Path) -> None:
    if url.split("#")[0] != path.resolve().as_uri() and not url.startswith("data:"):
        faults.append(f"request: {url}")
