"""The docs: every link resolves, every page begins with its question, every name in them exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from tests.conftest import REPOSITORY
from typer.main import get_command

from latentfarm.cli import app
from latentfarm.job_state import INVALID_ROW
from latentfarm.ledger.constants import POISON
from latentfarm.schedulers import SCHEDULES, SOLVERS
from latentfarm.server import settings as server_settings
from latentfarm.settings import Settings

pytestmark = pytest.mark.unit

FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?:\]\(|src=\")([^)\s\"]+)")
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
#: pages about names that no longer exist
HISTORY = "CHANGELOG.md"


def pages() -> list[str]:
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],  # noqa: S607
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in files.stdout.split() if (REPOSITORY / name).exists()]


PAGES = pages()
CURRENT = [name for name in PAGES if name != HISTORY]


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text()


def anchors_of(file: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", file.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_and_anchor_resolves(page: str) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", text_of(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_every_page_begins_with_a_heading_and_a_sentence(page: str) -> None:
    heading, blank, first, *_ = text_of(page).splitlines()
    assert heading.startswith("# ")
    assert blank == ""
    assert re.match(r"[A-Za-z]", first)


def test_the_index_lists_every_page() -> None:
    index = text_of("docs/README.md")
    missing = [page for page in PAGES if page.startswith("docs/") and f"({page.removeprefix('docs/')})" not in index]
    assert missing == ["docs/README.md"]


@pytest.mark.parametrize("page", CURRENT)
def test_every_file_that_is_named_exists(page: str) -> None:
    named = re.findall(r"`((?:producer|worker|tests|docs|deploy|examples)/[\w./-]+)`", text_of(page))
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("page", CURRENT)
def test_every_command_and_option_that_is_shown_exists(page: str) -> None:
    text = text_of(page)
    code = "\n".join([*FENCE.findall(text), *re.findall(r"`([^`\n]+)`", FENCE.sub("", text))])
    shown = re.findall(r"(?:^|[$/] ?|\(`)latentfarm ([a-z][a-z-]+)([^`\n#|]*)", code, re.MULTILINE)
    unknown = [command for command, _ in shown if command not in COMMANDS]
    for command, rest in shown:
        if command in COMMANDS:
            known = {name for option in COMMANDS[command].params for name in (*option.opts, *option.secondary_opts)}
            unknown += [f"{command} {option}" for option in re.findall(r" (--[a-z-]+)", rest) if option not in known]
    assert unknown == []


@pytest.mark.parametrize("page", CURRENT)
def test_every_setting_that_is_named_exists(page: str) -> None:
    known = {f"LATENTFARM_{name.upper()}" for name in Settings.model_fields} | set(server_settings.variables().values())
    assert set(re.findall(r"LATENTFARM_[A-Z_0-9]+", text_of(page))) - known == set()


def test_every_scheduler_is_in_the_reference() -> None:
    text = text_of("docs/reference/prompt-files.md")
    assert [name for name in (*SOLVERS, *(f"-{end}" for end in SCHEDULES)) if f"`{name}`" not in text] == []


def test_every_error_code_is_in_the_reference() -> None:
    sources = [*(REPOSITORY / "producer").rglob("*.py"), *(REPOSITORY / "worker" / "latentfarm_worker").rglob("*.py")]
    codes = {code for file in sources for code in re.findall(r'JobError\(\s*"(\w+)"', file.read_text())}
    text = text_of("docs/reference/states-and-errors.md")
    assert codes
    assert [code for code in {*codes, POISON, INVALID_ROW} if f"`{code}`" not in text] == []
