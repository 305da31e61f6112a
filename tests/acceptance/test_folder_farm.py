"""Farms in a folder: ended hard, used by two commands at once, on a full disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.conftest import Command, read_lines, until
from tests.support.processes import alive, children_of

from latentfarm import Farm
from latentfarm.settings import Settings

pytestmark = pytest.mark.acceptance

LATENTFARM = (sys.executable, "-m", "latentfarm")
#: bytes; enough for the servers' first files
DISK = 6 << 20


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*LATENTFARM, *arguments], cwd=folder, stderr=subprocess.PIPE, text=True)


@contextmanager
def up(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the servers of a farm in a folder; end them at the end if the test has not."""
    process = start(folder, "up", "--workers", "0", "--no-server")
    assert process.stderr is not None
    try:
        next(line for line in process.stderr if line.startswith("up;"))
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.slow
def test_a_farm_whose_first_render_ends_at_half_of_the_second_stays_for_it(tmp_path: Path) -> None:
    for name, count in [("a", 20), ("b", 40)]:
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {n}\n" for n in range(count)))
    few = ("--num-inference-steps", "2", "--width", "64", "--height", "64", "--slots", "4")
    first = start(tmp_path, "render", "a.txt", "-o", "out-a", *few)
    until((tmp_path / ".latentfarm" / "farm.json").exists)
    second = start(tmp_path, "render", "b.txt", "-o", "out-b", *few)
    _, errors = second.communicate(timeout=150)
    assert second.returncode == 0, errors
    assert len(read_lines(tmp_path / "out-b" / "results.jsonl")) == 40
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 0, errors
    assert "other commands use this farm; it runs until they have ended" in errors
    assert len(read_lines(tmp_path / "out-a" / "results.jsonl")) == 20


@pytest.mark.slow
def test_a_render_that_was_killed_starts_workers_when_it_runs_again(
    latentfarm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTFARM_LEASE_TTL_S", "2")
    (tmp_path / "p.txt").write_text("".join(f"prompt {n}\n" for n in range(12)))
    options = ("p.txt", "-o", "out", "--num-inference-steps", "30", "--width", "64", "--height", "64", "--slots", "2")
    process = start(tmp_path, "render", *options, "--batch", "b")
    until((tmp_path / ".latentfarm" / "farm.json").exists)
    farm = Farm.open(Settings.load(tmp_path / ".latentfarm"))
    until(lambda: "b" in farm.ledger.batches() and farm.batch("b").status().done > 0)
    process.kill()
    process.communicate()
    # the ledger still lists the worker of the killed farm
    again = latentfarm("render", *options, "--batch", "b")
    assert again.returncode == 0, again.stderr
    assert len(read_lines(tmp_path / "out" / "results.jsonl")) == 12


def test_a_farm_that_was_killed_is_no_farm_and_keeps_its_data(latentfarm: Command, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    with up(tmp_path) as process:
        assert latentfarm("submit", "p.txt", "--batch", "b").returncode == 0
        servers = children_of(process.pid)
        shutil.copytree(tmp_path / ".latentfarm", tmp_path / "copy" / ".latentfarm", ignore=sockets)
        process.kill()
        process.wait()
        dead = latentfarm("status")
        assert dead.returncode == 2
        assert "no farm runs in .latentfarm, which has the data of an earlier one" in dead.stderr
        until(lambda: not any(map(alive, servers)))
    for folder in (tmp_path, tmp_path / "copy"):
        with up(folder):
            listed = subprocess.run([*LATENTFARM, "status", "--json"], cwd=folder, capture_output=True, check=True)
            assert [each["batch"] for each in json.loads(listed.stdout)] == ["b"]


def sockets(folder: str, names: list[str]) -> list[str]:
    """Return what cannot be copied."""
    return [name for name in names if (Path(folder) / name).is_socket()]


@pytest.mark.parametrize("server", ["valkey-server", "rclone"])
def test_a_server_that_is_killed_ends_up_with_its_name(tmp_path: Path, server: str) -> None:
    with up(tmp_path) as process:
        [pid] = [child for child in children_of(process.pid) if server in Path(f"/proc/{child}/cmdline").read_text()]
        os.kill(pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 3
        assert "was ended by SIGKILL" in errors
        assert "Traceback" not in errors


def test_a_closed_terminal_stops_up_in_order(tmp_path: Path) -> None:
    with up(tmp_path) as process:
        servers = children_of(process.pid)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 0
        assert not any(map(alive, servers))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


def test_a_full_disk_is_named_and_the_farm_goes_on_when_it_has_space(small_disk: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*LATENTFARM, *arguments], cwd=small_disk, capture_output=True, text=True, check=False)

    (small_disk / "p.txt").write_text("a cat\n")
    filler = small_disk / "filler"
    problem = f"{small_disk / '.latentfarm'} cannot be written: No space left on device; free some space on its disk\n"
    with up(small_disk) as process:
        assert process.stderr is not None
        fill(filler)
        assert process.stderr.readline() == problem
        full = run("submit", "p.txt", "--batch", "b")
        assert (full.returncode, full.stderr) == (3, f"latentfarm: {problem}")
        filler.unlink()
        assert process.stderr.readline() == "the farm can store its data again\n"
        assert run("submit", "p.txt", "--batch", "b").returncode == 0
        fill(filler)
    full = run("up", "--workers", "0", "--no-server")
    assert (full.returncode, full.stderr) == (3, f"latentfarm: {problem}")


def fill(file: Path) -> None:
    """Write to a file until its disk is full."""
    with file.open("wb", buffering=0) as out:
        try:
            while True:
                out.write(bytes(4096))
        except OSError:
            pass
