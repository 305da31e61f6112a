"""A batch: a strip with a cell for each job, live; filters in the URL, failures, images, decisions, and faults."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, expect
from tests.conftest import until
from tests.integration.server.conftest import Serving
from tests.integration.server.dashboard.conftest import OpenPage, OwnRedis, StoppableServer
from tests.support.browser import LOOKS, Problems, sideways_pixels, violations
from tests.support.http_server import RunningWorker
from tests.support.leasing import opened

from latentfarm.farm import Farm
from latentfarm.ledger import Lease
from latentfarm.submission.request import SubmitOptions

pytestmark = pytest.mark.integration

#: the worker of these tests does not serve it
UNSERVED = "unserved"
JOBS = 12
#: pixels of a cell in which a strip of so few jobs begins
CELL = 24
#: the state whose colour a pixel of the strip has, and how opaque it is
_PIXEL = """([x, y]) => {
  const context = document.querySelector(".scroller canvas").getContext("2d");
  const [red, green, blue, alpha] = context.getImageData(x, y, 1, 1).data;
  const distance = (state) => {
    const probe = document.body.appendChild(document.createElement("span"));
    probe.style.color = `var(--${state})`;
    const color = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
    probe.remove();
    return Math.abs(color[0] - red) + Math.abs(color[1] - green) + Math.abs(color[2] - blue);
  };
  const states = ["pending", "leased", "done", "failed", "cancelled"];
  return [states.sort((one, other) => distance(one) - distance(other))[0], alpha];
}"""


def submit(farm: Farm, name: str = "cats", *, model: str = UNSERVED, canary: int = 0) -> None:
    rows = [{"prompt": f"cat {each}", "num_inference_steps": 2, "width": 64, "height": 64} for each in range(JOBS)]
    farm.submit(rows, batch=name, model=model, options=SubmitOptions(canary=canary))


def lease(farm: Farm, count: int) -> list[Lease]:
    return farm.ledger.lease(UNSERVED, "worker-x", count, lease_s=60)


def fail(farm: Farm, leases: list[Lease], code: str) -> None:
    for each in leases:
        farm.ledger.fail(each, {"code": code, "message": f"it is {code}"})


def cell(index: int) -> tuple[int, int]:
    """Return a pixel of a job's cell, in a strip of one row."""
    return index * CELL + CELL // 2, CELL // 2


def pixel(page: Page, x: int, y: int) -> tuple[str, int]:
    state, alpha = page.evaluate(_PIXEL, [x, y])
    return state, alpha


def strip(page: Page) -> Locator:
    return page.get_by_role("application")


def expect_cell(page: Page, index: int, state: str) -> None:
    expect(strip(page)).to_be_visible()
    until(lambda: pixel(page, *cell(index))[0] == state)


def point(page: Page) -> Locator:
    """Return the text about the job of the cursor, or of the pointer."""
    return page.locator(".strip [role=status]")


def images(page: Page) -> Locator:
    return page.get_by_role("region", name="Images")


def test_the_strip_and_the_counts_change_with_the_ledger(page: Page, farm: Farm) -> None:
    submit(farm)
    page.goto("/batches/cats")
    expect_cell(page, 1, "pending")
    first, second = lease(farm, 2)
    expect_cell(page, 1, "leased")
    expect(page.locator(".counts li:visible")).to_have_text(["2 running", "10 pending"])
    strip(page).hover(position={"x": cell(1)[0], "y": cell(1)[1]})
    expect(point(page)).to_have_text("Job 1: running")
    fail(farm, [second], "engine_error")
    expect_cell(page, 1, "failed")
    expect(point(page)).to_have_text("Job 1: failed")
    farm.ledger.release([first])
    expect_cell(page, 0, "pending")
    expect(page.get_by_role("button", name="failed 1")).to_be_visible()


