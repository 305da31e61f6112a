"""A submission in the browser: a file or prompts, the plan with its problems, options, and the batch that begins."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import FilePayload, Locator, Page, expect
from tests.integration.server.dashboard.conftest import StoppableServer
from tests.support.browser import LOOKS, Problems, sideways_pixels, violations
from tests.support.http_server import RunningWorker

from latentfarm.farm import Farm

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WRONG = ({"prompt": "a cat"}, {"prompt": ""}, {"prompt": "a dog", "width": 1030})
#: how the browser reports an error that a test causes
REFUSED = "status of 4(00|09|22)"


def payload(*rows: dict[str, Any], name: str = "prompts.jsonl") -> FilePayload:
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    return {"name": name, "mimeType": "text/plain", "buffer": lines.encode()}


def choose(page: Page, *rows: dict[str, Any], name: str = "prompts.jsonl") -> None:
    page.get_by_label("Choose a prompt file").set_input_files(payload(*rows, name=name))


def plan(page: Page) -> Locator:
    return page.get_by_role("complementary")


def submit_button(page: Page, name: str = "Submit") -> Locator:
    return plan(page).get_by_role("button", name=name)


def complaint(page: Page, label: str) -> str:
    """Return the complaint at a field, as a screen reader finds it."""
    described = page.get_by_label(label, exact=True).get_attribute("aria-describedby")
    return page.locator(f"[id='{described}']").inner_text()


def test_a_file_is_planned_submitted_and_rendered(page: Page, farm: Farm, rendering: RunningWorker) -> None:
    assert rendering
    page.goto("/submit")
    expect(submit_button(page)).to_be_disabled()
    choose(page, {"prompt": "a cat"}, {"prompt": "a dog"}, {"prompt": "a cat"})
    expect(submit_button(page, "Submit 3 images")).to_be_enabled()
    expect(plan(page).get_by_role("definition").nth(2)).to_have_text("1")
    page.get_by_label("Name").fill("cats")
    page.get_by_label("Steps", exact=True).fill("2")
    page.get_by_label("Priority").fill("5")
    submit_button(page, "Submit 3 images").click()
    expect(page).to_have_url(re.compile("/batches/cats$"))
    expect(page.get_by_text("3 done", exact=True)).to_be_visible()
    status = farm.batch("cats").status()
    assert (status.done, status.model, status.priority) == (3, "mini", 5)
    # what was entered has been sent; the next submission begins empty
    page.get_by_role("link", name="Submit", exact=True).click()
    expect(page.get_by_label("Name")).to_have_value("")


def test_invalid_rows_are_shown_with_their_places_and_the_others_can_be_submitted(page: Page, farm: Farm) -> None:
    page.goto("/submit")
    choose(page, *WRONG)
    expect(plan(page).get_by_role("heading", name="2 invalid rows")).to_be_visible()
    for text in ("prompts.jsonl line 2: prompt '' is empty", "prompts.jsonl line 3: width 1030 is not a multiple of 8"):
        expect(plan(page).get_by_role("listitem").filter(has_text=text)).to_be_visible()
    assert farm.ledger.batches() == []
    page.get_by_label("Name").fill("cats")
    page.get_by_label("Model").fill("unserved")
    submit_button(page, "Submit 1 image without 2 invalid rows").click()
    expect(page).to_have_url(re.compile("/batches/cats$"))
    status = farm.batch("cats").status()
    assert (status.total, status.pending, status.errors) == (3, 1, {"invalid_row": 2})


def test_a_complaint_is_at_its_field_and_goes_when_the_field_is_right(
    page: Page, farm: Farm, problems: Problems
) -> None:
    problems.allow(REFUSED)
    farm.submit(["a cow"], batch="cats", model="unserved")
    page.goto("/submit")
    page.get_by_label("or write prompts").fill("a cat\n\na dog")
    expect(submit_button(page, "Submit 2 images")).to_be_enabled()
    # the browser knows
    page.get_by_label("Width").fill("513")
    expect(plan(page).get_by_text("Correct the marked fields")).to_be_visible()
    assert complaint(page, "Width")
    page.get_by_label("Width").fill("512")
    # the server knows
    page.get_by_text("More options").click()
    page.get_by_label("Sweeps").fill("sed=1..4")
    expect(plan(page).get_by_text("Correct the marked field.")).to_be_visible()
    assert "did you mean 'seed'?" in complaint(page, "Sweeps: each row with each value; a field a line")
    page.get_by_label("Sweeps").fill("seed=1..4")
    expect(submit_button(page, "Submit 8 images")).to_be_enabled()
    assert not complaint(page, "Sweeps: each row with each value; a field a line")
    # another batch has the name
    page.get_by_label("Name").fill("cats")
    submit_button(page).click()
    expect(page.get_by_label("Name")).to_be_focused()
    assert "cats" in complaint(page, "Name")
    page.get_by_label("Name").fill("dogs")
    submit_button(page).click()
    expect(page).to_have_url(re.compile("/batches/dogs$"))
    assert farm.batch("dogs").status().total == 8


def test_prompts_are_submitted_by_keyboard_alone(page: Page, farm: Farm) -> None:
    page.goto("/submit")
    prompts, model = page.get_by_label("or write prompts"), page.get_by_label("Model")
    expect(prompts).to_be_visible()
    for target, text in ((prompts, "a cat"), (model, "unserved"), (page.get_by_label("Seed"), "7")):
        while not target.evaluate("element => element === document.activeElement"):
            page.keyboard.press("Tab")
        page.keyboard.type(text)
    expect(submit_button(page, "Submit 1 image")).to_be_enabled()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/batches/prompts-[0-9a-f]{8}$"))
    assert [batch.status().model for batch in farm.batches()] == ["unserved"]


def test_a_file_dropped_anywhere_on_the_page_is_planned_and_can_be_removed(page: Page, tmp_path: Path) -> None:
    page.goto("/submit")
    page.get_by_label("or write prompts").fill("a cow")
    dropped = page.evaluate_handle("new DataTransfer()")
    dropped.evaluate("data => data.items.add(new File(['a cat\\na dog'], 'pets.txt'))")
    page.get_by_role("banner").dispatch_event("drop", {"dataTransfer": dropped})
    expect(plan(page).get_by_text("What pets.txt would enqueue")).to_be_visible()
    expect(submit_button(page, "Submit 2 images")).to_be_enabled()
    page.get_by_role("button", name="Remove the file").click()
    # what was written before is still there
    expect(submit_button(page, "Submit 1 image")).to_be_enabled()
    expect(page.get_by_label("or write prompts")).to_have_value("a cow")
    changed = tmp_path / "changed.txt"
    changed.write_text("a cat\n")
    page.get_by_label("Choose a prompt file").set_input_files(changed)
    expect(plan(page).get_by_text("What changed.txt would enqueue")).to_be_visible()


def test_how_much_of_a_file_is_sent_is_shown(page: Page) -> None:
    page.goto("/submit")
    expect(submit_button(page)).to_be_disabled()
    network = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 200_000}
    network.send("Network.emulateNetworkConditions", slow)
    choose(page, *[{"prompt": f"a cat {'and a cat ' * 50}{number}"} for number in range(500)])
    expect(plan(page).get_by_text(re.compile(r"Sending \d+ .* of 2\d\d kB"))).to_be_visible()
    expect(plan(page).get_by_role("progressbar", name="Sent")).to_be_visible()
    expect(submit_button(page, "Submit 500 images")).to_be_enabled()
    expect(plan(page).get_by_role("progressbar", name="Sent")).to_be_hidden()


def test_nothing_is_lost_when_the_server_stops_and_the_submission_is_sent_again(
    stoppable: StoppableServer, farm: Farm
) -> None:
    page = stoppable.open_page()
    page.goto("/submit")
    choose(page, {"prompt": "a cat"}, {"prompt": "a dog"})
    page.get_by_label("Name").fill("cats")
    page.get_by_label("Model").fill("unserved")
    expect(submit_button(page, "Submit 2 images")).to_be_enabled()
    stoppable.stop()
    submit_button(page).click()
    expect(plan(page).get_by_text("Nothing is lost")).to_be_visible()
    expect(page.get_by_text("No connection")).to_be_visible()
    assert farm.ledger.batches() == []
    stoppable.start()
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    submit_button(page).click()
    expect(page).to_have_url(re.compile("/batches/cats$"))
    assert farm.batch("cats").status().total == 2


def test_a_plan_follows_by_itself_when_the_server_answers_again(stoppable: StoppableServer) -> None:
    page = stoppable.open_page()
    page.goto("/submit")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    stoppable.stop()
    page.get_by_label("or write prompts").fill("a cat")
    expect(plan(page).get_by_text("The plan follows when it does")).to_be_visible()
    stoppable.start()
    expect(submit_button(page, "Submit 1 image")).to_be_enabled()


@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_axe_core_finds_nothing_at_a_plan_with_problems(page: Page, problems: Problems) -> None:
    problems.allow(REFUSED)
    page.goto("/submit")
    choose(page, *WRONG, name=f"{'a-long-name-' * 10}.jsonl")
    expect(submit_button(page, "without 2 invalid rows")).to_be_visible()
    assert violations(page) == []
    page.get_by_text("More options").click()
    page.get_by_label("Scheduler").fill("nonsense")
    expect(plan(page).get_by_text("Correct the marked field")).to_be_visible()
    assert violations(page) == []
    assert sideways_pixels(page) <= 0
