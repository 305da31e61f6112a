"""The gallery of a batch: pages, filters, decisions about images, exports, and what it shows when it fails."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Locator, Page, expect
from tests.integration.server.conftest import Serving
from tests.integration.server.dashboard.conftest import OpenPage
from tests.support.browser import LOOKS, Problems, sideways_pixels, violations
from tests.support.http_server import RunningServer, RunningWorker
from tests.support.large_batch import SIZE, make_large_batch, prompt_of
from tests.support.s3_front import Faults, front, s3_error

from latentfarm.farm import Farm
from latentfarm.server.security.keys import new_key
from latentfarm.settings import Settings
from latentfarm.storage.keys import image_key, picks_key
from latentfarm.submission.request import SubmitOptions

pytestmark = pytest.mark.integration

PATH = "/batches/cats/gallery"
#: a server, the faults of its bucket, and the answers of its bucket by method
Behind = tuple[RunningServer, Faults, dict[str, Any]]


@pytest.fixture
def cats(farm: Farm) -> None:
    """A batch of 200 jobs: 138 images, the failed jobs 49 and 99, and pending jobs from 140 on."""
    make_large_batch(farm, "cats", total=200, whole=(0,), images=200)


def tiles(page: Page) -> Locator:
    return page.locator(".tile")


def tile(page: Page, index: int) -> Locator:
    return page.locator(f'.tile[data-key="{index}"]')


def shown(page: Page, indices: Sequence[int]) -> None:
    """Wait until the page has exactly these jobs."""
    page.wait_for_function(
        "wanted => [...document.querySelectorAll('.tile')].map(each => each.dataset.key).join() === wanted",
        arg=",".join(map(str, indices)),
    )


def done(start: int, stop: int) -> list[int]:
    return [index for index in range(start, stop) if index not in {49, 99}]


def stored(farm: Farm) -> dict[int, tuple[str | None, int | None]]:
    """Return what is decided, read from the bucket again."""
    return {each.index: (each.pick, each.rating) for each in farm.batch("cats").picks()}


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


@pytest.mark.usefixtures("cats")
def test_each_filter_is_in_the_url_and_survives_a_reload(page: Page, farm: Farm) -> None:
    farm.batch("cats").pick([3, 8], "picked", rating=4)
    farm.batch("cats").pick([5], "rejected")
    page.goto(PATH)
    shown(page, done(0, 61))
    page.get_by_label("Text of the prompt").fill("NUMBER 13")
    shown(page, [13, *range(130, 140)])
    page.get_by_label("Seed").fill("131")
    shown(page, [131])
    expect(page).to_have_url(re.compile(r"gallery\?prompt=NUMBER\+13&seed=131$"))
    page.reload()
    shown(page, [131])
    page.get_by_role("link", name="Gallery").click()
    shown(page, done(0, 61))
    page.get_by_role("button", name="picked", exact=True).click()
    shown(page, [3, 8])
    page.get_by_role("button", name="rejected", exact=True).click()
    shown(page, [3, 5, 8])
    page.locator("select[name=rating]").select_option("★ 4 or more")
    shown(page, [3, 8])
    page.locator("select[name=rating]").select_option("★ 5 or more")
    expect(page.get_by_role("heading", name="Nothing fits these filters")).to_be_visible()
    page.get_by_role("link", name="Show all images").click()
    shown(page, done(0, 61))
    page.get_by_role("button", name=re.compile("^done")).click()
    shown(page, range(60))
    page.get_by_role("button", name=re.compile("^failed")).click()
    shown(page, [49, 99])
    expect(tile(page, 99)).to_contain_text("worker_lost: 3 workers were lost while they rendered it")
    page.get_by_label("Error code").select_option("invalid_image")
    shown(page, [49])
    page.reload()
    shown(page, [49])
    expect(page).to_have_url(re.compile(r"code=invalid_image"))


@pytest.mark.usefixtures("cats")
def test_pages_and_jumps_go_both_ways_and_survive_a_reload(page: Page) -> None:
    page.goto(PATH)
    shown(page, done(0, 61))
    expect(page.get_by_role("button", name="Previous")).to_be_disabled()
    page.get_by_role("button", name="Next").click()
    shown(page, done(61, 122))
    expect(page.get_by_text("Jobs 61 to 121")).to_be_visible()
    page.reload()
    shown(page, done(61, 122))
    page.get_by_role("button", name="Next").click()
    shown(page, range(122, 140))
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.get_by_role("button", name="Previous").click()
    shown(page, done(61, 122))
    # a page that was not turned to has no page before that is known: as many jobs are gone back
    page.get_by_label("Job", exact=True).fill("130")
    page.get_by_role("button", name="Jump").click()
    shown(page, range(130, 140))
    expect(page).to_have_url(re.compile(r"\?start=130$"))
    page.get_by_role("button", name="Previous").click()
    shown(page, done(70, 131))


@pytest.mark.usefixtures("cats")
def test_images_are_decided_about_by_keyboard_alone_and_another_page_sees_it(
    page: Page, farm: Farm, open_page: OpenPage, server: RunningServer
) -> None:
    page.goto(PATH)
    shown(page, done(0, 61))
    # the first key enters the grid, the others move in it
    press(page, "ArrowRight", "p", "ArrowRight", "x", "End", "3", "Home", "ArrowDown", "p", "5", "u")
    columns = page.evaluate("getComputedStyle(document.querySelector('.tiles')).gridTemplateColumns.split(' ').length")
    # what is decided is shown before it is stored
    expect(tile(page, 0).get_by_role("button", name="Pick")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_text("1 picked · 1 rejected · 1 rated")).to_be_visible()
    assert stored(farm) == {0: ("picked", None), 1: ("rejected", None), 60: (None, 3)}
    expect(tile(page, columns).get_by_role("link")).to_be_focused()
    press(page, "Home", "ArrowRight", "ArrowRight", "Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowLeft", "p", "2")
    expect(page.get_by_text("2 images selected")).to_be_visible()
    expect(page.get_by_text("3 picked · 1 rejected · 3 rated")).to_be_visible()
    assert {index: stored(farm)[index] for index in (2, 3)} == {2: ("picked", 2), 3: ("picked", 2)}
    press(page, "Escape", "n")
    shown(page, done(61, 122))
    expect(tile(page, 61).get_by_role("link")).to_be_focused()
    press(page, "j", *"130", "Enter")
    shown(page, range(130, 140))
    expect(tile(page, 130).get_by_role("link")).to_be_focused()
    press(page, "b")
    shown(page, done(70, 131))
    press(page, "?")
    expect(page.get_by_text("P picks, X rejects")).to_be_visible()
    press(page, "Home")
    expect(page.get_by_text("P picks, X rejects")).to_be_hidden()
    press(page, "ArrowRight", "Enter")
    expect(page).to_have_url(re.compile(r"/batches/cats/images/71\?start=70$"))
    page.go_back()
    shown(page, done(70, 131))

    other = open_page(server)
    other.goto(f"{PATH}?pick=picked")
    shown(other, [0, 2, 3])
    expect(tile(other, 3).get_by_label("Rating")).to_have_value("2")


@pytest.mark.usefixtures("cats")
def test_images_are_decided_about_by_buttons_and_an_undo_takes_several_decisions_back(page: Page, farm: Farm) -> None:
    page.goto(PATH)
    shown(page, done(0, 61))
    tile(page, 2).get_by_role("button", name="Pick").click()
    tile(page, 3).get_by_role("button", name="Reject").click()
    tile(page, 4).get_by_label("Rating").select_option("★ 5")
    expect(page.get_by_text("1 picked · 1 rejected · 1 rated")).to_be_visible()
    # a pressed button takes back what it did
    tile(page, 3).get_by_role("button", name="Reject").click()
    tile(page, 1).get_by_role("button", name="Pick").focus()
    tile(page, 4).get_by_role("link").click(modifiers=["Shift"])
    expect(page.get_by_text("4 images selected")).to_be_visible()
    tile(page, 3).get_by_role("button", name="Reject").click()
    expect(page.get_by_text("0 picked · 4 rejected · 1 rated")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("1 picked · 0 rejected · 1 rated")).to_be_visible()
    assert stored(farm) == {2: ("picked", None), 4: (None, 5)}


def test_picks_are_exported_with_results_and_as_a_preference_set(
    page: Page, farm: Farm, rendering: RunningWorker
) -> None:
    assert rendering
    rows = [{"prompt": "a cat", "seed": seed, "num_inference_steps": 1} for seed in range(3)]
    farm.submit(rows, batch="cats", model="mini").wait(timeout_s=120)
    page.goto(PATH)
    shown(page, range(3))
    press(page, "ArrowRight", "p", "4", "ArrowRight", "x")
    expect(page.get_by_text("1 picked · 1 rejected · 1 rated")).to_be_visible()

    def downloaded(name: str) -> Path:
        page.locator("summary").filter(has_text="Export").click()
        with page.expect_download() as found:
            page.get_by_role("link", name=name).click()
        return found.value.path()

    [line] = downloaded("Results of picked").read_text().splitlines()
    assert {name: json.loads(line)[name] for name in ("index", "pick", "rating")} == {
        "index": 0,
        "pick": "picked",
        "rating": 4,
    }
    [pair] = pq.read_table(downloaded("Preference set")).to_pylist()
    keys = [json.loads(line)["key"] for line in page.request.get("/api/batches/cats/results").text().splitlines()]
    assert pair["prompt"] == "a cat"
    assert keys[0] in str(pair["chosen"])
    assert keys[1] in str(pair["rejected"])
    page.locator("summary").filter(has_text="Export").click()
    expect(page.get_by_text("latentfarm fetch cats --pick picked")).to_be_visible()


def test_new_images_are_announced_and_move_nothing_until_they_are_wanted(
    page: Page, farm: Farm, rendering: RunningWorker
) -> None:
    assert rendering
    rows = [{"prompt": "a cat", "seed": seed, "num_inference_steps": 1} for seed in range(3)]
    batch = farm.submit(rows, batch="cats", model="mini", options=SubmitOptions(canary=1))
    page.goto(PATH)
    # an empty page has nothing that could move
    shown(page, [0])
    batch.resume()
    fresh = page.get_by_role("button", name="2 new images")
    expect(fresh).to_be_visible()
    shown(page, [0])
    fresh.click()
    shown(page, range(3))
    expect(page.get_by_role("button", name="new image")).to_be_hidden()


@pytest.fixture
def behind(settings: Settings, serving: Serving, cats: None) -> Iterator[Behind]:
    """A server whose bucket has faults on demand."""
    assert cats is None
    faults = Faults()
    # an empty one would be replaced
    refusals: dict[str, Any] = {"PATCH": s3_error("NotImplemented", 501)}
    with front(settings, refusals, faults=faults) as found:
        yield serving(Farm.open(found)), faults, refusals


def test_picks_wait_for_a_bucket_that_is_unavailable_and_the_page_warns_who_leaves(
    behind: Behind,
    open_page: OpenPage,
    all_problems: list[Problems],
    farm: Farm,
) -> None:
    server, _, refusals = behind
    page = open_page(server)
    all_problems[0].allow("503")
    page.goto(PATH)
    shown(page, done(0, 61))
    refusals["PUT"] = s3_error("AccessDenied")
    press(page, "ArrowRight", "p", "ArrowRight", "x")
    expect(page.get_by_text("2 picks are not stored yet: the farm's store is unavailable")).to_be_visible()
    expect(tile(page, 1).get_by_role("button", name="Reject")).to_have_attribute("aria-pressed", "true")
    # the browser warns before it leaves the page
    with page.expect_event("dialog") as warning:
        page.evaluate("() => void setTimeout(() => location.reload())")
    assert warning.value.type == "beforeunload"
    warning.value.dismiss()
    del refusals["PUT"]
    expect(page.get_by_text("not stored yet")).to_be_hidden()
    expect(page.get_by_text("1 picked · 1 rejected")).to_be_visible()
    assert stored(farm) == {0: ("picked", None), 1: ("rejected", None)}


def test_a_thumbnail_has_the_reason_why_it_has_no_image_and_tries_again(
    page: Page, farm: Farm, problems: Problems
) -> None:
    problems.allow("404")
    # of a name of its own: the server keeps the thumbnails of other tests
    make_large_batch(farm, "lost", total=2, whole=(0,))
    key = image_key("lost", 0, 1)
    body = farm.bucket.get(key)
    farm.bucket.delete([key])
    page.goto("/batches/lost/gallery")
    expect(tile(page, 0)).to_contain_text("the bucket has no such image")
    expect(tile(page, 0).locator("img")).to_have_attribute("alt", prompt_of(0))
    farm.bucket.put(key, body, content_type="image/png")
    expect(tile(page, 0).get_by_text("the bucket has no such image")).to_be_hidden()
    assert tile(page, 0).locator("img").evaluate("image => image.naturalWidth") == SIZE


def test_the_gallery_reports_that_the_bucket_is_unavailable_and_recovers(
    behind: Behind, open_page: OpenPage, all_problems: list[Problems]
) -> None:
    server, _, refusals = behind
    page = open_page(server)
    all_problems[0].allow("503")
    refusals["GET"] = s3_error("AccessDenied")
    page.goto(PATH)
    expect(page.get_by_role("heading", name="The images cannot be read")).to_be_visible()
    expect(page.get_by_role("main")).to_contain_text("the farm's store is unavailable")
    del refusals["GET"]
    shown(page, done(0, 61))
    expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.usefixtures("cats")
def test_decisions_that_are_refused_are_taken_back_with_the_reason(page: Page, farm: Farm, problems: Problems) -> None:
    problems.allow("40[09]")
    page.goto(PATH)
    shown(page, done(0, 61))
    farm.bucket.put(picks_key("cats", 1, "00" * 8, 1), b"damaged", content_type="application/gzip")
    press(page, "ArrowRight", "p", "3")
    expect(page.get_by_text("The picks were taken back")).to_contain_text("is damaged; delete the object")
    expect(tile(page, 0).get_by_role("button", name="Pick")).to_have_attribute("aria-pressed", "false")
    expect(tile(page, 0).get_by_label("Rating")).to_have_value("")


def test_a_search_reports_how_far_it_is_and_can_be_stopped(behind: Behind, open_page: OpenPage) -> None:
    server, faults, _ = behind
    page = open_page(server)
    page.goto(PATH)
    shown(page, done(0, 61))
    faults.kind, faults.picks = "freeze", lambda _method, path: "manifest" in path
    page.get_by_label("Text of the prompt").fill("circle")
    expect(page.get_by_text("Searching from job 0 on")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Searching")).to_be_hidden()
    faults.kind = None
    faults.thawed.set()


@pytest.mark.usefixtures("cats")
def test_a_key_that_may_only_read_sees_decisions_without_buttons(
    serving: Serving, open_page: OpenPage, all_problems: list[Problems], farm: Farm, tmp_path: Path
) -> None:
    secret, key = new_key("viewer", "read")
    (tmp_path / "keys.txt").write_text(f"{key.line}\n")
    farm.batch("cats").pick([0], "picked", rating=4)
    page = open_page(serving(api_keys_file=tmp_path / "keys.txt"))
    all_problems[0].allow("401")
    page.goto(PATH)
    page.get_by_label("Key").fill(secret)
    page.keyboard.press("Enter")
    shown(page, done(0, 61))
    expect(tile(page, 0)).to_contain_text("picked · ★ 4")
    expect(page.get_by_role("button", name="Pick", exact=True)).to_have_count(0)
    # keys do nothing either
    press(page, "ArrowRight", "x")
    expect(tile(page, 0)).to_contain_text("picked · ★ 4")


def test_a_jump_goes_to_the_middle_of_a_million_jobs(page: Page, farm: Farm) -> None:
    make_large_batch(farm, images=60)
    page.goto("/batches/million/gallery")
    shown(page, done(0, 61))
    press(page, "j", *"350000", "Enter")
    shown(page, [350_000 + index for index in done(0, 61)])
    expect(page.get_by_text("Jobs 350,000 to 350,060")).to_be_visible()


@pytest.mark.usefixtures("cats")
@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_axe_core_finds_nothing_in_the_gallery(page: Page, farm: Farm) -> None:
    farm.batch("cats").pick([46, 47], "rejected", rating=1)
    farm.batch("cats").pick([45], "picked")
    page.goto(f"{PATH}?state=all&prompt=number+4")
    shown(page, [4, *range(40, 50)])
    press(page, "ArrowRight", "Shift+ArrowRight")
    expect(page.get_by_text("2 images selected")).to_be_visible()
    page.locator("summary").filter(has_text="Export").click()
    assert violations(page) == []
    assert sideways_pixels(page) <= 0
