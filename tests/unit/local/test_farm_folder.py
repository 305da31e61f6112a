"""Whether a farm runs in a folder: locks of real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.conftest import until

from latentfarm.errors import InputError
from latentfarm.farm_folder import FarmFolder, FarmRunsError
from latentfarm.settings import Settings

pytestmark = pytest.mark.unit

FIELDS = {"redis_url": "unix:///s", "bucket": "b", "s3_endpoint_url": "http://s", "s3_access_key": "a"}
OWNER = """
import sys
from pathlib import Path
from latentfarm.farm_folder import FarmFolder
claim = FarmFolder(Path(sys.argv[1])).claim()
claim.publish({**FIELDS, "s3_secret_key": "secret"})
print("owns", flush=True)
sys.stdin.read()
"""


@contextmanager
def owned(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process own the folder."""
    command = [sys.executable, "-c", OWNER.replace("FIELDS", repr(FIELDS)), str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "owns\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_farm_is_found_while_its_process_lives_and_only_its_owner_can_read_its_keys(tmp_path: Path) -> None:
    folder = FarmFolder(tmp_path / "farm")
    assert folder.read() is None
    with owned(folder.path) as owner:
        assert Settings.load(folder.path).redis_url == "unix:///s"
        assert (folder.path / "farm.json").stat().st_mode & 0o777 == 0o600
        with pytest.raises(FarmRunsError, match=rf"a farm already runs in .* \(process {owner.pid}\); use it"):
            folder.claim()
        owner.kill()
        owner.wait()
        # the file is still there
        assert json.loads((folder.path / "farm.json").read_text())["bucket"] == "b"
        assert folder.read() is None
        assert not Settings.load(folder.path).configured
    folder.claim().release()


def test_a_copy_of_a_running_farms_folder_has_no_farm(tmp_path: Path) -> None:
    with owned(tmp_path / "farm"):
        shutil.copytree(tmp_path / "farm", tmp_path / "copy")
        assert FarmFolder(tmp_path / "copy").read() is None
        FarmFolder(tmp_path / "copy").claim().release()


def test_a_moved_folder_and_one_of_another_host_are_errors_with_their_cure(tmp_path: Path) -> None:
    with owned(tmp_path / "farm") as owner:
        (tmp_path / "farm").rename(tmp_path / "moved")
        folder = FarmFolder(tmp_path / "moved")
        with pytest.raises(InputError, match=rf"was started as .*farm, and the folder was moved; stop .*{owner.pid}"):
            folder.read()
        file = tmp_path / "moved" / "farm.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "host": "elsewhere"}))
        with pytest.raises(InputError, match="runs on the host elsewhere; run the command there"):
            folder.read()
        file.write_text("{")
        with pytest.raises(InputError, match=rf"farm.json is damaged; stop process {owner.pid}, and start"):
            folder.read()


def test_an_owner_waits_for_those_who_use_the_farm(tmp_path: Path) -> None:
    claim = FarmFolder(tmp_path).claim()
    claim.publish({**FIELDS, "s3_secret_key": "secret"})
    user = subprocess.Popen(
        [sys.executable, "-c", USER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert user.stdout is not None
    assert user.stdout.readline() == "unix:///s\n"
    assert claim.in_use()
    user.communicate("")
    until(lambda: not claim.in_use())
    # from here on, no other command can use it: a command that comes now waits for the end
    late = subprocess.Popen([sys.executable, "-c", LATE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert late.stdout is not None
    assert late.stdout.readline() == "waits\n"
    claim.release()
    assert late.communicate(timeout=30)[0] == "None\n"


USER = """
import sys
from pathlib import Path
from latentfarm.farm_folder import FarmFolder
print(FarmFolder(Path(sys.argv[1])).use()["redis_url"], flush=True)
sys.stdin.read()
"""
LATE = """
import sys
from pathlib import Path
from latentfarm.farm_folder import FarmFolder
print("waits", flush=True)
print(FarmFolder(Path(sys.argv[1])).use())
"""


def test_servers_of_a_killed_owner_are_waited_for(tmp_path: Path) -> None:
    claim = FarmFolder(tmp_path).claim()
    claim.wait_for_servers(0)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[claim.servers.fileno()])
    claim.release()
    again = FarmFolder(tmp_path).claim()
    with pytest.raises(InputError, match="servers of an earlier farm still use"):
        again.wait_for_servers(0.1)
    child.kill()
    child.wait()
    again.wait_for_servers(10)
    again.release()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written: Not a directory; run the command in a folder of yours"):
        FarmFolder(tmp_path / "file" / "farm").claim()
