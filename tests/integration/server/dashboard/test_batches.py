"""The list of batches: live, filtered by the URL, with decisions that can be undone or need a confirmation."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, expect
from tests.conftest import until
from tests.integration.server.conftest import Serving
from tests.integration.server.dashboard.conftest import OpenPage, OwnRedis
from tests.support.browser import LOOKS, Problems, sideways_pixels, violations
from tests.support.http_server import RunningWorker
from tests.support.leasing import opened

from latentfarm.farm import Farm

pytestmark = pytest.mark.integration

#: the worker of these tests does not serve it
UNSERVED = "unserved"


def submit(farm: Farm, name: str, *, rows: int = 3, model: str = UNSERVED) -> None:
    farm.submit([{"prompt": f"cat {each}", "num_inference_steps": 2} for each in range(rows)], batch=name, model=model)


def row(page: Page, name: str) -> Locator:
    return page.get_by_role("listitem").filter(has=page.get_by_role("link", name=name, exact=True))


def choose(page: Page, batch: str, action: str) -> None:
    row(page, batch).get_by_label(f"Actions of {batch}").click()
    row(page, batch).get_by_role("button", name=action).click()


def test_a_batch_appears_runs_and_completes_under_an_open_page(
    page: Page, farm: Farm, rendering: RunningWorker
) -> None:
    assert rendering
    page.goto("/")
    expect(page.get_by_role("heading", name="No batches yet")).to_be_visible()
    submit(farm, "cats", model="mini")
    expect(row(page, "cats").get_by_text("3 of 3")).to_be_visible()
    expect(row(page, "cats").get_by_text("complete")).to_be_visible()
    expect(row(page, "cats").get_by_role("img")).to_have_attribute("aria-label", "3 done of 3")


def test_a_batch_shows_why_it_waits_until_a_worker_serves_its_model(page: Page, farm: Farm) -> None:
    submit(farm, "cats")
    page.goto("/")
    warning = row(page, "cats").get_by_text("no worker", exact=False)
    expect(warning).to_be_visible()
    about: dict[str, str | int] = {"device": "cpu", "device_name": "cpu", "dtype": "float32", "slots": 1, "draining": 0}
    farm.ledger.heartbeat(UNSERVED, "worker-b", about=about)
    expect(warning).to_be_hidden()
    # its operator starts it again with another alias of the model
    farm.ledger.sign_off(UNSERVED, "worker-b")
    farm.ledger.heartbeat("renamed", "worker-b", about=about)
    expect(row(page, "cats").get_by_text("renamed")).to_be_visible()


def test_pause_resume_and_priority_have_an_undo(page: Page, farm: Farm) -> None:
    submit(farm, "cats")
    page.goto("/")
    choose(page, "cats", "Pause")
    expect(row(page, "cats").get_by_text("paused at 0%")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(row(page, "cats").get_by_text("waiting")).to_be_visible()
    choose(page, "cats", "Priority")
    page.get_by_role("spinbutton").fill("7")
    page.keyboard.press("Enter")
    expect(row(page, "cats").get_by_text("priority 7")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    until(lambda: farm.batch("cats").status().priority == 0)


def test_cancel_and_delete_need_a_confirmation_and_delete_the_name(page: Page, farm: Farm) -> None:
    submit(farm, "cats")
    page.goto("/")
    choose(page, "cats", "Cancel")
    expect(page.get_by_role("dialog")).to_contain_text("3 jobs will not be rendered")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert farm.batch("cats").status().state == "open"
    choose(page, "cats", "Cancel")
    page.get_by_role("button", name="Cancel the batch").click()
    expect(row(page, "cats").get_by_text("cancelled")).to_be_visible()
    choose(page, "cats", "Delete")
    delete = page.get_by_role("dialog").get_by_role("button", name="Delete")
    expect(delete).to_be_disabled()
    page.get_by_label("Type cats to confirm").fill("cats")
    delete.click()
    expect(page.get_by_role("heading", name="No batches yet")).to_be_visible()


def test_a_batch_is_paused_by_keyboard_alone(page: Page, farm: Farm) -> None:
    submit(farm, "cats")
    page.goto("/")
    expect(row(page, "cats")).to_be_visible()
    page.get_by_role("link", name="cats").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Pause", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    expect(row(page, "cats").get_by_text("paused at 0%")).to_be_visible()


def test_the_states_chosen_are_in_the_url_and_survive_a_reload(page: Page, farm: Farm) -> None:
    submit(farm, "cats")
    submit(farm, "dogs")
    farm.batch("dogs").pause()
    page.goto("/")
    page.get_by_role("button", name="paused", exact=True).click()
    expect(row(page, "cats")).to_be_hidden()
    expect(page).to_have_url(re.compile(r"/\?state=paused$"))
    page.reload()
    expect(row(page, "dogs")).to_be_visible()
    expect(row(page, "cats")).to_be_hidden()
    farm.batch("dogs").resume()
    expect(page.get_by_role("heading", name="No batch is in these states")).to_be_visible()


def test_older_batches_are_read_and_stay_when_something_changes(page: Page, farm: Farm) -> None:
    for number in range(51):
        opened(farm.ledger, f"batch-{number:02}")
    page.goto("/")
    expect(row(page, "batch-50")).to_be_visible()
    expect(row(page, "batch-00")).to_be_hidden()
    page.get_by_role("button", name="Older batches").click()
    expect(row(page, "batch-00")).to_be_visible()
    opened(farm.ledger, "newest")
    expect(row(page, "newest")).to_be_visible()
    expect(row(page, "batch-00")).to_be_visible()


def test_the_page_shows_that_redis_is_unavailable_and_recovers(
    serving: Serving, open_page: OpenPage, all_problems: list[Problems], own_redis: OwnRedis
) -> None:
    farm = own_redis.farm
    with own_redis.running():
        page = open_page(serving(farm))
        # the browser reports each 503 as an error
        all_problems[0].allow("503")
        opened(farm.ledger, "cats")
        page.goto("/")
        expect(page.get_by_text("Live")).to_be_visible()
    expect(page.get_by_text("Redis is unavailable")).to_be_visible()
    expect(row(page, "cats")).to_be_visible()
    with own_redis.running():
        opened(farm.ledger, "dogs")
        expect(page.get_by_text("Live")).to_be_visible()
        expect(row(page, "dogs")).to_be_visible()


@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_axe_core_finds_nothing_among_batches_in_all_states(page: Page, farm: Farm) -> None:
    submit(farm, "a-batch-with-a-name-as-long-as-names-may-be-which-is-64-letters")
    submit(farm, "dogs", rows=12)
    farm.batch("dogs").pause("lunch")
    submit(farm, "cows")
    farm.batch("cows").cancel()
    page.goto("/")
    expect(row(page, "dogs").get_by_text("lunch")).to_be_visible()
    row(page, "dogs").get_by_label("Actions of dogs").click()
    assert violations(page) == []
    assert sideways_pixels(page) <= 0
