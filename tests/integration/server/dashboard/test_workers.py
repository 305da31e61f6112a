"""Workers in the browser: their facts, what each slot renders, and the drain of one."""

from __future__ import annotations

import re
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Locator, Page, expect
from tests.conftest import until
from tests.integration.server.dashboard.conftest import StoppableServer
from tests.support.browser import LOOKS, sideways_pixels, violations
from tests.support.http_server import WORKER, RunningWorker

from latentfarm.farm import Farm
from latentfarm_worker.service import worker as worker_module

pytestmark = [pytest.mark.integration, pytest.mark.slow]

#: jobs that run for as long as a test needs them
LONG = {"num_inference_steps": 300, "width": 64, "height": 64, "scheduler": "euler"}
#: the first step of a worker may take long on a busy machine
BUSY_MS = 30_000
ABOUT: dict[str, str | int] = {
    "device": "cuda:0",
    "device_name": "NVIDIA H200",
    "dtype": "float16",
    "slots": 3,
    "draining": 0,
}


def card(page: Page, worker: str = WORKER) -> Locator:
    return page.get_by_role("listitem").filter(has=page.get_by_role("heading", name=worker, exact=True))


def set_hidden(page: Page, *, hidden: bool) -> None:
    # headless Chromium hides no page
    page.evaluate("hidden => Object.defineProperty(document, 'hidden', {value: hidden, configurable: true})", hidden)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def test_each_slot_shows_its_job_its_step_and_its_preview_live(
    page: Page, farm: Farm, rendering: RunningWorker
) -> None:
    assert rendering
    page.goto("/workers")
    expect(card(page).get_by_text("0 of 2 slots in use")).to_be_visible()
    expect(card(page).get_by_text("empty")).to_have_count(2)
    batch = farm.submit([{"prompt": "a cat", **LONG}] * 12, batch="cats")
    expect(card(page).get_by_text("2 of 2 slots in use")).to_be_visible(timeout=BUSY_MS)
    expect(card(page).get_by_text(re.compile("mini · float32"))).to_be_visible()
    slot = card(page).get_by_role("listitem").filter(has=page.get_by_role("link", name="cats/0", exact=True))
    # a JPEG of x0 that the browser has decoded
    expect(slot.locator("img")).to_have_attribute("src", re.compile("^data:image/jpeg;base64,"))
    assert slot.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 8
    seen = slot.get_by_text(re.compile(r"^step \d+ of 300$")).inner_text()
    expect(slot.get_by_text(seen, exact=True)).to_be_hidden()
    assert slot.get_by_role("progressbar", name="Steps of cats/0").get_attribute("max") == "300"
    expect(page.get_by_text("10 pending")).to_be_visible()
    slot.get_by_role("link").click()
    expect(page).to_have_url(re.compile("/batches/cats/images/0$"))
    page.go_back()
    batch.cancel()
    expect(card(page).get_by_text("0 of 2 slots in use")).to_be_visible(timeout=BUSY_MS)