def test_finished_images_come_and_open_by_pointer_and_by_keyboard(
    page: Page, farm: Farm, rendering: RunningWorker
) -> None:
    assert rendering
    submit(farm, model="mini")
    page.goto("/batches/cats")
    expect(page.locator(".badge")).to_have_text("complete")
    expect(images(page).get_by_role("heading")).to_have_text("Latest images")
    expect(images(page).get_by_role("link", name="cat 11").first).to_be_visible()
    expect(images(page).get_by_role("listitem")).to_have_count(JOBS)
    expect_cell(page, 3, "done")
    strip(page).click(position={"x": cell(3)[0], "y": cell(3)[1]})
    expect(page).to_have_url(re.compile("/batches/cats/images/3$"))
    page.go_back()
    expect(point(page)).to_have_text("Job 3: done")
    strip(page).focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(point(page)).to_have_text("Job 1: done")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/batches/cats/images/1$"))


def test_filters_fade_other_cells_list_jobs_and_survive_a_reload(page: Page, farm: Farm) -> None:
    submit(farm)
    leases = lease(farm, 4)
    fail(farm, leases[:1], "engine_error")
    fail(farm, leases[1:3], "worker_lost")
    page.goto("/batches/cats")
    expect_cell(page, 0, "failed")
    page.get_by_role("button", name="running").click()
    page.get_by_role("button", name="failed 3").click()
    expect(images(page).get_by_role("listitem")).to_have_count(4)
    page.get_by_role("button", name="running").click()
    page.get_by_role("button", name="worker_lost 2").click()
    expect(images(page).get_by_role("listitem")).to_have_count(2)
    expect(page).to_have_url(re.compile(r"\?state=failed&code=worker_lost$"))
    page.reload()
    expect(page.get_by_role("button", name="worker_lost 2")).to_have_attribute("aria-pressed", "true")
    listed = ["worker_lost: it is worker_lost1", "worker_lost: it is worker_lost2"]
    expect(images(page).get_by_role("listitem")).to_have_text(listed)
    link = images(page).get_by_role("link", name="Open in the gallery")
    expect(link).to_have_attribute("href", "/batches/cats/gallery?state=failed&code=worker_lost")
    until(lambda: pixel(page, *cell(1))[1] == 255 and pixel(page, *cell(5))[1] < 60)
    page.get_by_role("button", name="worker_lost 2").click()
    page.get_by_role("button", name="failed 3").click()
    until(lambda: pixel(page, *cell(5))[1] == 255)
    expect(page).to_have_url(re.compile("/batches/cats$"))


def test_failures_are_retried_by_code_but_not_those_of_invalid_rows(page: Page, farm: Farm) -> None:
    submit(farm)
    for each, code in zip(lease(farm, 3), ("engine_error", "invalid_row", "worker_lost"), strict=True):
        fail(farm, [each], code)
    page.goto("/batches/cats")
    rows_of = page.get_by_role("region", name="Failures").get_by_role("listitem")
    expect(rows_of).to_have_count(3)
    invalid = rows_of.filter(has_text="invalid_row")
    expect(invalid).to_contain_text("Cannot run: the row is invalid")
    expect(invalid.get_by_role("button")).to_have_count(0)
    expect(rows_of.filter(has_text="worker_lost").get_by_role("link", name="2")).to_be_visible()
    page.get_by_role("button", name="Retry worker_lost").click()
    expect(page.get_by_text("1 job of cats will run again.")).to_be_visible()
    expect(rows_of).to_have_count(2)
    assert farm.batch("cats").status().errors == {"invalid_row": 1, "engine_error": 1}


def test_pause_shows_why_the_batch_waits_and_has_an_undo(page: Page, farm: Farm) -> None:
    submit(farm)
    page.goto("/batches/cats")
    expect(page.locator(".warnings")).to_contain_text("no worker")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".badge")).to_have_text("paused at 0%")
    expect(page.locator(".warnings")).to_contain_text("in the dashboard")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".badge")).to_have_text("waiting")


def test_the_images_of_a_canary_come_first_and_resume_lets_the_batch_go_on(
    page: Page, farm: Farm, rendering: RunningWorker
) -> None:
    assert rendering
    submit(farm, model="mini", canary=2)
    page.goto("/batches/cats")
    expect(images(page).get_by_role("heading")).to_have_text("The canary's images")
    expect(images(page).get_by_role("listitem")).to_have_count(2)
    assert page.locator("section").first.get_attribute("aria-label") == "Images"
    images(page).get_by_role("button", name="Resume").click()
    expect(page.locator(".badge")).to_have_text("complete")
    expect(images(page).get_by_role("heading")).to_have_text("Latest images")
    expect(images(page).get_by_role("listitem")).to_have_count(JOBS)
    assert page.locator("section").first.get_attribute("aria-label") == "Jobs"


