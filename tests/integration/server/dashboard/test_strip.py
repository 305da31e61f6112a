"""The strip of a batch of 10^6 jobs: zoom and pan by pointer and by keyboard, and windows of a larger batch."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect
from tests.conftest import until
from tests.integration.server.dashboard.test_batch import images, pixel, point, strip
from tests.support.browser import Problems
from tests.support.large_batch import JOBS, make_large_batch

from latentfarm.farm import Farm

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def zoom_in(page: Page, steps: int) -> None:
    for _ in range(steps):
        page.get_by_role("button", name="Zoom in").click()


def height(page: Page) -> int:
    """Return the height of all rows."""
    return int(page.locator(".sheet").bounding_box()["height"])  # type: ignore[index]


def scrolled(page: Page) -> int:
    return int(strip(page).evaluate("element => element.scrollTop"))


def has_failed_pixel(page: Page) -> bool:
    """Return whether a pixel of the strip has the colour of failed jobs, in full."""
    script = """canvas => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      canvas.style.color = "var(--failed)";
      const [red, green, blue] = getComputedStyle(canvas).color.match(/\\d+/g).map(Number);
      return new Uint32Array(data.buffer).includes(((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0);
    }"""
    return bool(page.locator(".scroller canvas").evaluate(script))


@pytest.fixture
def million(farm: Farm, problems: Problems) -> str:
    """A batch of which one job of the last done part and none of the others has failed; most images are missing."""
    problems.allow("404")
    return make_large_batch(farm, whole=(0, 699), images=2).name


def test_all_jobs_are_seen_at_once_and_a_failed_one_among_them(page: Page, million: str, farm: Farm) -> None:
    page.goto(f"/batches/{million}")
    expect(strip(page)).to_have_attribute("aria-label", "1,000,000 jobs from 0 on, a cell each")
    until(lambda: pixel(page, 100, 100)[0] == "done" and pixel(page, 100, 300)[0] == "pending")
    assert has_failed_pixel(page)
    page.get_by_role("button", name="Change between light and dark").click()
    until(lambda: has_failed_pixel(page))
    # nothing to scroll
    assert height(page) <= 320
    # the ledger changes under the page
    client: Any = farm.ledger.redis
    client.setrange("{lf}:states:million:0", 0, bytes([4]) * 600_000)
    client.hincrby("{lf}:batch:million", "cancelled", 1)
    until(lambda: pixel(page, 100, 100)[0] == "cancelled")


def test_the_strip_is_zoomed_and_moved_by_keyboard(page: Page, million: str) -> None:
    page.goto(f"/batches/{million}")
    expect(strip(page)).to_have_attribute("aria-label", "1,000,000 jobs from 0 on, a cell each")
    strip(page).focus()
    page.keyboard.press("End")
    expect(point(page)).to_contain_text("Job 999,")
    for _ in range(20):
        page.keyboard.press("+")
    assert height(page) > 100_000
    page.keyboard.press("End")
    expect(point(page)).to_have_text("Job 999,999: pending")
    assert scrolled(page) > 100_000
    page.keyboard.press("ArrowLeft")
    expect(point(page)).to_have_text("Job 999,998: pending")
    columns = strip(page).evaluate("element => Math.floor(element.clientWidth / 24)")
    page.keyboard.press("ArrowUp")
    expect(point(page)).to_have_text(f"Job {999_998 - columns:,}: pending")
    page.keyboard.press("Home")
    expect(point(page)).to_have_text("Job 0: done")
    assert scrolled(page) == 0
    for _ in range(20):
        page.keyboard.press("-")
    assert height(page) <= 320


def test_the_strip_is_zoomed_and_moved_by_pointer(page: Page, million: str) -> None:
    page.goto(f"/batches/{million}")
    expect(strip(page)).to_have_attribute("aria-label", "1,000,000 jobs from 0 on, a cell each")
    strip(page).hover(position={"x": 400, "y": 100})
    page.keyboard.down("Control")
    for _ in range(8):
        page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    until(lambda: height(page) > 1_000)
    zoom_in(page, 4)
    before = scrolled(page)
    strip(page).hover(position={"x": 400, "y": 200})
    page.mouse.down()
    box = strip(page).bounding_box()
    assert box
    page.mouse.move(box["x"] + 400, box["y"] + 20, steps=5)
    page.mouse.up()
    assert scrolled(page) > before
    # a drag is no click
    expect(page).to_have_url(re.compile("/batches/million$"))
    before = scrolled(page)
    page.mouse.wheel(0, 500)
    until(lambda: scrolled(page) > before)
    page.get_by_role("button", name="Show all jobs").click()
    assert height(page) <= 320


def test_a_jump_goes_to_the_job(page: Page, million: str) -> None:
    page.goto(f"/batches/{million}")
    index: Locator = page.get_by_role("textbox", name="Index of a job")
    expect(index).to_have_attribute("placeholder", "0 to 999,999")
    index.fill("699,949")
    index.press("Enter")
    expect(point(page)).to_have_text("Job 699,949: failed")
    expect(images(page).get_by_role("listitem").first).to_contain_text("699,949")
    expect(page).to_have_url(re.compile(r"\?at=699949$"))
    strip(page).focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/batches/million/images/699949$"))


def test_the_strip_of_a_larger_batch_has_a_window_that_a_jump_moves(page: Page, farm: Farm, problems: Problems) -> None:
    # it has no manifest
    problems.allow("503")
    farm.ledger.create_batch("cats", digest="d", model="unserved")
    farm.ledger.append_jobs("cats", before=0, total=2 * JOBS + 7, parts_digest="p", closed=True)
    page.goto("/batches/cats")
    expect(page.get_by_text("Jobs 0 to 999,999 of 2,000,007")).to_be_visible()
    index = page.get_by_role("textbox", name="Index of a job")
    index.fill("2000003")
    index.press("Enter")
    expect(page.get_by_text("Jobs 2,000,000 to 2,000,006 of 2,000,007")).to_be_visible()
    expect(point(page)).to_have_text("Job 2,000,003: pending")
