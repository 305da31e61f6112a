from __future__ import annotations

import os
from pathlib import Path
from threading import Thread

import pytest

from latentfarm.errors import InputError
from latentfarm.fetch.atomic_files import atomic_write

pytestmark = pytest.mark.unit


def write(file: Path, body: bytes = b"new") -> None:
    with atomic_write(file) as opened:
        opened.write(body)


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    write(tmp_path / "a", b"old")
    with atomic_write(tmp_path / "a") as opened:
        opened.write(b"new")
        assert (tmp_path / "a").read_bytes() == b"old"
    assert (tmp_path / "a").read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("", "cannot be written: Is a directory"),
        ("none/a", "cannot be written: No such file or directory"),
        ("file/a", "cannot be written: Not a directory"),
        ("x" * 256, "cannot be written: File name too long"),
        ("x" * 250, "cannot be written: File name too long"),
    ],
)
def test_a_file_that_cannot_be_written_is_an_error_before_its_content_is_read(
    tmp_path: Path, name: str, error: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=error), atomic_write(tmp_path / name):
        pytest.fail("the content was read")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_pipe_and_a_device_are_written_to_and_stay(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "null"
    os.mkfifo(pipe)
    link.symlink_to(os.devnull)
    writer = Thread(target=write, args=(pipe,))
    writer.start()
    assert pipe.read_bytes() == b"new"
    writer.join()
    write(link)
    assert pipe.is_fifo()
    assert link.is_symlink()


def test_a_full_device_is_an_error() -> None:
    with pytest.raises(InputError, match="/dev/full cannot be written: No space left on device"):
        write(Path("/dev/full"))
