"""The drafts of a batch in the dashboard: they are picked, finished and discarded, and seen in each view."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect
from tests.integration.server.conftest import Serving
from tests.integration.server.dashboard.conftest import OpenPage
from tests.support.browser import LOOKS, Problems, sideways_pixels, violations
from tests.support.drafts import STOPPED, WHOLE, drafted_batch, work

from latentfarm.batch_drafts import DraftSelection
from latentfarm.farm import Farm
from latentfarm.server.security.keys import new_key

pytestmark = pytest.mark.integration

PATH = "/batches/cats/gallery"
LEFT = WHOLE - STOPPED


def tile(page: Page, index: int) -> Locator:
    return page.locator(f'.tile[data-key="{index}"]')


def shown(page: Page, *indices: int) -> None:
    """Wait until the page has exactly these jobs."""
    page.wait_for_function(
        "wanted => [...document.querySelectorAll('.tile')].map(each => each.dataset.key).join() === wanted",
        arg=",".join(map(str, indices)),
    )


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def confirm(page: Page, button: str, title: str, text: str) -> None:
    """Press a button of the drafts, and confirm its price."""
    page.get_by_role("region", name="Drafts").get_by_role("button", name=button).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading", name=title)).to_be_visible()
    expect(dialog).to_contain_text(text)
    dialog.get_by_role("button", name=title.partition(" ")[0]).click()
    expect(dialog).to_be_hidden()


def test_drafts_are_picked_by_keyboard_finished_and_the_rest_is_discarded(page: Page, farm: Farm) -> None:
    drafted_batch(farm, [f"a cat {index}" for index in range(8)])
    page.goto("/?state=drafted")
    row = page.get_by_role("listitem").filter(has=page.get_by_role("link", name="cats", exact=True))
    expect(row.get_by_role("img", name="8 drafted of 8")).to_be_visible()
    expect(row.locator(".badge")).to_have_text("drafted")
    row.get_by_label("Actions of cats").click()
    row.get_by_role("button", name="Choose drafts").click()

    shown(page, *range(8))
    drafts = page.get_by_role("region", name="Drafts")
    expect(drafts).to_contain_text("8 drafts")
    expect(tile(page, 3).locator(".badge")).to_have_text(f"draft, {STOPPED} of {WHOLE}")
    expect(tile(page, 3).locator("img")).to_have_js_property("complete", value=True)
    assert tile(page, 3).locator("img").evaluate("image => image.naturalWidth") == 64
    expect(drafts.get_by_role("button", name="Finish 0 picked …")).to_be_disabled()
    press(page, "ArrowRight", "p", "ArrowRight", "x", "ArrowRight", "ArrowRight", "p")
    # what is picked is not discarded with the rest
    expect(drafts.get_by_role("button", name="Discard the rest …")).to_be_disabled()
    text = f"It takes {2 * LEFT} evaluations of the model. 6 other drafts stay."
    confirm(page, "Finish 2 picked …", "Finish 2 drafts?", text)
    expect(page.get_by_text("2 drafts will be finished.")).to_be_visible()
    shown(page, 1, 2, 4, 5, 6, 7)
    expect(drafts).to_contain_text("6 drafts")
    expect(drafts.get_by_role("button", name="Finish 0 picked …")).to_be_visible()
    confirm(
        page,
        "Discard 1 rejected …",
        "Discard 1 draft?",
        f"It saves {LEFT} evaluations of the model. There is no way back.",
    )
    shown(page, 2, 4, 5, 6, 7)

    work(farm)
    page.get_by_role("button", name=re.compile("^done")).click()
    shown(page, 0, 2, 3, 4, 5, 6, 7)
    expect(tile(page, 3).locator(".badge")).to_be_hidden()
    expect(tile(page, 3).get_by_role("button", name="Pick")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name=re.compile("^done")).click()
    shown(page, 2, 4, 5, 6, 7)
    confirm(page, "Discard the rest …", "Discard 5 drafts?", f"It saves {5 * LEFT} evaluations")
    expect(drafts).to_be_hidden()
    # with no draft left, the images are shown
    shown(page, 0, 3)
    expect(page.get_by_role("button", name="done 2")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".badge").first).to_have_text("complete")
    assert (farm.batch("cats").status().done, farm.batch("cats").status().cancelled) == (2, 6)


def test_a_draft_is_seen_in_the_other_views(page: Page, farm: Farm) -> None:
    drafted_batch(farm, ["a cat", "a dog"])
    page.goto("/batches/cats")
    expect(page.get_by_role("heading", name="Latest drafts")).to_be_visible()
    expect(page.get_by_role("button", name="drafted 2")).to_be_visible()
    page.locator(".scroller").focus()
    press(page, "Home", "ArrowRight")
    expect(page.get_by_text("Job 1: drafted")).to_be_visible()
    press(page, "Enter")
    expect(page.get_by_text(f"draft, {STOPPED} of {WHOLE}")).to_be_visible()
    expect(page.locator(".stage > .large")).to_have_attribute("src", re.compile("draft=1"))
    page.get_by_role("button", name="Reject").click()
    page.get_by_role("navigation", name="Views of the batch").get_by_role("link", name="Gallery").click()
    expect(page.get_by_role("button", name="Discard 1 rejected …")).to_be_enabled()
    # another user finishes one and discards the rest: the pages hear of it
    page.get_by_role("link", name="Grid").click()
    image = page.get_by_role("region", name="Grid").locator('[data-job="0"] img')
    expect(image).to_have_attribute("src", re.compile("draft=1"))
    farm.batch("cats").finish(DraftSelection(indices=(0,)))
    work(farm)
    expect(image).not_to_have_attribute("src", re.compile("draft=1"))
    page.get_by_role("link", name="Gallery").click()
    shown(page, 1)
    farm.batch("cats").discard(DraftSelection())
    expect(page.get_by_role("region", name="Drafts")).to_be_hidden()


def test_a_key_that_may_only_read_sees_drafts_and_decides_nothing(
    serving: Serving, open_page: OpenPage, all_problems: list[Problems], farm: Farm, tmp_path: Path
) -> None:
    secret, key = new_key("viewer", "read")
    (tmp_path / "keys.txt").write_text(f"{key.line}\n")
    drafted_batch(farm, ["a cat"])
    page = open_page(serving(api_keys_file=tmp_path / "keys.txt"))
    all_problems[0].allow("401")
    page.goto(PATH)
    page.get_by_label("Key").fill(secret)
    page.keyboard.press("Enter")
    shown(page, 0)
    expect(page.get_by_role("region", name="Drafts")).to_contain_text("1 draft")
    expect(page.get_by_role("region", name="Drafts").get_by_role("button")).to_have_count(0)


@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_axe_core_finds_nothing_in_the_gallery_of_drafts(page: Page, farm: Farm) -> None:
    drafted_batch(farm, [f"a cat {index}" for index in range(12)])
    farm.batch("cats").pick([0, 3, 7], "picked", rating=4)
    farm.batch("cats").pick([1], "rejected")
    page.goto(PATH)
    expect(page.get_by_role("button", name="Finish 3 picked …")).to_be_enabled()
    assert violations(page) == []
    assert sideways_pixels(page) <= 0
