"""Every command with wrong input: a message on stderr and a documented exit code, never a traceback.

Without a farm, so that nothing starts: no process, no server, no connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from latentfarm.cli import COMMANDS, app
from latentfarm.errors import LatentfarmError

pytestmark = pytest.mark.unit

NAMES = [name for group in COMMANDS.values() for name in group]
LOADED = get_command(app).commands  # type: ignore[attr-defined]
#: words for the arguments of a command, by metavar; what is missing is the name of a batch
WORDS = {"new": "new", "FILE": "missing.txt", "N": "1", "BATCH/INDEX": "cats/0"}
VALUES = ("", "nan", "9" * 30, "\u0441ats", "http://host/x", "a\0b")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def words_of(name: str) -> list[str]:
    words = [
        WORDS.get(each.metavar, "cats")
        for each in LOADED[name].params
        if each.param_type_name == "argument" and each.required
    ]
    return [*words, *(["-o", "out"] if name in {"render", "fetch"} else [])]


def check(ended: Any, words: list[str]) -> str:
    """Return the message of a command that failed, after a check of its form."""
    failed = ended.exception
    assert failed is None or isinstance(failed, SystemExit | LatentfarmError | TimeoutError), (words, failed)
    if failed is None:
        return ""
    text = ended.stderr if isinstance(failed, SystemExit) else str(failed)
    code = getattr(failed, "exit_code", ended.exit_code)
    assert code in {0, 1, 2, 3}, (words, code)
    assert code == 0 or text.strip(), words
    assert "Traceback" not in text, words
    # pydantic's own text about a value has no cure
    assert "Input should be" not in text, (words, text)
    return text


def wrong_values(name: str) -> Iterator[list[str]]:
    for each in LOADED[name].params:
        # the prompt options of three commands are the same
        common = name in {"render", "submit"} and each.rich_help_panel
        if each.param_type_name == "option" and not each.is_flag and not common:
            option = max(each.opts, key=len)
            given = [word for word in words_of(name) if option != "--output" or word not in {"-o", "out"}]
            yield from ([name, *given, f"{option}={value}"] for value in VALUES)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "doctor"])
def test_a_wrong_value_of_any_option_is_a_message(name: str) -> None:
    for words in wrong_values(name):
        check(CliRunner().invoke(app, words, input=""), words)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_words_are_usage_errors(name: str) -> None:
    takes_any_number = any(each.nargs < 0 for each in LOADED[name].params)
    cases = [["--xyzzy"], ["-x"], ["\u2014json"]] + ([] if takes_any_number else [["a", "b", "c"]])
    for more in cases:
        ended = CliRunner().invoke(app, [name, *words_of(name), *more])
        assert (ended.exit_code, ended.stdout) == (2, ""), (name, more)
        assert check(ended, [name, *more])


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in {"up", "doctor", "bench", "estimate", "render", "key", "model"}]
)
def test_without_a_farm_a_command_prints_how_to_get_one(name: str) -> None:
    # its batch may be left out with --inputs
    ended = CliRunner().invoke(app, [name, *(["cats"] if name == "gc" else words_of(name))])
    assert "no farm: set LATENTFARM_REDIS_URL and LATENTFARM_BUCKET, or start one here with `latentfarm up`" in check(
        ended, [name]
    )
