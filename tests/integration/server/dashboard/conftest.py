"""A browser for the tests of the dashboard.

- ``page`` is a new page in a context of its own. After the test, an error on the console, an uncaught error and a
  request to another host fail it. A test that stops the server calls ``problems.allow(EXPRESSION)`` before.
- ``look`` is its window. With ``@pytest.mark.parametrize("look", LOOKS, ids=str)``, a test runs with 1600 pixels
  of width in light and with 375 in dark.
- ``open_page(server)`` opens further pages, of other servers too: ``open_page(serving(api_keys_file=...))``.
- ``stoppable`` is a server that is stopped and started again under an open page, ``own_redis`` a farm whose Redis is.
- ``server``, ``serving`` and ``rendering`` (a worker with a tiny model) are those of the folder above.
- In tests/support: ``browser.violations(page)`` is what axe-core finds; ``large_batch`` makes a batch of 10^6 jobs.

``expect(...)`` waits 20 s for what it states, and ``page.wait_for_function("() => ...")`` for anything else; nothing
sleeps. An expression that is no function would need ``eval`` there, which the page's policy refuses. While a module
with these fixtures runs, Playwright's event loop occupies the test's thread: no ``asyncio.run`` there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from itertools import count
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Page
from tests.integration.server.conftest import Serving
from tests.support.browser import DESK, Look, Problems, chromium, new_context
from tests.support.http_server import RunningServer, RunningWorker
from tests.support.machines import free_ports
from tests.support.redis_process import running_redis

from latentfarm.farm import Farm
from latentfarm.server.live import hub
from latentfarm.settings import Settings

OpenPage = Callable[..., Page]
_PAGE = pytest.StashKey[list[Page]]()


# not of the session: Playwright's event loop would be in the way of tests in other modules
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def look() -> Look:
    return DESK


@pytest.fixture
def all_problems() -> list[Problems]:
    return []


@pytest.fixture
def open_page(
    browser: Browser, look: Look, all_problems: list[Problems], request: pytest.FixtureRequest
) -> Iterator[OpenPage]:
    """Open blank pages of servers, each in a context of its own."""
    pages = request.node.stash.setdefault(_PAGE, [])
    with ExitStack() as stack:

        def open_one(server: RunningServer, look: Look = look) -> Page:
            context = stack.enter_context(new_context(browser, server.url, look))
            all_problems.append(Problems(context, server.url))
            page: Page = context.new_page()
            pages.append(page)
            return page

        yield open_one
    assert [text for problems in all_problems for text in problems.found()] == []


@pytest.fixture
def rendering(rendering: RunningWorker, request: pytest.FixtureRequest) -> Iterator[RunningWorker]:
    """The worker, whose end empties the farm: the pages are closed before it."""
    yield rendering
    for each in request.node.stash.get(_PAGE, []):
        each.close()


@pytest.fixture
def page(open_page: OpenPage, server: RunningServer) -> Page:
    """A blank page; ``page.goto("/")`` opens the dashboard."""
    return open_page(server)


@pytest.fixture
def problems(page: Page, all_problems: list[Problems]) -> Problems:
    assert page
    return all_problems[0]


class StoppableServer:
    """A server that is stopped, and started again at its address, while pages are open."""

    def __init__(self, serving: Serving, open_page: OpenPage, all_problems: list[Problems]) -> None:
        self._serving, self._open_page, self._all_problems = serving, open_page, all_problems
        [port] = free_ports(1)
        self._address = f"127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        self._server: RunningServer = self._serving(address=self._address, shutdown_timeout_s=1)

    def stop(self) -> None:
        self._server.stop()

    def open_page(self) -> Page:
        """Return a blank page, which may complain about the stopped server."""
        page = self._open_page(self._server)
        self._all_problems[-1].allow("404|ERR_CONNECTION|ERR_EMPTY|ERR_INCOMPLETE")
        return page


@pytest.fixture
def stoppable(serving: Serving, open_page: OpenPage, all_problems: list[Problems]) -> StoppableServer:
    return StoppableServer(serving, open_page, all_problems)


class OwnRedis:
    """A farm with a Redis of its own, which runs within ``running()``, empty each time."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        [self._port] = free_ports(1)
        self._folders = (folder / f"redis-{life}" for life in count())
        self.farm = Farm.open(settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{self._port}/0"}))

    def running(self) -> AbstractContextManager[int]:
        return running_redis(next(self._folders), port=self._port)


@pytest.fixture
def own_redis(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OwnRedis:
    monkeypatch.setattr(hub, "_LONGEST_PAUSE_S", 0.2)
    return OwnRedis(settings, tmp_path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report what the pages of a failed test show."""
    report = yield
    if report.when == "call" and report.failed:
        for page in item.stash.get(_PAGE, []):
            # the test may have closed it
            with suppress(Error):
                report.sections.append((f"page {page.url}", page.locator("body").aria_snapshot()[:5_000]))
    return report
