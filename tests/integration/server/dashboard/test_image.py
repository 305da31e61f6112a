"""The view of one image: what it shows and copies, comparisons, rendering again, and what it shows without an image."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from tests.conftest import until
from tests.integration.server.conftest import Serving
from tests.integration.server.dashboard.conftest import OpenPage
from tests.support.browser import LOOKS, Problems, sideways_pixels, violations
from tests.support.http_server import RunningServer, RunningWorker
from tests.support.large_batch import SIZE, make_large_batch, prompt_of
from tests.support.leasing import lease
from tests.support.s3_front import Faults, front, s3_error

from latentfarm.farm import Farm
from latentfarm.ledger import Slot, SlotsReport
from latentfarm.server.security.keys import new_key
from latentfarm.settings import Settings
from latentfarm.storage.keys import image_key
from latentfarm.submission.prompts import ReadOptions
from latentfarm.submission.request import SubmitOptions

pytestmark = pytest.mark.integration

PATH = "/batches/cats/images"
ROW = {"prompt": "a (red) cat", "negative_prompt": "a dog", "num_inference_steps": 2, "width": 64, "height": 64}


@pytest.fixture
def cats(farm: Farm) -> None:
    """A batch of 200 jobs: 138 images of 64 x 64 pixels, the failed jobs 49 and 99, and pending jobs from 140 on."""
    make_large_batch(farm, "cats", total=200, whole=(0,), images=200)


def large(page: Page) -> Locator:
    """The image itself; waits until it is loaded."""
    image = page.locator(".stage > .large")
    expect(image).to_have_js_property("complete", value=True)
    return image


def copied(page: Page, button: str) -> str:
    page.evaluate("navigator.clipboard.writeText('')")
    page.get_by_role("button", name=button).click()
    return str(page.evaluate("navigator.clipboard.readText()"))


def fields(page: Page) -> dict[str, str]:
    """Return the receipt that is shown."""
    names, values = page.locator(".receipt dt").all_inner_texts(), page.locator(".receipt dd").all_inner_texts()
    return dict(zip(names, values, strict=True))


def test_an_image_has_its_receipt_and_its_row_can_be_copied_and_submitted(
    page: Page, farm: Farm, server: RunningServer, rendering: RunningWorker
) -> None:
    assert rendering
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    # larger than JavaScript's whole numbers
    rows = [{**ROW, "seed": 2**63 - 1, "scheduler": "dpm++2m-karras", "save_intermediates": True, "mood": "calm"}]
    reading = ReadOptions(keep_columns=True)
    farm.submit(rows, batch="cats", reading=reading, guidance_scale=3.5, model="mini").wait(timeout_s=60)
    job = server.client.get("/api/batches/cats/jobs/0").json()
    page.goto(f"{PATH}/0")
    expect(large(page)).to_have_attribute("alt", "a (red) cat")
    assert large(page).evaluate("image => image.naturalWidth") == 64
    shown = fields(page)
    assert {name: shown[name] for name in ("seed", "guidance scale", "scheduler", "mood", "sha256", "state")} == {
        "seed": str(2**63 - 1),
        "guidance scale": "3.5",
        "scheduler": "DPMSolverMultistepScheduler",
        "mood": "calm",
        "sha256": job["sha256"],
        "state": "done",
    }
    apart = {"request", "timings", "columns", "image", "thumbnail", "parameters", "intermediates"}
    assert {name.replace("_", " ") for name in job.keys() - apart} <= shown.keys()
    strip = page.get_by_role("img", name="From noise to the image")
    expect(strip).to_have_js_property("complete", value=True)
    assert strip.evaluate("image => image.naturalWidth > image.naturalHeight")

    row = json.loads(copied(page, "Copy JSONL row"))
    assert row == job["request"]
    body = {"rows": [row], "model": "mini"}
    assert server.client.post("/api/plan", json=body).json()["invalid"] == 0
    assert copied(page, "Copy parameters") == job["parameters"]
    with page.expect_download() as found:
        page.get_by_role("link", name="Download").click()
    assert found.value.suggested_filename == "cats-0.png"
    assert hashlib.sha256(found.value.path().read_bytes()).hexdigest() == job["sha256"]


@pytest.mark.usefixtures("cats")
def test_keys_go_from_image_to_image_and_show_its_pixels(page: Page) -> None:
    page.goto(f"{PATH}/1?prompt=number&seed=")
    large(page)
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", name="Job 2")).to_be_visible()
    expect(large(page)).to_have_attribute("alt", prompt_of(2))
    width = large(page).bounding_box()
    assert width
    assert width["width"] > SIZE
    page.keyboard.press("z")
    expect(large(page)).to_have_css("width", f"{SIZE}px")
    page.keyboard.press("z")
    expect(large(page)).not_to_have_css("width", f"{SIZE}px")
    large(page).click()
    expect(large(page)).to_have_css("width", f"{SIZE}px")
    # arrows scroll the image then
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("z")
    expect(page.get_by_role("heading", name="Job 2")).to_be_visible()
    expect(large(page)).not_to_have_css("width", f"{SIZE}px")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("heading", name="Job 1")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("heading", name="Job 0")).to_be_visible()
    large(page)
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("heading", name="Job 0")).to_be_visible()
    # keys of a field are its own
    page.get_by_label("Compare with").focus()
    page.keyboard.press("ArrowRight")
    expect(page).to_have_url(re.compile(r"/images/0\?prompt=number"))
    page.get_by_role("link", name="Gallery").last.click()
    expect(page).to_have_url(re.compile(r"/batches/cats/gallery\?prompt=number"))


@pytest.mark.usefixtures("cats")
def test_an_image_is_decided_about(page: Page, farm: Farm) -> None:
    page.goto(f"{PATH}/1")
    large(page)
    page.get_by_role("button", name="Pick").click()
    page.get_by_label("Rating").select_option("★ 4")
    until(lambda: [(each.index, each.pick, each.rating) for each in farm.batch("cats").picks()] == [(1, "picked", 4)])
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("button", name="Pick")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("button", name="Pick")).to_have_attribute("aria-pressed", "true")


def put(farm: Farm, index: int, image: Image.Image) -> None:
    file = io.BytesIO()
    image.save(file, "png")
    farm.bucket.put(image_key("cats", index, 1), file.getvalue(), content_type="image/png")


@pytest.mark.usefixtures("cats")
def test_two_images_are_compared_by_a_border_and_by_their_difference(page: Page, farm: Farm) -> None:
    one, other = (Image.new("RGB", (64, 64), color) for color in ("#102030", "#102030"))
    other.putpixel((5, 7), (0x10 + 3 * 64, 0x20, 0x30))
    put(farm, 1, one)
    put(farm, 2, other)
    page.goto(f"{PATH}/1")
    page.get_by_label("Compare with").fill("2")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"\?against=2$"))
    # one value of 3 * 4096 differs, by 192
    expect(page.get_by_text("The pixels differ by 0.02 of 255 on average, and by 192 at most.")).to_be_visible()
    border = page.get_by_role("slider", name="Border")
    expect(border).to_have_value("50")
    border.focus()
    page.keyboard.press("End")
    expect(border).to_have_value("100")
    right = page.locator(".pair img").nth(1)
    expect(right).to_have_css("clip-path", "inset(0px 0px 0px 100%)")
    # it is over the images: to press on them moves it there
    box = page.locator(".pair").bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    assert abs(float(border.input_value()) - 25) <= 1
    page.get_by_role("button", name="Difference").click()
    canvas = page.get_by_role("img", name="Difference of the images")
    pixels = canvas.evaluate("canvas => [...canvas.getContext('2d').getImageData(5, 7, 2, 1).data]")
    assert pixels == [255, 0, 0, 255, 0, 0, 0, 255]
    expect(border).to_be_hidden()

    page.get_by_role("link", name="Next one").click()
    expect(page).to_have_url(re.compile(r"\?against=3$"))
    page.get_by_role("link", name="Previous one").click()
    page.get_by_role("link", name="Previous one").click()
    expect(page.get_by_text("The files are the same, byte for byte.")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page).to_have_url(re.compile(r"/images/2\?against=1$"))
    # a browser keeps an image that it has shown
    put(farm, 4, Image.new("RGB", (32, 64)))
    page.goto(f"{PATH}/1?against=cats/4")
    expect(page.get_by_text("The sizes differ: 64 x 64 and 32 x 64 pixels.")).to_be_visible()
    page.get_by_role("link", name="End").click()
    expect(large(page)).to_be_visible()


@pytest.mark.usefixtures("cats")
def test_a_comparison_shows_why_there_is_none(page: Page, problems: Problems) -> None:
    problems.allow("404")
    page.goto(f"{PATH}/1?against=150")
    expect(page.get_by_role("heading", name="cats/150 is pending")).to_be_visible()
    page.goto(f"{PATH}/1?against=dogs/1")
    expect(page.get_by_role("alert")).to_contain_text("dogs")
    page.goto(f"{PATH}/1?against=nonsense")
    expect(large(page)).to_be_visible()
    page.get_by_label("Compare with").fill("nonsense")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page).to_have_url(re.compile(r"against=nonsense$"))


def test_a_row_is_rendered_again_and_gives_the_same_pixels(page: Page, farm: Farm, rendering: RunningWorker) -> None:
    assert rendering
    farm.submit([ROW], batch="cats", model="mini", seed=2**63 - 1).wait(timeout_s=30)
    page.goto(f"{PATH}/0")
    page.get_by_role("button", name="Render again and compare").click()
    expect(page).to_have_url(re.compile(r"/batches/cats-0-again-[a-z0-9]+/images/0\?against=cats%2F0$"))
    expect(page.get_by_text("No pixel differs.")).to_be_visible()
    expect(page.locator(".pair img").nth(1)).to_have_js_property("naturalWidth", 64)
    assert fields(page)["seed"] == str(2**63 - 1)


@pytest.mark.usefixtures("cats")
def test_what_is_rendered_again_waits_in_words_and_is_shown_when_it_is_done(page: Page, farm: Farm) -> None:
    page.goto(f"{PATH}/1")
    page.get_by_role("button", name="Render again and compare").click()
    expect(page.get_by_role("heading", name=re.compile("is pending$"))).to_be_visible()
    expect(page.get_by_text("no worker is running now")).to_be_visible()
    # the other batch is paused
    [leased] = lease(farm.ledger)
    expect(page.get_by_role("heading", name=re.compile("is running$"))).to_be_visible()
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "jpeg")
    slot = Slot(f"{leased.batch}/0", 3, 25, base64.b64encode(file.getvalue()).decode())

    def is_shown() -> bool:
        farm.ledger.publish_slots(SlotsReport("worker-a", (Slot("cats/9", 1, 9), slot)))
        return page.get_by_text("Step 3 of 25").is_visible()

    until(is_shown)
    expect(page.get_by_role("img", name="The image so far")).to_be_visible()
    key = image_key(leased.batch, 0, leased.epoch)
    body = farm.bucket.get(image_key("cats", 1, 1))
    farm.bucket.put(key, body, content_type="image/png")
    farm.ledger.commit([(leased, {"key": key, "sha256": hashlib.sha256(body).hexdigest(), "request": {}})])
    expect(page.get_by_text("The files are the same, byte for byte.")).to_be_visible()


@pytest.mark.usefixtures("cats")
def test_a_failed_job_has_its_error_and_is_retried(page: Page) -> None:
    page.goto(f"{PATH}/49")
    expect(page.get_by_role("heading", name="cats/49 failed: invalid_image")).to_be_visible()
    expect(page.get_by_role("main")).to_contain_text("every pixel is black")
    expect(page.get_by_role("link", name="Download")).to_have_count(0)
    page.get_by_role("button", name="Retry all with this code").click()
    expect(page.get_by_text("will run again")).to_be_visible()
    expect(page.get_by_role("heading", name="cats/49 is pending")).to_be_visible()


def test_an_invalid_row_is_not_retried(page: Page, farm: Farm) -> None:
    farm.submit(
        ["a cat", {"prompt": "a dog", "width": 13}],
        batch="dogs",
        options=SubmitOptions(validate_first=False, max_invalid=1.0),
    )
    page.goto("/batches/dogs/images/1")
    expect(page.get_by_role("heading", name="dogs/1 failed: invalid_row")).to_be_visible()
    expect(page.get_by_role("main")).to_contain_text("width 13 is out of range")
    expect(page.get_by_text("Correct the row")).to_be_visible()
    expect(page.get_by_role("button", name="Retry")).to_be_hidden()
    expect(page.get_by_role("button", name="Copy")).to_be_hidden()


@pytest.mark.usefixtures("cats")
def test_a_job_that_is_missing_and_a_batch_that_is_deleted_are_reported(
    page: Page, farm: Farm, problems: Problems
) -> None:
    problems.allow("404")
    page.goto(f"{PATH}/200")
    expect(page.get_by_role("alert")).to_contain_text("the batch has the jobs 0 to 199")
    page.goto(f"{PATH}/1")
    large(page)
    farm.batch("cats").delete()
    expect(page.get_by_role("heading", name="cats was deleted")).to_be_visible()
    expect(page.get_by_role("link", name="Go to the batches")).to_be_visible()


@pytest.mark.usefixtures("cats")
def test_an_image_that_is_missing_is_reported(page: Page, farm: Farm, problems: Problems) -> None:
    problems.allow("404")
    farm.bucket.delete([image_key("cats", 1, 1)])
    page.goto(f"{PATH}/1")
    expect(page.get_by_role("alert")).to_contain_text("the bucket has no such image")
    expect(page.get_by_role("heading", name="Receipt")).to_be_visible()


def test_an_image_comes_back_with_its_bucket(
    settings: Settings, serving: Serving, cats: None, open_page: OpenPage, all_problems: list[Problems]
) -> None:
    assert cats is None
    refusals: dict[str, Any] = {"GET": s3_error("AccessDenied")}
    with front(settings, refusals, faults=Faults()) as found:
        page = open_page(serving(Farm.open(found)))
        all_problems[0].allow("503")
        page.goto(f"{PATH}/1?against=2")
        expect(page.get_by_role("alert")).to_contain_text("the farm's store is unavailable")
        refusals.clear()
        expect(page.get_by_text("The pixels differ by")).to_be_visible()


@pytest.mark.usefixtures("cats")
def test_a_key_that_may_only_read_cannot_render_again_or_retry(
    serving: Serving, open_page: OpenPage, all_problems: list[Problems], tmp_path: Path
) -> None:
    secret, key = new_key("viewer", "read")
    (tmp_path / "keys.txt").write_text(f"{key.line}\n")
    page = open_page(serving(api_keys_file=tmp_path / "keys.txt"))
    # before a session begins
    all_problems[0].allow("401")
    page.goto(f"{PATH}/1")
    page.get_by_label("Key").fill(secret)
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Download")).to_be_visible()
    expect(page.get_by_role("button", name="Copy JSONL row")).to_be_visible()
    expect(page.get_by_role("button", name="Render again")).to_have_count(0)
    page.goto(f"{PATH}/49")
    expect(page.get_by_role("heading", name="cats/49 failed: invalid_image")).to_be_visible()
    expect(page.get_by_role("button", name="Retry")).to_have_count(0)


@pytest.mark.usefixtures("cats")
@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_axe_core_finds_nothing_in_an_image_a_comparison_and_a_failure(page: Page) -> None:
    for path, seen in (
        ("1", ".large"),
        ("1?against=2", ".comparison"),
        ("49", ".placeholder h2"),
        ("150", ".placeholder"),
    ):
        page.goto(f"{PATH}/{path}")
        expect(page.locator(f".stage {seen}")).to_be_visible()
        assert violations(page) == []
        assert sideways_pixels(page) <= 0
