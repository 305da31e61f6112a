"""Chromium driven by Playwright, what no page may do, and axe-core, which finds what hinders users."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright
from tests.conftest import REPOSITORY
from tests.support.tools import find_browser

AXE = REPOSITORY / ".ci" / "javascript" / "node_modules" / "axe-core" / "axe.min.js"
_ARGUMENTS = (
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    # it connects to nothing but our server
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # the same pixels on every machine
    "--font-render-hinting=none",
    "--force-color-profile=srgb",
)
#: a page that shares two cores with other tests takes some seconds
TIMEOUT_MS = 20_000
#: what axe-core reports as a hindrance for users; the rest is advice
_GRAVE = ("serious", "critical")


@dataclass(frozen=True)
class Look:
    """The width and height of a window, and the colours that its user prefers."""

    width: int = 1600
    height: int = 1000
    colors: Literal["light", "dark"] = "light"

    def __str__(self) -> str:
        return f"{self.width}-{self.colors}"


DESK, DESK_DARK = Look(), Look(colors="dark")
PHONE, PHONE_DARK = Look(375, 800), Look(375, 800, "dark")
#: both widths and both schemes: colours do not depend on the width, nor places on colours
LOOKS = (DESK, PHONE_DARK)


class Problems:
    """What a page did that none may do: errors on its console, uncaught errors, requests to other hosts."""

    def __init__(self, context: BrowserContext, origin: str) -> None:
        self._found: list[str] = []
        self._allowed: list[str] = []
        self._origin = origin
        context.on("console", self._on_console)
        context.on("weberror", lambda error: self._found.append(f"uncaught: {error.error}"))
        context.on("request", lambda request: self._on_request(request.url))

    def allow(self, pattern: str) -> None:
        """Accept problems that the expression matches: the test causes them, such as a stopped server."""
        self._allowed.append(pattern)

    def found(self) -> list[str]:
        """Return the problems that no test has allowed."""
        return [text for text in self._found if not any(re.search(pattern, text) for pattern in self._allowed)]

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self._found.append(f"console: {message.text} ({message.location['url']})")

    def _on_request(self, url: str) -> None:
        if not url.startswith((f"{self._origin}/", "data:", f"blob:{self._origin}/")):
            self._found.append(f"request: {url}")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Provide a browser without a window. Its event loop occupies this thread meanwhile: ``asyncio.run`` fails."""
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=_ARGUMENTS)
        yield browser
        browser.close()


def new_context(browser: Browser, origin: str, look: Look = DESK) -> BrowserContext:
    """Return a context without cookies and storage, whose pages open the paths of a server."""
    context = browser.new_context(
        base_url=origin,
        viewport={"width": look.width, "height": look.height},
        color_scheme=look.colors,
        reduced_motion="reduce",
        locale="en-GB",
        timezone_id="UTC",
    )
    context.set_default_timeout(TIMEOUT_MS)
    return context


@cache
def _axe_source() -> str:
    assert AXE.exists(), f"there is no {AXE}; `make install` makes it"
    return AXE.read_text()


def violations(page: Page) -> list[str]:
    """Return what axe-core finds on the page that hinders users of a screen reader, a keyboard or poor sight."""
    # not by a script element: the page's policy refuses one
    page.evaluate(_axe_source())
    found: list[dict[str, Any]] = page.evaluate(
        "axe.run({resultTypes: ['violations']}).then(found => found.violations)"
    )
    return [
        f"{each['id']} ({each['impact']}): {each['help']}: {node['html']}"
        for each in found
        if each["impact"] in _GRAVE
        for node in each["nodes"]
    ]


def sideways_pixels(page: Page) -> int:
    """Return by how many pixels the page is wider than its window: a phone's user would have to scroll sideways."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
