"""The settings of a worker that may send to the test's endpoint."""

from __future__ import annotations

import base64

import pytest
from pydantic import SecretStr
from tests.support.endpoints import SECRET

from latentfarm.settings import Settings


@pytest.fixture
def worker(settings: Settings) -> Settings:
    secret = SecretStr("whsec_" + base64.b64encode(SECRET).decode())
    return settings.model_copy(update={"webhook_secret": secret, "webhook_allow_private": True})
