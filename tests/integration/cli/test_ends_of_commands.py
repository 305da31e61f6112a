"""How commands end: a full disk or a closed pipe behind stdout, interrupts during imports, a closed terminal."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import until

pytestmark = pytest.mark.integration

#: as the installed script does; the tests' fork server is not used
LATENTFARM = [sys.executable, "-c", "from latentfarm.__main__ import main; main()"]
FULL = Path("/dev/full")


def use_default_signals() -> None:
    """Ignore no signal: tests that run under nohup or in the background ignore some, and their children would too."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.skipif(not FULL.exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["estimate", "p.txt", "--json"]])
def test_a_full_disk_behind_stdout_is_one_line_with_its_cure(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    with FULL.open("wb") as full:
        ran = subprocess.run([*LATENTFARM, *arguments], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, check=False)
    assert ran.returncode == 2
    [line] = ran.stderr.decode().splitlines()
    assert line == "latentfarm: the output: No space left on device; free some space, or write to another disk"


def test_a_reader_that_closes_the_pipe_ends_the_command_without_an_error(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    read, write = os.pipe()
    os.close(read)
    command = [*LATENTFARM, "estimate", "p.txt", "--json"]
    ran = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (0, b"")


def catches(process: subprocess.Popen[bytes], number: signal.Signals) -> bool:
    """Return whether a process has a handler of its own for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [mask] = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(mask >> (number - 1) & 1)


def test_an_interrupt_during_the_imports_leaves_no_traceback(tmp_path: Path) -> None:
    # an import that lasts as long as the test needs
    (tmp_path / "typer.py").write_text("import sys\nprint('importing', flush=True)\nsys.stdin.read()\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [*LATENTFARM, "status"],
        env=environment,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        preexec_fn=use_default_signals,  # noqa: PLW1509 (the tests have one thread)
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == 130


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_request_or_a_closed_terminal_interrupts_a_command(tmp_path: Path, number: signal.Signals) -> None:
    os.mkfifo(tmp_path / "p.txt")
    # it waits for the writer of the pipe
    process = subprocess.Popen(
        [*LATENTFARM, "estimate", "p.txt"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        preexec_fn=use_default_signals,  # noqa: PLW1509 (the tests have one thread)
    )
    until(lambda: catches(process, signal.SIGHUP), timeout_s=60)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in errors


@pytest.mark.slow
def test_a_background_job_that_ignores_a_closed_terminal_goes_on(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    script = f"trap '' HUP; {shlex.join(LATENTFARM)} estimate p.txt --json & kill -HUP $!; wait $!"
    ran = subprocess.run(script, shell=True, cwd=tmp_path, capture_output=True, check=False)  # noqa: S602
    assert (ran.returncode, ran.stderr) == (0, b"")


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="only Linux has /dev/full")
def test_a_command_whose_messages_cannot_be_written_goes_on(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    with FULL.open("wb") as full:
        for arguments, code in [(["estimate", "p.txt", "--json"], 0), (["estimate", "none.txt"], 2)]:
            ran = subprocess.run(
                [*LATENTFARM, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, stderr=full, check=False
            )
            assert ran.returncode == code
            assert bool(ran.stdout) == (code == 0)