def test_a_drained_worker_finishes_or_parks_what_it_has_and_takes_no_more(
    page: Page, farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = RunningWorker(farm, tmp_path)
    # a real one gets a signal, which would end the tests
    monkeypatch.setattr(worker_module, "_terminate", lambda: running.worker.render_loop.drain(time.monotonic() + 3_600))
    try:
        with running.used():
            batch = farm.submit([{"prompt": "a cat", **LONG, "num_inference_steps": 100}] * 40, batch="cats")
            page.goto("/workers")
            expect(card(page).get_by_text("2 of 2 slots in use")).to_be_visible(timeout=BUSY_MS)
            drain = card(page).get_by_role("button", name="Drain …")
            drain.click()
            expect(page.get_by_role("dialog")).to_contain_text("takes no more")
            page.keyboard.press("Escape")
            expect(drain).to_be_focused()
            page.keyboard.press("Enter")
            page.get_by_role("dialog").get_by_role("button", name="Drain").click()
            expect(card(page).get_by_text("draining")).to_be_visible()
            expect(drain).to_be_hidden()
            until(lambda: batch.status().leased == 0, timeout_s=60)
            others = farm.ledger.lease("mini", "worker-b", 40, lease_s=60)
            assert batch.status().done + sum(lease.checkpoint > 0 for lease in others) >= 2
            assert batch.status().done + len(others) == 40
    finally:
        running.stop()


def test_a_model_without_a_worker_and_a_farm_without_workers_have_their_cure(page: Page, farm: Farm) -> None:
    page.goto("/workers")
    expect(page.get_by_role("heading", name="No worker is running")).to_be_visible()
    expect(page.get_by_text("latentfarm worker --devices all")).to_be_visible()
    farm.submit(["a cat", "a dog"], batch="cats", model="unserved")
    warning = page.get_by_text("2 pending; start one with latentfarm worker --model unserved=FOLDER_OR_HUB_ID")
    expect(warning).to_be_visible()
    farm.ledger.heartbeat("unserved", "worker-b", about=ABOUT)
    expect(card(page, "worker-b").get_by_text("NVIDIA H200 · unserved · float16")).to_be_visible()
    expect(warning).to_be_hidden()
    farm.ledger.sign_off("unserved", "worker-b")
    expect(page.get_by_role("heading", name="No worker is running")).to_be_visible()


def test_at_most_16_workers_in_view_are_watched(page: Page, farm: Farm) -> None:
    for number in range(40):
        farm.ledger.heartbeat("mini", f"worker-{number:02}", about={**ABOUT, "slots": 1})

    def watched(url: str) -> list[str]:
        return parse_qs(urlsplit(url).query).get("worker", [])

    page.set_viewport_size({"width": 1600, "height": 3_000})
    page.goto("/workers")
    with page.expect_request(re.compile("/api/events.*worker=worker-00&"), timeout=BUSY_MS) as first:
        pass
    assert watched(first.value.url) == [f"worker-{number:02}" for number in range(16)]
    # those that were scrolled out of view are watched no more
    with page.expect_request(re.compile(r"/api/events\?worker=worker-(?!00)"), timeout=BUSY_MS) as second:
        page.mouse.wheel(0, 100_000)
    assert len(watched(second.value.url)) == 16
    assert "worker-00" not in watched(second.value.url)


def test_a_hidden_page_has_no_stream_and_one_that_is_shown_again_reads_what_it_missed(page: Page, farm: Farm) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(urlsplit(request.url).path))
    page.goto("/workers")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    with page.expect_event("requestfailed", lambda request: "/api/events" in request.url):
        set_hidden(page, hidden=True)
    page.wait_for_load_state("networkidle")
    requests.clear()
    farm.ledger.heartbeat("mini", "worker-b", about=ABOUT)
    page.wait_for_timeout(2_500)
    assert requests == []
    set_hidden(page, hidden=False)
    expect(card(page, "worker-b")).to_be_visible()
    assert "/api/events" in requests


def test_the_page_shows_that_the_server_has_stopped_and_recovers(stoppable: StoppableServer, farm: Farm) -> None:
    page = stoppable.open_page()
    farm.ledger.heartbeat("mini", "worker-b", about=ABOUT)
    page.goto("/workers")
    expect(card(page, "worker-b")).to_be_visible()
    stoppable.stop()
    expect(page.get_by_text("No connection")).to_be_visible()
    expect(page.get_by_text("the last that was known")).to_be_visible()
    # what was known stays
    expect(card(page, "worker-b")).to_be_visible()
    farm.ledger.heartbeat("mini", "worker-c", about=ABOUT)
    stoppable.start()
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    expect(card(page, "worker-c")).to_be_visible()
    expect(page.get_by_text("the last that was known")).to_be_hidden()


@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_axe_core_finds_nothing_at_workers(page: Page, farm: Farm, rendering: RunningWorker) -> None:
    assert rendering
    farm.ledger.heartbeat(
        "mini", "a-worker-whose-host-has-a-long-name-0123456789.example", about={**ABOUT, "draining": 1}
    )
    farm.submit(["a cat"], batch="dogs", model="unserved")
    batch = farm.submit([{"prompt": "a cat", **LONG}], batch="cats")
    page.goto("/workers")
    expect(card(page).get_by_text("1 of 2 slots in use")).to_be_visible(timeout=BUSY_MS)
    assert violations(page) == []
    assert sideways_pixels(page) <= 0
    batch.cancel()
