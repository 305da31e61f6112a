"""The help of every command: one line an option, with its default."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import latentfarm
from latentfarm.batch_state import BatchState
from latentfarm.cli import COMMANDS, app
from latentfarm.job_state import JobState

pytestmark = pytest.mark.unit

NAMES = [name for group in COMMANDS.values() for name in group]
LOADED = get_command(app).commands  # type: ignore[attr-defined]


def help_of(*arguments: str, columns: int = 110) -> str:
    result = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": str(columns)}, terminal_width=columns)
    assert result.exit_code == 0
    return result.stdout


def options_of(name: str) -> list[Any]:
    return [each for each in LOADED[name].params if each.param_type_name == "option"]


def test_the_list_of_commands_has_each_with_its_summary() -> None:
    text = help_of()
    for heading, group in COMMANDS.items():
        assert f"\n{heading}:\n" in text
        for name, entry in group.items():
            assert re.search(rf"^  {name} +{re.escape(entry.summary)}$", text, re.MULTILINE), name


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_explained_on_one_line(name: str) -> None:
    assert [option.name for option in options_of(name) if not option.help] == []
    lines = help_of(name).splitlines()
    headings = [n for n, line in enumerate(lines) if line.endswith("ptions:")]
    listed = [line for line in lines[headings[0] :] if line.startswith("  ")]
    # a pair such as --compile / --no-compile, or one name, may be too long for the column of names
    wrapped = [line for line in listed if line.startswith("     ")]
    assert len(wrapped) <= len([line for line in listed if re.search(r"^  --\w\S* (/ --)?\S+$", line)]), wrapped


@pytest.mark.parametrize("name", NAMES)
def test_every_option_with_a_value_has_a_metavar(name: str) -> None:
    assert [option.name for option in options_of(name) if not option.is_flag and not option.metavar] == []


@pytest.mark.parametrize("name", NAMES)
def test_no_line_of_the_help_is_wider_than_the_terminal(name: str) -> None:
    assert [line for line in help_of(name, columns=80).splitlines() if len(line) > 80] == []


def test_defaults_and_variables_have_a_fixed_form() -> None:
    text = help_of("submit")
    assert "Denoising steps [default: the model's, or 25]" in text
    assert re.search(r"--failure-budget PERCENT .*\[default: 10\]", text)
    assert re.search(r"--slots N .*\[default: fastest\] \[env: LATENTFARM_SLOTS\]", help_of("worker"))
    assert "Folder for the images [required]" in help_of("render")


def test_the_usage_names_the_arguments() -> None:
    assert "submit [OPTIONS] FILE\n" in help_of("submit")
    assert "set-priority [OPTIONS] BATCH N\n" in help_of("set-priority")
    assert "watch [OPTIONS] [BATCH]...\n" in help_of("watch")


def test_prompt_options_have_a_heading_of_their_own() -> None:
    own, prompt = help_of("render").split("Prompt options:\n")
    assert "--batch NAME" in own
    assert "--sweep FIELD=VALUES" in prompt
    assert "--width PIXELS" in help_of("bench").split("Options:\n")[1]


def test_the_states_of_batches_and_jobs_are_listed() -> None:
    assert all(state in help_of("status") for state in BatchState)
    assert all(state.word in help_of("jobs") for state in JobState)
    assert all(state.word in help_of("fetch") for state in JobState)


def test_a_misspelled_command_or_option_gets_a_suggestion() -> None:
    for arguments, hint in ((["stats"], "'status'"), (["status", "--jsn"], "--json")):
        ended = subprocess.run(
            [sys.executable, "-m", "latentfarm", *arguments], capture_output=True, text=True, check=False
        )
        assert ended.returncode == 2
        assert hint in ended.stderr


def test_the_version_is_that_of_the_package_and_of_python() -> None:
    for name in ("--version", "-V"):
        ended = CliRunner().invoke(app, [name])
        assert (ended.exit_code, ended.stderr) == (0, "")
        assert ended.stdout == f"latentfarm {latentfarm.__version__} (Python {platform.python_version()})\n"


@pytest.mark.parametrize("name", [(), ("submit",)])
def test_help_is_also_a_command(name: tuple[str, ...]) -> None:
    ended = CliRunner().invoke(app, ["help", *name])
    assert (ended.exit_code, ended.stdout) == (0, CliRunner().invoke(app, [*name, "-h"]).stdout)


def test_without_a_command_the_commands_are_listed_as_an_error() -> None:
    ended = CliRunner().invoke(app, [])
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert all(f"\n{heading}:\n" in ended.stderr for heading in COMMANDS)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_character_that_the_encoding_of_stdout_lacks_is_escaped(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "\u732b": 2}\n')
    command = [sys.executable, "-m", "latentfarm", "estimate", "p.jsonl", "--model", "unserved", "--json"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "\u732b" in json.loads(ended.stdout)["problems"][0]
