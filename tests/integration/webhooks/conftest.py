"""An endpoint with a trusted certificate, and the settings of a worker that may send to it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr
from tests.support.endpoints import SECRET, Endpoint

from latentfarm.settings import Settings


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


@pytest.fixture
def worker(settings: Settings) -> Settings:
    secret = SecretStr("whsec_" + base64.b64encode(SECRET).decode())
    return settings.model_copy(update={"webhook_secret": secret, "webhook_allow_private": True})
