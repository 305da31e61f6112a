"""Who a folder of images belongs to, and whether it can be written to."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from latentfarm.errors import InputError
from latentfarm.fetch.options import FetchOptions
from latentfarm.fetch.output_folder import OWNER_FILE, OutputFolder, Owner, check_writable, read_owner

pytestmark = pytest.mark.unit

CATS = Owner("cats", "1")
FORCE = FetchOptions(force=True)
SHARDS = FetchOptions(layout="webdataset")


def claim(folder: Path, owner: Owner = CATS, options: FetchOptions | None = None) -> None:
    OutputFolder(folder, owner, options or FetchOptions()).claim()


def written(folder: Path, name: str, body: bytes = b"image", **line: Any) -> dict[str, Any]:
    """Write a file of a fetch, and return its line in ``results.jsonl``."""
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(body)
    return {"file": name, "sha256": hashlib.sha256(body).hexdigest(), **line}


def write_results(folder: Path, *lines: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "results.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("file", "file cannot be written: it is not a folder"),
        ("dangling", "dangling cannot be written: it is not a folder"),
        ("file/out", "cannot be written: Not a directory"),
        ("x" * 300, "cannot be written: File name too long"),
        ("/".join(["x" * 200] * 21), "cannot be written: File name too long"),
        ("/proc/out", "cannot be written: No such file or directory"),
        ("/dev/full", "full cannot be written: it is not a folder"),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path: Path, place: str, error: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    with pytest.raises(InputError, match=error):
        check_writable(tmp_path / place)
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == {"file"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written: Permission denied"):
        check_writable(tmp_path)


def test_a_writable_folder_is_created_and_stays_empty(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path / "a" / "b", tmp_path / "link" / "c"):
        check_writable(folder)
        check_writable(folder)
        assert list(folder.iterdir()) == []


def test_a_folder_belongs_to_one_batch(tmp_path: Path) -> None:
    claim(tmp_path)
    claim(tmp_path)
    assert read_owner(tmp_path) == CATS
    with pytest.raises(InputError, match=r"has the images of batch cats; choose another folder with -o, or --force"):
        claim(tmp_path, Owner("dogs", "2"))
    with pytest.raises(InputError, match="another batch with the name cats"):
        claim(tmp_path, Owner("cats", "2"))
    assert read_owner(tmp_path) == CATS


def test_a_folder_holds_one_webdataset_of_a_batch_and_its_files(tmp_path: Path) -> None:
    claim(tmp_path)
    claim(tmp_path, Owner("cats", "1", "png"), SHARDS)
    claim(tmp_path)
    claim(tmp_path, Owner("cats", "1", "png"), SHARDS)
    with pytest.raises(InputError, match=r"has the batch's png images.* by webp images"):
        claim(tmp_path, Owner("cats", "1", "webp"), SHARDS)
    written(tmp_path, "shard-00000.tar")
    write_results(tmp_path / "__tables__", {"shard": "shard-00000.tar"})
    claim(tmp_path, Owner("cats", "1", "webp"), FetchOptions(layout="webdataset", force=True))
    assert read_owner(tmp_path) == Owner("cats", "1", "webp")
    assert not (tmp_path / "shard-00000.tar").exists()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("results.jsonl", FetchOptions()),
        ("metadata.jsonl", FetchOptions()),
        ("contact-sheet.png", FetchOptions()),
        ("000003.jpg", FetchOptions()),
        ("intermediates/000003.png", FetchOptions()),
        ("a-7-0.5.webp", FetchOptions(name_template="a-{index}-{guidance_scale:.1f}")),
        ("shard-00000.tar", SHARDS),
        ("__tables__/index.parquet", SHARDS),
        ("__intermediates__/shard-00001.tar", SHARDS),
    ],
)
def test_a_file_that_no_fetch_has_written_is_not_overwritten_without_force(
    tmp_path: Path, name: str, options: FetchOptions
) -> None:
    written(tmp_path, name)
    with pytest.raises(InputError, match=rf"{name} is there already, .* or --force to overwrite it"):
        claim(tmp_path, options=options)
    assert not (tmp_path / OWNER_FILE).exists()
    claim(tmp_path, options=FetchOptions(options.layout, options.name_template, force=True))
    assert (tmp_path / name).read_bytes() == b"image"


def test_other_files_of_the_user_do_not_matter(tmp_path: Path) -> None:
    names = ("prompts.txt", "cat.png", "shard-00000.tar", "1.gif", "notes/000001.png", ".hidden")
    for name in names:
        written(tmp_path, name)
    claim(tmp_path)
    assert all((tmp_path / name).is_file() for name in names)


def test_force_removes_the_images_of_the_other_batch_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    claim(out)
    lines = [
        written(out, "000000.png"),
        {**written(out, "000001.png"), "sha256": "0" * 64},
        {**written(out, "a b.webp"), "intermediates": "intermediates/a b.png"},
        {"file": None, "sha256": None},
        {**written(out, "000004.png"), "file": "../out.png"},
        {"shard": "../shard-00000.tar"},
    ]
    for kept in (
        out / "mine.png",
        out / "intermediates" / "mine.png",
        tmp_path / "out.png",
        tmp_path / "shard-00000.tar",
    ):
        written(kept.parent, kept.name)
    written(out, "intermediates/a b.png")
    written(out, "metadata.jsonl")
    written(out, ".fetched-files")
    write_results(out, *lines)
    claim(out, Owner("dogs", "2"), FORCE)
    left = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert left == {OWNER_FILE, "000001.png", "000004.png", "mine.png", "intermediates/mine.png"}
    assert (tmp_path / "out.png").exists()
    assert (tmp_path / "shard-00000.tar").exists()
    assert read_owner(out) == Owner("dogs", "2")


def test_force_removes_the_shards_of_the_other_batch(tmp_path: Path) -> None:
    claim(tmp_path, options=SHARDS)
    for name in ("shard-00000.tar", "__intermediates__/shard-00000.tar", "shard-00009.tar", "__tables__/index.parquet"):
        written(tmp_path, name)
    write_results(tmp_path / "__tables__", {"shard": "shard-00000.tar", "file": "00000000.png"})
    claim(tmp_path, Owner("dogs", "2"), FORCE)
    assert {file.name for file in tmp_path.rglob("*") if file.is_file()} == {OWNER_FILE, "shard-00009.tar"}


def test_a_folder_of_an_earlier_version_belongs_to_the_batch_of_its_results(tmp_path: Path) -> None:
    written(tmp_path, ".fetched-files")
    write_results(tmp_path, {**written(tmp_path, "000000.png"), "job": "cats/0"})
    with pytest.raises(InputError, match="has the images of batch cats"):
        claim(tmp_path, Owner("dogs", "2"))
    claim(tmp_path)
    assert read_owner(tmp_path) == CATS
    assert (tmp_path / "000000.png").exists()


@pytest.mark.parametrize("body", ["", "[]", "{", '{"batch": "a"}', '{"batch": "a", "digest": "b", "c": 1}'])
def test_a_damaged_record_is_an_error_with_its_cure(tmp_path: Path, body: str) -> None:
    (tmp_path / OWNER_FILE).write_text(body)
    with pytest.raises(InputError, match="is damaged; delete it"):
        claim(tmp_path)
