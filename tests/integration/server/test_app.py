"""The frame of all requests."""

from __future__ import annotations

import pytest
from tests.support.http_server import RunningServer

pytestmark = pytest.mark.integration


def test_the_server_is_alive_and_ready(server: RunningServer) -> None:
    assert server.client.get("/livez").text == "ok\n"
    assert server.client.get("/readyz").text == "ok\n"
