"""A sweep as a table: its axes, its cells while they are rendered, and its way to a comparison."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, expect
from tests.support.browser import LOOKS, Problems, sideways_pixels, violations
from tests.support.http_server import RunningWorker
from tests.support.large_batch import make_large_batch
from tests.support.leasing import fail, lease

from latentfarm.farm import Farm
from latentfarm.submission.expansion import Expansion
from latentfarm.submission.request import SubmitOptions

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PATH = "/batches/cats/grid"
ROWS = [{"prompt": prompt, "seed": 5, "num_inference_steps": 1, "width": 64, "height": 64} for prompt in ("cat", "dog")]


def sweep(farm: Farm, *sweeps: str, paused: bool = False) -> None:
    """Submit two rows, with each combination of values."""
    options = SubmitOptions(canary=1 if paused else 0)
    farm.submit(ROWS, batch="cats", model="mini", expansion=Expansion.parse(sweeps), options=options)


def table(page: Page) -> list[list[str]]:
    """Return the rows of the table: its header, then those of the cells."""
    expect(page.get_by_role("table")).to_be_visible()
    rows = (
        "table => [...table.rows].map(row => [...row.cells].map(cell => cell.innerText.split(/\\s+/).join(' ').trim()))"
    )
    found: list[list[str]] = page.get_by_role("table").evaluate(rows)
    return found


def cell(page: Page, row: int, column: int) -> Locator:
    return page.locator("tbody tr").nth(row).locator("td").nth(column)


def test_any_two_fields_are_axes_and_the_url_has_them(page: Page, farm: Farm) -> None:
    sweep(farm, "guidance_scale=10,2,4", "scheduler=ddim,dpm++2m,dpm++2m-karras")
    page.goto(PATH)
    # the two fields with the fewest values, but prompts last; numbers by size, texts as they come
    assert table(page)[0] == ["", "2", "4", "10"]
    expect(page.get_by_label("prompt", exact=True)).to_have_value("cat")
    page.get_by_label("Rows").select_option("prompt")
    assert [row[0] for row in table(page)[1:]] == ["cat", "dog"]
    page.get_by_label("Columns").select_option("scheduler")
    expect(page).to_have_url(re.compile(r"\?y=prompt&x=scheduler$"))
    expect(page.get_by_label("Columns")).to_be_focused()
    # names with the same class differ in their options
    assert [text.partition(" ")[0] for text in table(page)[0][1:]] == [
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverMultistepScheduler",
    ]
    page.get_by_label("Rows").select_option("guidance_scale")
    page.get_by_label("prompt", exact=True).select_option("any")
    expect(cell(page, 0, 1)).to_contain_text("4 and 1 more")
    page.get_by_label("prompt", exact=True).select_option("dog")
    expect(page).to_have_url(re.compile(r"\?x=scheduler&y=guidance_scale&at\.prompt=dog$"))
    # 9 jobs of the cat come first; the guidance scale of 2 is the second of three, with three schedulers each
    assert table(page)[1][1:] == [f"pending {index}" for index in (12, 13, 14)]
    seen = table(page)
    page.reload()
    assert table(page) == seen
    page.get_by_label("Rows").select_option("prompt")
    expect(page.get_by_label("guidance_scale", exact=True)).to_have_value("2")


def test_cells_show_what_happens_to_their_jobs(page: Page, farm: Farm, rendering: RunningWorker) -> None:
    assert rendering
    sweep(farm, "scheduler=ddim,dpm++2m-karras", "guidance_scale=1,2", paused=True)
    page.goto(PATH)
    expect(cell(page, 0, 0).get_by_role("img")).to_have_js_property("naturalWidth", 64)
    expect(cell(page, 1, 1)).to_contain_text("pending")
    header = table(page)[0]
    page.get_by_label("Columns").focus()
    farm.batch("cats").resume()
    for row in (0, 1):
        for column in (0, 1):
            expect(cell(page, row, column).get_by_role("img")).to_have_js_property("naturalWidth", 64)
    # nothing was made again meanwhile, and a rendered job has the same place
    expect(page.get_by_label("Columns")).to_be_focused()
    assert table(page)[0] == header


def test_a_failed_job_and_a_missing_one_say_so(page: Page, farm: Farm) -> None:
    rows = [{"prompt": "cat", "seed": 1}, {"prompt": "dog", "seed": 1}, {"prompt": "cat", "seed": 2}]
    farm.submit(rows, batch="cats", model="mini")
    page.goto(PATH)
    expect(cell(page, 1, 1)).to_have_text("No job")
    expect(cell(page, 1, 0)).to_contain_text("pending")
    leases = lease(farm.ledger, 3)
    expect(cell(page, 1, 0)).to_contain_text("running")
    fail(farm.ledger, leases)
    expect(cell(page, 1, 0)).to_contain_text("nan: not finite")
    farm.batch("cats").retry()
    expect(cell(page, 0, 0)).to_contain_text("pending")
    expect(cell(page, 1, 0)).to_contain_text("pending")


def test_a_cell_opens_its_image_and_two_are_compared_by_keyboard(
    page: Page, farm: Farm, rendering: RunningWorker
) -> None:
    assert rendering
    sweep(farm, "guidance_scale=1,2")
    page.goto(PATH)
    expect(cell(page, 1, 1).get_by_role("img")).to_have_js_property("complete", value=True)
    cell(page, 0, 1).get_by_role("link").click()
    expect(page).to_have_url(re.compile(r"/batches/cats/images/1$"))
    page.go_back()
    cell(page, 0, 0).get_by_role("checkbox", name="0").focus()
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(cell(page, 0, 1).get_by_role("checkbox", name="1")).to_be_focused()
    page.keyboard.press("Space")
    expect(page).to_have_url(re.compile(r"/batches/cats/images/0\?against=1$"))
    expect(page.get_by_text("The pixels differ by")).to_be_visible()


def test_the_size_of_cells_can_be_changed_and_the_table_scrolls_in_its_box(page: Page, farm: Farm) -> None:
    sweep(farm, "seed=1..40")
    page.goto(PATH)
    table(page)
    page.get_by_label("Columns").select_option("seed")
    size = page.get_by_label("Size")
    size.focus()
    before = cell(page, 0, 0).bounding_box()
    page.keyboard.press("End")
    after = cell(page, 0, 0).bounding_box()
    assert before
    assert after
    assert (after["width"] - before["width"], sideways_pixels(page)) == (128, 0)
    box = page.get_by_role("region", name="Grid")
    box.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('.sweep').scrollLeft > 0")
    # the headers stay
    header = page.locator("tbody th").first.bounding_box()
    place = box.bounding_box()
    assert header
    assert place
    assert abs(header["x"] - place["x"]) < 3


def test_a_batch_in_which_nothing_varies_shows_how_to_submit_a_sweep(page: Page, farm: Farm) -> None:
    farm.submit([{"prompt": "cat", "seed": 1}], batch="cats", model="mini")
    page.goto(PATH)
    expect(page.get_by_role("heading", name="There is nothing to compare")).to_be_visible()
    expect(page.get_by_text("--sweep guidance_scale=2,4,7")).to_be_visible()


def test_a_million_jobs_are_shown_a_thousand_at_a_time(page: Page, farm: Farm) -> None:
    make_large_batch(farm, images=1)
    page.goto("/batches/million/grid")
    expect(page.get_by_text("Jobs 0 to 999")).to_be_visible()
    page.get_by_role("link", name="Those after").click()
    expect(page).to_have_url(re.compile(r"\?start=1000$"))
    expect(page.get_by_text("Jobs 1,000 to 1,999")).to_be_visible()
    # prompts and seeds have more values than an axis may have
    expect(page.get_by_role("heading", name="There is nothing to compare")).to_be_visible()


def test_a_deleted_batch_is_reported_as_deleted(page: Page, farm: Farm, problems: Problems) -> None:
    problems.allow("404")
    sweep(farm, "guidance_scale=1,2")
    page.goto(PATH)
    table(page)
    farm.batch("cats").delete()
    expect(page.get_by_role("heading", name="cats was deleted")).to_be_visible()


@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_axe_core_finds_nothing_in_the_grid(page: Page, farm: Farm) -> None:
    sweep(farm, "guidance_scale=1,2,3,4,5,6,7,8", "scheduler=ddim,dpm++2m-karras")
    page.goto(PATH)
    table(page)
    assert violations(page) == []
    assert sideways_pixels(page) <= 0
