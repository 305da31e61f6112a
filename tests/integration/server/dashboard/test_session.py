"""Users of the dashboard, and its frame: keys, sessions, theme, navigation by keyboard, paths that nothing has."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from tests.integration.server.conftest import Serving
from tests.integration.server.dashboard.conftest import OpenPage
from tests.support.browser import LOOKS, Problems, sideways_pixels, violations
from tests.support.http_server import RunningServer
from tests.support.machines import free_ports

from latentfarm.farm import Farm
from latentfarm.server.security.keys import new_key

pytestmark = pytest.mark.integration

KEYS = {name: new_key(name, scopes) for name, scopes in (("reader", "read"), ("admin", "admin"))}
ABOUT: dict[str, str | int] = {"device": "cpu", "device_name": "cpu", "dtype": "float32", "slots": 1, "draining": 0}


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def serve(serving: Serving, tmp_path: Path, port: int) -> Callable[[], RunningServer]:
    """Start a server with keys, on the same port each time."""
    file = tmp_path / "keys.txt"
    file.write_text("".join(f"{key.line}\n" for _, key in KEYS.values()))
    return lambda: serving(address=f"127.0.0.1:{port}", api_keys_file=file)


@pytest.fixture
def keyed(serve: Callable[[], RunningServer]) -> RunningServer:
    return serve()


@pytest.fixture
def page(open_page: OpenPage, keyed: RunningServer, all_problems: list[Problems]) -> Page:
    """A page of that server, without a session."""
    page: Page = open_page(keyed)
    # the browser reports each 401 as an error
    all_problems[0].allow("status of 401")
    return page


def sign_in(page: Page, name: str) -> None:
    page.get_by_label("Key").fill(KEYS[name][0])
    page.keyboard.press("Enter")


def test_a_wrong_key_is_refused_a_right_one_opens_the_page_that_was_wanted(page: Page, farm: Farm) -> None:
    assert farm.ledger.workers("mini") == []
    page.goto("/workers")
    expect(page.get_by_label("Key")).to_be_focused()
    expect(page.get_by_role("navigation").get_by_role("link")).to_have_count(0)
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("correct it")
    sign_in(page, "admin")
    expect(page.get_by_role("heading", name="No worker is running")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="No worker is running")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_after_a_session_has_ended_a_key_leads_back_to_the_view_and_what_was_entered(page: Page, farm: Farm) -> None:
    assert farm.ledger.batches() == []
    page.goto("/submit")
    sign_in(page, "admin")
    page.get_by_label("or write prompts").fill("a cat")
    expect(page.get_by_role("button", name="Submit 1 image")).to_be_enabled()
    page.context.clear_cookies()
    page.get_by_label("Steps", exact=True).fill("7")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    sign_in(page, "admin")
    expect(page.get_by_label("or write prompts")).to_have_value("a cat")
    expect(page.get_by_label("Steps", exact=True)).to_have_value("7")
    expect(page.get_by_role("button", name="Submit 1 image")).to_be_enabled()
    # of another key, it is not shown
    page.get_by_role("button", name="Sign out").click()
    sign_in(page, "reader")
    expect(page.get_by_role("heading", name="This key cannot submit")).to_be_visible()


def test_a_page_that_only_listens_requests_a_key_when_the_session_has_ended(
    page: Page, keyed: RunningServer, serve: Callable[[], RunningServer], farm: Farm, all_problems: list[Problems]
) -> None:
    all_problems[0].allow("ERR_CONNECTION|ERR_EMPTY|ERR_INCOMPLETE")
    farm.submit(["a cat"], batch="cats", model="unserved")
    page.goto("/")
    sign_in(page, "reader")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    page.context.clear_cookies()
    # the stream, which this server has admitted, ends with it
    keyed.stop()
    expect(page.get_by_text("No connection")).to_be_visible()
    serve()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    sign_in(page, "reader")
    expect(page.get_by_role("link", name="cats")).to_be_visible()


def test_a_key_that_may_only_read_has_no_buttons_that_change_something(page: Page, farm: Farm) -> None:
    farm.submit(["a cat"], batch="cats", model="unserved")
    farm.ledger.heartbeat("mini", "worker-b", about=ABOUT)
    page.goto("/")
    sign_in(page, "reader")
    expect(page.get_by_role("link", name="cats")).to_be_visible()
    expect(page.get_by_label("Actions of cats")).to_have_count(0)
    expect(page.get_by_role("link", name="Submit")).to_have_count(0)
    page.get_by_role("link", name="Workers").click()
    expect(page.get_by_role("heading", name="worker-b")).to_be_visible()
    expect(page.get_by_role("button", name="Drain …")).to_have_count(0)
    page.goto("/submit")
    expect(page.get_by_role("heading", name="This key cannot submit")).to_be_visible()
    expect(page.get_by_text("lacks the scope submit")).to_be_visible()


def test_the_chosen_theme_is_remembered(open_page: OpenPage, server: RunningServer) -> None:
    page = open_page(server)
    page.goto("/")
    change = page.get_by_role("button", name="Change between light and dark")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    change.click()
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    expect(change).to_be_visible()
    assert page.evaluate(background) == dark
    change.click()
    assert page.evaluate(background) == light


def test_the_frame_is_used_by_keyboard_alone(open_page: OpenPage, server: RunningServer) -> None:
    page = open_page(server)
    page.goto("/")
    expect(page.get_by_role("heading", name="No batches yet")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    page.get_by_role("link", name="Workers").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Workers")).to_be_visible()
    # a screen reader goes on at the new content
    expect(page.get_by_role("main")).to_be_focused()
    expect(page).to_have_title("Workers · latentfarm")
    page.go_back()
    expect(page.get_by_role("heading", name="No batches yet")).to_be_visible()


def test_a_path_that_nothing_has_leads_back(open_page: OpenPage, server: RunningServer) -> None:
    page = open_page(server)
    page.goto("/batches/cats/nonsense")
    expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()
    page.get_by_role("link", name="Go to the batches").click()
    expect(page).to_have_url(re.compile("/$"))
    expect(page.get_by_role("heading", name="No batches yet")).to_be_visible()


@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_axe_core_finds_nothing_at_the_sign_in(page: Page, farm: Farm) -> None:
    assert farm.ledger.batches() == []
    page.goto("/")
    sign_in(page, "admin")
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Key").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("correct it")
    assert violations(page) == []
    assert sideways_pixels(page) <= 0
