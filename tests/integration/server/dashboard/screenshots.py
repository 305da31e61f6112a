"""Screenshots of each view for docs/dashboard: ``make screenshots``.

A local farm renders batches with mini, as a user's would: one whose images are all done, one that runs, one with
failures, a paused one, one that its canary paused, a sweep, and one of drafts.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect
from tests.conftest import REPOSITORY, until
from tests.support.browser import DESK, DESK_DARK, PHONE, PHONE_DARK, Look, chromium, new_context

from latentfarm import Batch, Farm
from latentfarm.batch_state import BatchState
from latentfarm.local import LocalFarm
from latentfarm.model_spec import parse_model
from latentfarm.submission.expansion import Expansion
from latentfarm.submission.request import SubmitOptions

FOLDER = REPOSITORY / "docs" / "dashboard"
MAX_BYTES = 300_000
#: enough for mini; its best is 25
STEPS = 20
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES = ("circle", "square", "triangle", "star", "ring", "heart", "cross", "diamond")
PROMPTS = [
    f"{'an' if color == 'orange' else 'a'} {color} {shape} on a white background"
    for color, shape in product(COLORS, SHAPES)
]


@dataclass(frozen=True)
class Shot:
    """A file of docs/dashboard without its ending, and the path that it shows.

    The view is whole once the text ``shown`` is visible and ``act`` has done what a user does there.
    """

    name: str
    path: str
    shown: str
    look: Look = DESK
    act: Callable[[Page], None] = lambda _: None


def _choose_file(page: Page) -> None:
    page.get_by_label("Choose a prompt file").set_input_files(REPOSITORY / "examples" / "prompts.txt")
    expect(page.get_by_role("complementary").get_by_role("definition").first).to_be_visible()


def _compare(page: Page) -> None:
    page.get_by_label("Compare with").fill("5")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_text("The pixels differ")).to_be_visible()


def _see_previews(page: Page) -> None:
    expect(page.get_by_role("main").locator("img").nth(3)).to_be_visible(timeout=30_000)


def _see_price(page: Page) -> None:
    page.get_by_role("button", name="Finish 4 picked").click()
    expect(page.get_by_role("dialog")).to_be_visible()


def _scroll_to_images(page: Page) -> None:
    page.get_by_role("main").locator("img").first.scroll_into_view_if_needed()


SHOTS = (
    Shot("batches", "/", "overnight"),
    Shot("batches-dark", "/", "overnight", DESK_DARK),
    Shot("batches-phone", "/", "overnight", PHONE),
    Shot("batch", "/batches/overnight", "Latest images"),
    Shot("batch-dark", "/batches/overnight", "Latest images", DESK_DARK),
    Shot("batch-phone", "/batches/overnight", "Latest images", PHONE_DARK),
    Shot("failures", "/batches/mixed", "use_karras"),
    Shot("gallery", "/batches/shapes/gallery", PROMPTS[0]),
    Shot("gallery-dark", "/batches/shapes/gallery", PROMPTS[0], DESK_DARK),
    Shot("gallery-phone", "/batches/shapes/gallery", PROMPTS[0], PHONE, _scroll_to_images),
    Shot("drafts", "/batches/choices/gallery", "40 drafts"),
    Shot("drafts-dark", "/batches/choices/gallery", "40 drafts", DESK_DARK),
    Shot("drafts-phone", "/batches/choices/gallery", "40 drafts", PHONE, _scroll_to_images),
    Shot("finish", "/batches/choices/gallery", "40 drafts", DESK, _see_price),
    Shot("grid", "/batches/guidance/grid", "Select two images"),
    Shot("image", "/batches/shapes/images/21", PROMPTS[21]),
    Shot("image-dark", "/batches/shapes/images/21", PROMPTS[21], DESK_DARK),
    Shot("image-phone", "/batches/shapes/images/21", PROMPTS[21], PHONE),
    Shot("compare", "/batches/shapes/images/21", PROMPTS[21], DESK, _compare),
    Shot("workers", "/workers", "busy", DESK, _see_previews),
    Shot("workers-dark", "/workers", "busy", DESK_DARK, _see_previews),
    Shot("workers-phone", "/workers", "busy", PHONE_DARK, _see_previews),
    Shot("submit", "/submit", "Plan", DESK, _choose_file),
    Shot("submit-phone", "/submit", "Plan", PHONE),
)
#: an image below the window is not loaded before a user scrolls to it
_IMAGES_SHOWN = """() => [...document.images].every(
    (image) => image.complete || image.getBoundingClientRect().top > innerHeight
)"""


def fill(farm: Farm) -> None:
    """Submit the batches, and wait until each is in the state that the screenshots show."""
    submit = partial(farm.submit, guidance_scale=4.0, num_inference_steps=STEPS)
    shapes = submit(PROMPTS, batch="shapes")
    guidance = submit(
        ["a large red star on a blue background"],
        batch="guidance",
        expansion=Expansion.parse(("guidance_scale=1,2,4,8", "num_inference_steps=2,4,8,16")),
        seed=7,
    )
    deep = [{"prompt": prompt, "clip_skip": 12} for prompt in PROMPTS[20:25]]
    spaced = [{"prompt": prompt, "scheduler_options": {"use_karras": True}} for prompt in PROMPTS[25:28]]
    mixed: list[str | dict[str, Any]] = [*PROMPTS[:20], *deep, *spaced]
    failures = submit(mixed, batch="mixed", options=SubmitOptions(failure_budget=0.0))
    canary = submit(PROMPTS, batch="canary", options=SubmitOptions(canary=4))
    paused = submit(PROMPTS, batch="later")
    paused.pause()
    choices = submit(PROMPTS[:40], batch="choices", draft=0.4)
    for batch in (shapes, guidance, failures):
        _wait(batch, BatchState.COMPLETE)
    _wait(choices, BatchState.DRAFTED)
    _wait(canary, BatchState.PAUSED)
    shapes.pick([0, 3, 5], "picked", rating=5)
    shapes.pick([4, 9], "rejected")
    choices.pick([1, 5, 10, 12], "picked", rating=4)
    choices.pick([0, 3], "rejected")
    overnight = submit(PROMPTS * 30, batch="overnight", num_images_per_prompt=2)
    until(lambda: overnight.status().done >= 30)


def _wait(batch: Batch, state: BatchState) -> None:
    until(lambda: batch.status().state is state)


def photograph(browser: Browser, origin: str, shot: Shot) -> int:
    """Write the screenshot; return its bytes."""
    with new_context(browser, origin, shot.look) as context:
        page = context.new_page()
        page.goto(shot.path)
        expect(page.get_by_role("status").filter(has_text="Live").first).to_be_visible()
        expect(page.get_by_role("main").get_by_text(shot.shown).first).to_be_visible()
        shot.act(page)
        page.wait_for_function(_IMAGES_SHOWN)
        png = page.screenshot(animations="disabled")
    body = _small(png)
    (FOLDER / f"{shot.name}.png").write_bytes(body)
    return len(body)


def _small(png: bytes) -> bytes:
    """Return the image, with 256 colours if it is too large with all."""
    image, out = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    image.save(out, "PNG", optimize=True)
    if len(out.getvalue()) > MAX_BYTES:
        out = io.BytesIO()
        # rounds of k-means: without them, small areas of the accent colours turn grey
        image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE).save(
            out, "PNG", optimize=True
        )
    return out.getvalue()


def main(names: Sequence[str]) -> int:
    """Write the screenshots of these names [default: all]; fail if one is too large."""
    FOLDER.mkdir(exist_ok=True)
    chosen = [shot for shot in SHOTS if not names or shot.name in names]
    with TemporaryDirectory() as folder, LocalFarm(Path(folder)) as local, chromium() as browser:
        # beside two workers that render, a page has little of the processor
        expect.set_options(timeout=60_000)
        local.start_workers(2, [parse_model("mini")], dtype="auto", slots=0)
        url = local.start_http_server("127.0.0.1:0").wait_for_url()
        fill(Farm.open(local.settings))
        sizes = {shot.name: photograph(browser, url, shot) for shot in chosen}
    for name, size in sizes.items():
        print(f"{name}.png {size / 1000:.0f} kB")
    return int(max(sizes.values()) > MAX_BYTES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