def test_a_jump_moves_the_cursor_and_lists_the_job_and_refuses_what_is_no_index(page: Page, farm: Farm) -> None:
    submit(farm)
    page.goto("/batches/cats")
    index = page.get_by_role("textbox", name="Index of a job")
    for text in ("12", "-1", "cat"):
        index.fill(text)
        index.press("Enter")
        expect(page.get_by_text(f"There is no job {text}: write a number from 0 to 11.")).to_be_visible()
    index.fill("7")
    page.get_by_role("button", name="Go to job").click()
    expect(page.get_by_text("There is no job")).to_be_hidden()
    expect(point(page)).to_have_text("Job 7: pending")
    expect(images(page).get_by_role("heading")).to_have_text("Jobs from 7 on")
    expect(images(page).get_by_role("listitem").first).to_contain_text("7")
    page.reload()
    expect(point(page)).to_have_text("Job 7: pending")
    # it has no image, and no error
    strip(page).click(position={"x": cell(7)[0], "y": cell(7)[1]})
    expect(page).to_have_url(re.compile(r"/batches/cats\?at=7$"))


def test_a_batch_that_is_deleted_under_its_page_is_reported(page: Page, farm: Farm, problems: Problems) -> None:
    problems.allow("404")
    submit(farm)
    page.goto("/batches/cats")
    expect_cell(page, 0, "pending")
    farm.batch("cats").delete()
    expect(page.get_by_role("heading", name="cats was deleted")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="There is no batch cats")).to_be_visible()
    page.get_by_role("main").get_by_role("link").click()
    expect(page.get_by_role("heading", name="Batches", exact=True)).to_be_visible()


def test_a_page_reports_that_the_server_stopped_and_what_was_deleted_meanwhile(
    stoppable: StoppableServer, farm: Farm
) -> None:
    submit(farm)
    submit(farm, "dogs")
    page, other = stoppable.open_page(), stoppable.open_page()
    page.goto("/batches/cats")
    other.goto("/batches/dogs")
    for each in (page, other):
        expect_cell(each, 0, "pending")
    stoppable.stop()
    expect(page.get_by_text("The server does not answer.")).to_be_visible()
    expect_cell(page, 0, "pending")
    farm.batch("dogs").delete()
    lease(farm, 1)
    stoppable.start()
    expect_cell(page, 0, "leased")
    expect(page.get_by_text("The server does not answer.")).to_be_hidden()
    expect(other.get_by_role("heading", name="dogs was deleted")).to_be_visible()


def test_the_strip_stays_while_redis_is_unavailable_and_goes_on_after(
    serving: Serving, open_page: OpenPage, all_problems: list[Problems], own_redis: OwnRedis
) -> None:
    farm = own_redis.farm
    with own_redis.running():
        page = open_page(serving(farm))
        # the browser reports each 503 as an error
        all_problems[0].allow("503")
        opened(farm.ledger, "cats", JOBS, model=UNSERVED)
        page.goto("/batches/cats")
        expect_cell(page, 0, "pending")
    expect(page.get_by_text("Redis is unavailable")).to_be_visible()
    expect_cell(page, 0, "pending")
    with own_redis.running():
        opened(farm.ledger, "cats", JOBS, model=UNSERVED)
        lease(farm, 1)
        expect(page.get_by_text("Live")).to_be_visible()
        expect_cell(page, 0, "leased")


@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_axe_core_finds_nothing_in_a_batch_with_failures(page: Page, farm: Farm) -> None:
    submit(farm)
    leases = lease(farm, 3)
    fail(farm, leases[:1], "engine_error")
    fail(farm, leases[1:2], "invalid_row")
    page.goto("/batches/cats?state=failed&at=1")
    expect(page.get_by_role("region", name="Failures").get_by_role("listitem")).to_have_count(2)
    expect(images(page).get_by_role("listitem")).to_have_count(1)
    assert violations(page) == []
    assert sideways_pixels(page) <= 0
