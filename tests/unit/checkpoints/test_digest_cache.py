"""The digests of a model's weights are computed once, and again if a file has changed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from tests.support.tiny import make_tiny

from latentfarm_worker.checkpoints.digest_cache import FILE, DigestCache
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.unit


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rewrite_in_place(path: Path) -> None:
    """Replace the content by as many bytes, and keep the time: the one change that cannot be seen."""
    stat = path.stat()
    path.write_bytes(b"W" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_known_file_is_not_read_again_even_by_another_process(weights: Path, tmp_path: Path) -> None:
    before = DigestCache(tmp_path / "cache").sha256(weights)
    assert before == digest_of(weights)
    rewrite_in_place(weights)
    assert DigestCache(tmp_path / "cache").sha256(weights) == before != digest_of(weights)


def test_a_file_of_another_time_or_size_is_hashed_again(weights: Path, tmp_path: Path) -> None:
    cache = DigestCache(tmp_path / "cache")
    cache.sha256(weights)
    stat = weights.stat()
    weights.write_bytes(b"WEIGHTS")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert cache.sha256(weights) == digest_of(weights)
    weights.write_bytes(b"more weights")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert cache.sha256(weights) == digest_of(weights)


def test_a_link_to_another_file_is_hashed_again(weights: Path, tmp_path: Path) -> None:
    cache, link, other = DigestCache(tmp_path / "cache"), tmp_path / "link", tmp_path / "other"
    other.write_bytes(b"WEIGHTS")
    os.utime(other, ns=(0, weights.stat().st_mtime_ns))
    link.symlink_to(weights)
    assert cache.sha256(link) == digest_of(weights)
    link.unlink()
    link.symlink_to(other)
    assert cache.sha256(link) == digest_of(other)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b"\xff"])
def test_a_corrupt_cache_is_ignored_and_replaced(weights: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "cache" / FILE
    file.parent.mkdir()
    file.write_bytes(content)
    assert DigestCache(file.parent).sha256(weights) == digest_of(weights)
    assert json.loads(file.read_bytes())[str(weights)][2] == digest_of(weights)


def test_a_folder_that_cannot_be_written_costs_only_time(weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert DigestCache(file).sha256(weights) == DigestCache().sha256(weights) == digest_of(weights)


def test_files_that_are_gone_are_dropped_from_the_cache(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    cache = DigestCache(tmp_path / "cache")
    cache.sha256(other)
    other.unlink()
    cache.sha256(weights)
    assert json.loads((tmp_path / "cache" / FILE).read_bytes()).keys() == {str(weights)}


def test_a_model_has_the_same_digest_with_and_without_a_cache(tmp_path: Path) -> None:
    folder, cache = make_tiny(tmp_path / "tiny"), tmp_path / "cache"
    digests = [
        load_family(folder, dtype=torch.float32, device=torch.device("cpu"), cache=each).model_digest
        for each in (None, cache, cache)
    ]
    assert len({*digests}) == 1
    assert len(json.loads((cache / FILE).read_bytes())) == 3
