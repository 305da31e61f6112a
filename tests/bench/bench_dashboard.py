"""Measure the dashboard in Chromium: a batch of 10^6 jobs, and what open pages cost the server and Redis.

    python -m tests.bench.bench_dashboard            # print the table; a quarter of an hour
    python -m tests.bench.bench_dashboard --write    # also write it into docs/explanation/benchmarks.md

All jobs are in the ledger. One worker renders those of the first pending parts. Chromium draws without a GPU; servers,
worker and pages share the cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from playwright.sync_api import Browser, Page
from tests.bench.bench_server import http_server
from tests.bench.servers import farm_servers, redis_cpu_s, temporary_folder, until, workers
from tests.bench.table import Conditions, Line, parse_arguments, process_cpu_s, report
from tests.support.browser import chromium, new_context
from tests.support.large_batch import make_large_batch

from latentfarm.farm import Farm
from latentfarm.settings import Settings

#: parts that are in the bucket: the first, the last that is done, and the pending ones, which are rendered
_PARTS = (0, 699, *range(700, 780))
_PATH = "/batches/million"
_PAGES = 20
_TIMEOUT_MS = 120_000
_MIB = 1024 * 1024
#: resolves to the time since the navigation began, when the strip shows the states
_PAINTED = """() => new Promise((resolve) => {
  const look = () => {
    const canvas = document.querySelector(".scroller canvas");
    const painted = canvas?.width > 300 && canvas.getContext("2d").getImageData(9, 9, 1, 1).data[3] > 0;
    if (painted) requestAnimationFrame(() => resolve(performance.now()));
    else requestAnimationFrame(look);
  };
  look();
})"""
#: scrolls the strip up and down; resolves to the times between frames
_PAN = """(ms) => new Promise((resolve) => {
  const scroller = document.querySelector(".scroller");
  const times = [];
  let step = 23;
  const pan = (time) => {
    times.push(time);
    if (time > times[0] + ms) return resolve(times.slice(1).map((each, place) => each - times[place]));
    const before = scroller.scrollTop;
    scroller.scrollTop += step;
    if (scroller.scrollTop === before) step = -step;
    requestAnimationFrame(pan);
  };
  requestAnimationFrame(pan);
})"""
#: begins to watch for a text among the counts; `window.shown` is then when it was shown
_WATCH = """(text) => {
  window.shown = 0;
  const counts = document.querySelector(".counts");
  const observer = new MutationObserver(() => {
    if (![...counts.children].some((each) => !each.hidden && each.textContent === text)) return;
    window.shown = Date.now();
    observer.disconnect();
  });
  observer.observe(counts, { subtree: true, childList: true, characterData: true, attributes: true });
}"""


@contextmanager
def opened(browser: Browser, address: str, path: str = _PATH) -> Iterator[Page]:
    """Open a page in a context of its own."""
    with new_context(browser, f"http://{address}") as context:
        context.set_default_timeout(_TIMEOUT_MS)
        page: Page = context.new_page()
        page.goto(path, wait_until="commit")
        yield page


def painted_ms(browser: Browser, address: str, rounds: int) -> list[float]:
    """Open the page with an empty cache; return when each had painted the strip."""
    found = []
    for _ in range(rounds):
        with opened(browser, address) as page:
            found.append(float(page.evaluate(_PAINTED)))
    return found


def frames(page: Page, zooms: int, seconds: float) -> list[float]:
    """Zoom in, and pan; return the milliseconds between two frames."""
    for _ in range(zooms):
        page.get_by_role("button", name="Zoom in").click()
    page.evaluate(_PAN, 500)
    times: list[float] = page.evaluate(_PAN, 1000 * seconds)
    return times


def live_ms(page: Page, farm: Farm, rounds: int) -> list[float]:
    """Change a job's state; return how long the page took to show each change."""
    found = []
    for place in range(rounds):
        # spread over the second in which the page hears of changes once
        page.wait_for_timeout(1_500 + 1_000 * place / rounds)
        page.evaluate(_WATCH, "1 running")
        [lease] = farm.ledger.lease("mini", "bench", 1, lease_s=600)
        changed = time.time()
        until(lambda: bool(page.evaluate("window.shown")), "the count", timeout_s=20)
        found.append(page.evaluate("window.shown") - 1000 * changed)
        farm.ledger.release([lease])
    return found


