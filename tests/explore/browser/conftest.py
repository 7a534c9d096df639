"""The page in a real browser: `make test-browser` installs what this needs."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pliant.app.explore.server import Server

# --disable-…: Chromium itself is not to look for anything on the network.
OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser")
    with api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        path = next(filter(None, map(shutil.which, NAMES)), None) or (str(own) if own.exists() else None)
        if path is None:
            pytest.skip("there is no Chromium here: make test-browser")
        started = playwright.chromium.launch(executable_path=path, args=[*OPTIONS, "--disable-sync"])
        yield started
        started.close()


class Page:
    """An open page, and everything it complained about or asked of anybody."""

    def __init__(self, browser: Any, address: str, width: int, scheme: str, **options: Any) -> None:
        height = 900 if width > 600 else 850
        self.page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)
        self.settled()

    def until(self, condition: str, seconds: float = 30) -> None:
        """Wait until a condition holds; Playwright's own way needs eval, which the page forbids."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < end, condition
            self.page.wait_for_timeout(15)

    def settled(self) -> None:
        """Wait until the last answer is there and drawn."""
        self.until("document.getElementById('stage').dataset.ready && !asking && !drawing && sheet")

    def answered(self, act: Callable[[], Any]) -> None:
        """Do what makes the page ask the server, and wait for what it makes of the answer."""
        before = self.page.evaluate("document.getElementById('stage').dataset.ready")
        act()
        self.until(f"document.getElementById('stage').dataset.ready !== '{before}'")
        self.settled()

    def model(self, id: str) -> None:
        if self.page.input_value("#model") != id:
            self.answered(lambda: self.page.select_option("#model", id))

    def drawn(self) -> str:
        """Return what is on the stage."""
        self.settled()
        return str(self.page.evaluate("document.getElementById('stage').toDataURL()"))

    def changes(self, act: Callable[[], Any]) -> bool:
        before = self.drawn()
        act()
        return self.drawn() != before

    def said(self, text: str) -> None:
        self.until(f"document.getElementById('said').textContent.includes({json.dumps(text)})")

    def over(self, x: float, y: float) -> tuple[float, float]:
        """Return where pixel (y, x) of the picture is on the screen."""
        box = self.page.locator("#stage").bounding_box()
        px, py = self.page.evaluate(f"sheet.at({y}, {x})")
        return box["x"] + 1 + px, box["y"] + 1 + py

    def close(self) -> None:
        self.page.close()
        assert self.complaints == []


@pytest.fixture(scope="package")
def opener(browser: Any) -> Callable[..., Page]:
    """Return what opens a page: of an address, a width, a colour scheme."""

    def opens(address: str, width: int = 1280, scheme: str = "light", **options: Any) -> Page:
        return Page(browser, address, width, scheme, **options)

    return opens


@pytest.fixture
def page(opener: Callable[..., Page], server: Server) -> Iterator[Page]:
    opened = opener(server.address)
    yield opened
    opened.close()
    assert {url for url in opened.asked if not url.startswith((server.address, "data:", "blob:"))} == set()
