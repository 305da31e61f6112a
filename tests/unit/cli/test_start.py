"""The time until a command does its work: a list of commands and a status need few imports."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

#: seconds of CPU; several times the usual ones, which leaves room for a busy machine
GUARD_S = 1.5
SLOW = {"boto3", "botocore", "celery", "kombu", "pydantic_settings", "rich", "PIL", "torch", "numpy"}
LIST_MODULES = """
import atexit, sys
atexit.register(lambda: print("MODULES", *{name.partition(".")[0] for name in sys.modules}, file=sys.stderr))
from latentfarm.cli import main
main()
"""


def modules_of(*arguments: str, folder: Path) -> set[str]:
    """Return the top-level modules that a command has imported at its end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LATENTFARM_", "AWS_"))}
    ended = subprocess.run(
        [sys.executable, "-c", LIST_MODULES, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("MODULES")]
    return set(line.split()[1:])


def test_the_list_of_commands_imports_neither_redis_nor_pydantic(tmp_path: Path) -> None:
    assert modules_of("--help", folder=tmp_path) & (SLOW | {"redis", "pydantic"}) == set()


@pytest.mark.parametrize("arguments", [("status",), ("status", "--help"), ("pause", "cats"), ("workers",)])
def test_a_command_that_reads_the_ledger_imports_no_client_of_a_store_or_queue(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    assert modules_of(*arguments, folder=tmp_path) & SLOW == set()


@pytest.mark.parametrize("arguments", [("--help",), ("status",)])
def test_a_command_starts_in_little_cpu_time(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", "from latentfarm.cli import main; main()", *arguments]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < GUARD_S
