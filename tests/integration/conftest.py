"""A Redis that refuses commands on demand, one for each module that uses it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.refusing_redis import RefusingRedis, refusing_redis


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RefusingRedis]:
    with refusing_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def refusing(redis_server: RefusingRedis) -> RefusingRedis:
    redis_server.client.flushall()
    return redis_server
