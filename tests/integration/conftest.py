"""A Redis that refuses commands on demand, and an https endpoint with a trusted certificate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from tests.support.endpoints import Endpoint
from tests.support.refusing_redis import RefusingRedis, refusing_redis


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RefusingRedis]:
    with refusing_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def refusing(redis_server: RefusingRedis) -> RefusingRedis:
    redis_server.client.flushall()
    return redis_server


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(ca: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


@pytest.fixture
def endpoint(ca: trustme.CA, trusted: None) -> Iterator[Endpoint]:  # noqa: ARG001
    endpoint = Endpoint(ca, "localhost", "127.0.0.1")
    yield endpoint
    endpoint.close()
