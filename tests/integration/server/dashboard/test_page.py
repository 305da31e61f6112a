"""The page in each window and in both colour schemes: it loads without an error, and axe-core finds nothing."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect
from tests.support.browser import LOOKS, sideways_pixels, violations

pytestmark = pytest.mark.integration

VIEWS = ("/", "/workers", "/submit")


@pytest.mark.parametrize("look", LOOKS, ids=str)
@pytest.mark.parametrize("path", VIEWS)
def test_a_view_of_an_empty_farm_loads_without_errors_and_axe_core_finds_nothing(page: Page, path: str) -> None:
    page.goto(path)
    expect(page.get_by_role("main")).to_be_visible()
    assert violations(page) == []
    assert sideways_pixels(page) <= 0
