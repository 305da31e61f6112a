"""A word that would be read with another meaning, or not at all, is an error that names what to write."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from latentfarm.cli import app
from latentfarm.errors import InputError
from latentfarm.names import check_batch_name, check_model_alias

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a cat\n")
    return tmp_path


def refusal(*words: str) -> str:
    ended = CliRunner().invoke(app, list(words))
    assert (ended.exit_code, ended.stdout) == (2, "")
    return ended.stderr.splitlines()[-1].removeprefix("Error: ")


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        # the parser's own reading: -o with the rest as its value, a folder =x, a folder --json, the last value
        (("render", "p.txt", "-output", "x"), "-output is not an option; write --output, with two dashes"),
        (("render", "p.txt", "-out", "x"), "-out is not an option; write --output, with two dashes"),
        (("render", "p.txt", "-o=x"), "write -o x or --output=x"),
        (("fetch", "cats", "-o", "--json"), "'--json' is an option; if it is the value, write --output=--json"),
        (("submit", "p.txt", "--negative-prompt", "--seed", "1"), "write --negative-prompt=--seed"),
        (("results", "cats", "-o", "-h"), "-o has no value"),
        (("submit", "p.txt", "--seed", "1", "--seed=2"), "--seed has two values, '1' and '2'; write it once"),
        (("render", "p.txt", "-oa", "--output", "b"), "--output has two values, 'a' and 'b'; write it once"),
        (("worker", "--compile", "--no-compile"), "--compile and --no-compile contradict each other"),
        # of another tool
        (("submit", "-n4", "p.txt"), "did you mean --num-images-per-prompt"),
        (("render", "p.txt", "-H512"), "did you mean --height or"),
        (("render", "p.txt", "-W", "512"), "did you mean --width or"),
        (("estimate", "p.txt", "-s7"), "--seed"),
        (("submit", "p.txt", "--steps", "4"), "did you mean --num-inference-steps?"),
        (("submit", "p.txt", "--cfg_scale=4"), "did you mean --guidance-scale?"),
        (("render", "p.txt", "--size", "512x512"), "did you mean --width or --height?"),
        (("submit", "p.txt", "--sampler", "Euler a"), "did you mean --scheduler?"),
        # misspelled, or only a part of the name
        (("status", "--jsn"), "did you mean --json?"),
        (("submit", "p.txt", "--num_inference_steps", "4"), "did you mean --num-inference-steps"),
        (("render", "p.txt", "--intermediates"), "did you mean --save-intermediates?"),
        (("wait", "cats", "--xyzzy"), "-h lists the options"),
        (("wait", "cats", "-V"), "write latentfarm --version"),
        (("set-priority", "cats", "--prio", "5"), "No such option: --prio"),
        # dashes of web pages
        (("status", "\u2014json"), "write --json"),
        (("fetch", "cats", "\u2013o", "x"), "write -o"),
        (("status", "\u2013\u2013json"), "write --json"),
        # words that have no place
        (("render", "p.txt", "q.txt", "-o", "x"), "'q.txt' is one word too many: the command takes FILE"),
        (("status", "my", "cats"), "quote a name that contains spaces"),
        (("bench", "mini"), "the command takes options only"),
        # before the command
        (("--json", "status"), "follow its name, as in `latentfarm status --json`"),
        (("-v",), "did you mean --version?"),
        (("--versoin",), "did you mean --version?"),
    ],
)
def test_a_word_with_another_meaning_is_refused_with_its_cure(words: tuple[str, ...], cure: str) -> None:
    assert cure in refusal(*words)


def test_a_file_whose_name_begins_with_a_dash_is_written_with_its_folder(folder: Path) -> None:
    (folder / "-p.txt").write_text("a cat\n")
    assert refusal("submit", "-p.txt").endswith("if it is a file or folder, write ./-p.txt")


@pytest.mark.parametrize(
    "words",
    [
        ("submit", "p.txt", "--negative-prompt", "-blurry"),
        ("submit", "p.txt", "--negative-prompt=--blurry, --ugly"),
        ("submit", "p.txt", "--negative-prompt", "\u2014 blurry"),
        ("submit", "p.txt", "--sweep", "seed=1..2", "--sweep", "guidance_scale=5,6"),
        ("submit", "p.txt", "--seed", "3", "--seed", "3", "--json", "--json"),
        ("submit", "--", "p.txt"),
        ("results", "cats", "-ox.csv"),
        ("set-priority", "cats", "-5"),
    ],
)
def test_words_with_one_meaning_are_read(words: tuple[str, ...]) -> None:
    ended = CliRunner().invoke(app, list(words))
    # it comes as far as the missing farm
    assert str(ended.exception).startswith("no farm")


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (("wait", "cats", "--timeout", "nan"), "--timeout 'nan' is not a number; write 0 or more"),
        (("wait", "cats", "--timeout", "-1"), "--timeout -1 is out of range; write 0 or more"),
        (("submit", "p.txt", "--failure-budget", "nan"), "--failure-budget 'nan' is not a number; write 0 to 100"),
        (("submit", "p.txt", "--max-invalid=inf"), "--max-invalid 'inf' is not a number; write 0 to 100"),
        (("submit", "p.txt", "--priority", "9" * 30), "is out of range; write -1000 to 1000"),
        (
            ("render", "p.txt", "--guidance-scale", "7,5"),
            "'7,5' is not a number; write one such as 7.5",
        ),
        (("render", "p.txt", "--width", "\uff11\uff12\uff18"), "is not a whole number; write one such as 512"),
        (("render", "p.txt", "--seed", ""), "--seed '' is not a whole number"),
        (("set-priority", "cats", "high"), "N 'high' is not a whole number; write -1000 to 1000"),
        (("set-priority", "cats", "-5000"), "N -5000 is out of range; write -1000 to 1000"),
        (("verify", "cats", "--sample", "0"), "--sample 0 is out of range; write 1 or more"),
        # Path("") is the current folder
        (("fetch", "cats", "-o", ""), "-o is empty; write a name, or . for the current folder"),
        (("results", "cats", "--output="), "--output is empty"),
        (("render", "p.txt", "-o", "out", "--wildcards", ""), "--wildcards is empty"),
        # a folder "http:"
        (("fetch", "cats", "-o", "http://host/x"), "is a URL; write a path of this machine"),
        (("results", "cats", "-o", "s3://bucket/x.csv"), "is a URL"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_with_the_values_that_can(words: tuple[str, ...], cure: str) -> None:
    assert cure in refusal(*words)


def test_a_letter_that_only_looks_like_one_of_ascii_is_named() -> None:
    for check in (check_batch_name, check_model_alias):
        with pytest.raises(InputError, match=r"which contains '\u0441' \(CYRILLIC SMALL LETTER ES\)"):
            check("\u0441ats")


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (("submit", ""), "write the name of a prompt file, or - for stdin"),
        (("estimate", "https://host/p.jsonl"), "https://host/p.jsonl is a URL; download the file"),
        (("render", "a red cat", "-o", "out"), "`echo 'a red cat' | latentfarm ... - --format txt`"),
    ],
)
def test_what_is_no_prompt_file_is_refused_with_the_way_to_read_it(words: tuple[str, ...], cure: str) -> None:
    ended = CliRunner().invoke(app, list(words))
    assert isinstance(ended.exception, InputError)
    assert cure in str(ended.exception)
