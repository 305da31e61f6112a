"""Commands at a farm that has nothing, or does not answer: a sentence with its cure, and the exit code of its kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from latentfarm import Farm
from latentfarm.cli import app
from latentfarm.errors import InputError, LatentfarmError

pytestmark = pytest.mark.integration

#: commands that need a batch
NAMED = (
    *(
        (name,)
        for name in ("status", "watch", "jobs", "wait", "pause", "resume", "cancel", "retry", "gc", "results", "verify")
    ),
    ("fetch", "-o", "out"),
    ("set-priority", "--json"),
)
#: commands that need none
UNNAMED = (("status",), ("watch",), ("workers",), ("recover",), ("submit", "p.txt"), ("render", "p.txt", "-o", "out"))


def words(command: tuple[str, ...], batch: str) -> list[str]:
    return [command[0], batch, *(["1"] if command[0] == "set-priority" else []), *command[1:]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a cat\n")


def error_of(arguments: list[str]) -> LatentfarmError:
    ended = CliRunner().invoke(app, arguments)
    assert isinstance(ended.exception, LatentfarmError), (arguments, ended.exception)
    return ended.exception


@pytest.mark.parametrize("command", NAMED, ids=lambda command: command[0])
def test_an_unknown_batch_and_an_impossible_name_are_wrong_use(
    command: tuple[str, ...], farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in farm.settings.environment().items():
        monkeypatch.setenv(name, value)
    unknown, impossible = (error_of(words(command, batch)) for batch in ("nosuch", "No/such"))
    assert unknown.exit_code == impossible.exit_code == 2
    assert "batch 'nosuch' is unknown; `latentfarm status` lists all batches" in str(unknown)
    assert "write 1 to 64 of a-z" in str(impossible)
    assert not Path("out").exists()


@pytest.mark.parametrize("command", [*(words(each, "cats") for each in NAMED), *map(list, UNNAMED)], ids=" ".join)
def test_a_farm_that_does_not_answer_is_unavailable(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "REDIS_URL": "redis://127.0.0.1:1",
        "BUCKET": "b",
        "S3_ENDPOINT_URL": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(f"LATENTFARM_{name}", value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    error = error_of(command)
    assert error.exit_code == 3
    assert "127.0.0.1:1" in str(error)


def test_an_empty_farm_is_no_error(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in farm.settings.environment().items():
        monkeypatch.setenv(name, value)
    for arguments in (
        ["status"],
        ["status", "--json"],
        ["watch"],
        ["workers"],
        ["recover"],
        ["delete", "nosuch", "--yes"],
    ):
        assert CliRunner().invoke(app, arguments).exit_code == 0, arguments


def test_a_misspelled_batch_is_answered_with_the_one_that_was_meant(farm: Farm) -> None:
    farm.submit(["a cat"], batch="my-cats")
    with pytest.raises(InputError, match=r"batch 'my-cat' is unknown; .*; did you mean 'my-cats'\?"):
        farm.batch("my-cat")