def heap_bytes(page: Page) -> int:
    """Return the memory of the page's objects after a collection."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    session.send("HeapProfiler.collectGarbage")
    metrics: list[dict[str, Any]] = session.send("Performance.getMetrics")["metrics"]
    session.detach()
    return next(int(each["value"]) for each in metrics if each["name"] == "JSHeapUsedSize")


def heaps_mib(page: Page, minutes: float) -> list[float]:
    """Return the memory of a page, ten times in so many minutes."""
    found = []
    for _ in range(11):
        found.append(heap_bytes(page) / _MIB)
        page.wait_for_timeout(minutes * 6_000)
    return found


def shares(server_pid: int, farm: Farm, wait: Callable[[], None]) -> tuple[float, float]:
    """Return the shares of a core that the server and Redis use meanwhile."""
    client: Any = farm.ledger.redis
    began, server, redis = time.monotonic(), process_cpu_s(server_pid), redis_cpu_s(client)
    wait()
    seconds = time.monotonic() - began
    return (process_cpu_s(server_pid) - server) / seconds, (redis_cpu_s(client) - redis) / seconds


def pages_cost(browser: Browser, address: str, pid: int, farm: Farm, seconds: float) -> tuple[float, float]:
    """Return the shares of a core that open pages cost the server and Redis, while a batch runs."""
    alone = shares(pid, farm, lambda: time.sleep(seconds))
    with ExitStack() as stack:
        pages = [stack.enter_context(opened(browser, address, "/" if place % 2 else _PATH)) for place in range(_PAGES)]
        for page in pages:
            page.get_by_text("Live", exact=True).wait_for()
        # what they read at first is no cost of an open page
        pages[0].wait_for_timeout(5_000)
        watched = shares(pid, farm, lambda: pages[0].wait_for_timeout(1000 * seconds))
    return watched[0] - alone[0], watched[1] - alone[1]


def measure(settings: Settings, folder: Path, *, quick: bool) -> list[Line]:
    """Measure a paused batch, then one that runs."""
    farm = Farm.open(settings)
    batch = make_large_batch(farm, whole=_PARTS, images=1_000)
    rounds, seconds, minutes = (2, 2, 0.1) if quick else (15, 60, 10)
    with http_server(settings, folder) as (address, pid), chromium() as browser:
        painted_ms(browser, address, 1)
        painted = painted_ms(browser, address, rounds)
        with opened(browser, address) as page:
            page.evaluate(_PAINTED)
            groups = frames(page, 1, seconds / 10)
            cells = frames(page, 8, seconds / 10)
            batch.resume()
            live = live_ms(page, farm, rounds)
        with workers(settings, 1, folder / "logs"):
            print(f"painted {painted}, live {live} ms", flush=True)
            until(lambda: batch.status().done > 700_000, "an image")
            done, began = batch.status().done, time.monotonic()
            with opened(browser, address) as page:
                page.evaluate(_PAINTED)
                page.wait_for_timeout(20_000)
                heaps = heaps_mib(page, minutes)
            print(
                f"{(batch.status().done - done) / (time.monotonic() - began):.1f} images/s; heaps {heaps}", flush=True
            )
            server, redis = pages_cost(browser, address, pid, farm, seconds)
            status = batch.status()
    if status.failed > len(_PARTS) * 20:
        raise RuntimeError(f"jobs fail: {status.errors}")
    return [
        Line(f"first paint of the batch's page with its strip, median of {rounds}", median(painted), "ms", 1_000),
        Line("first paint, slowest", max(painted), "ms"),
        *_frame_lines("the strip, all jobs in groups, is panned", groups),
        *_frame_lines("the strip, a cell a job, is panned", cells),
        Line(f"a job changes in the ledger until the page shows it, median of {rounds}", median(live), "ms"),
        Line("a change until the page shows it, slowest", max(live), "ms", 1_000),
        Line(f"growth of the page's memory in {minutes:g} minutes of a running batch", heaps[-1] - heaps[0], "MiB", 1),
        Line("the page's memory then", heaps[-1], "MiB"),
        Line(f"{_PAGES} open pages of a running batch: CPU of the server", 100 * server, "% of a core", 15),
        Line(f"{_PAGES} open pages of a running batch: CPU of Redis", 100 * redis, "% of a core", 2),
    ]


def _frame_lines(label: str, times: list[float]) -> list[Line]:
    return [
        Line(label, 1000 * len(times) / sum(times), "frames/s", 50, at_least=True),
        Line(f"{label}: between frames, slowest of twenty", quantiles(times, n=20)[-1], "ms"),
    ]


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__)
    with temporary_folder() as folder, farm_servers(folder / "farm") as settings:
        conditions = Conditions(Farm.open(settings).ledger.ping())
        lines = measure(settings, folder, quick=arguments.quick)
    return report("dashboard", lines, conditions, write=arguments.write)


if __name__ == "__main__":
    raise SystemExit(main())
