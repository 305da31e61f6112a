"""The frame of all requests: errors in the shape of each protocol, request ids, the access log and the metrics."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from tests.integration.server.conftest import Serving
from tests.support.http_server import RunningServer
from tests.support.scraping import Samples, samples_in

from latentfarm.errors import InputError, SchemaError
from latentfarm.server import probes
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.http.request_error import RequestError

pytestmark = pytest.mark.integration

SECRET = "a prompt of another user"


async def fail(request: Request) -> Response:
    match request.path_params["how"]:
        case "full":
            raise RequestError(429, "farm_full", "the farm is full", param="n", retry_after_s=7)
        case "input":
            raise InputError("width 1030 is not a multiple of 8; write 1024")
        case "schema":
            raise SchemaError("redis://internal:6379", theirs="9", ours="10")
        case "answer":
            return StreamingResponse(broken(), headers={"Content-Length": "100"})
        case _:
            raise KeyError(SECRET)


def broken() -> Iterator[bytes]:
    yield b"half of"
    raise KeyError(SECRET)


@pytest.fixture
def failing(serving: Serving) -> RunningServer:
    paths = ("/v1/fail/{how}", "/sdapi/v1/fail/{how}", "/api/fail/{how}")
    operations = tuple(Operation("POST", path, fail, Scope.NONE, "Fail") for path in paths)
    return serving(operations=(*probes.OPERATIONS, *operations))


def metrics_of(server: RunningServer) -> Samples:
    return samples_in(server.client.get("/metrics").text)


def test_the_server_is_alive_and_ready(server: RunningServer) -> None:
    assert server.client.get("/livez").text == "ok\n"
    assert server.client.get("/readyz").text == "ok\n"
    assert server.client.head("/livez").content == b""


def test_an_error_has_the_shape_of_its_protocol(failing: RunningServer) -> None:
    openai = failing.client.post("/v1/fail/full")
    error = {"message": "the farm is full", "type": "rate_limit_error", "param": "n", "code": "farm_full"}
    assert (openai.status_code, openai.json()) == (429, {"error": error})
    assert (openai.headers["retry-after"], openai.headers["x-should-retry"]) == ("7", "true")
    a1111 = failing.client.post("/sdapi/v1/fail/full")
    shape = {"error": "farm_full", "detail": "the farm is full", "body": "", "errors": "the farm is full"}
    assert (a1111.status_code, a1111.json(), a1111.headers["retry-after"]) == (429, shape, "7")
    own = failing.client.post("/api/fail/full")
    assert own.json() == {"error": {"code": "farm_full", "message": "the farm is full", "param": "n"}}

    wrong = failing.client.post("/v1/fail/input")
    assert (wrong.status_code, wrong.headers["x-should-retry"]) == (400, "false")
    assert wrong.json()["error"]["message"] == "width 1030 is not a multiple of 8; write 1024"
    schema = failing.client.post("/api/fail/schema")
    assert (schema.status_code, "internal" in schema.text) == (503, False)
    assert failing.client.get("/v1/nothing").json()["error"]["code"] == "not_found"
    method = failing.client.get("/v1/fail/full")
    assert (method.status_code, method.headers["allow"]) == (405, "POST")
    header = failing.client.get("/livez", headers={"X-Long": "x" * 33_000})
    assert (header.status_code, header.json()["error"]["code"]) == (431, "header_too_large")


def test_a_fault_of_the_server_is_logged_and_its_answer_names_the_request_only(
    failing: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    answer = failing.client.post("/api/fail/other")
    request_id = answer.headers["x-request-id"]
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == f"the server failed; its log has the reason under request {request_id}"
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert request_id in record.getMessage()
    assert record.exc_info is not None
    # an answer that has begun is cut off, so that a client does not take it for whole
    with pytest.raises(httpx2.RemoteProtocolError):
        failing.client.post("/api/fail/answer")


def test_requests_are_logged_and_counted_by_operation_and_without_what_clients_put_into_them(
    failing: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="latentfarm.server.access")
    failing.client.post(f"/api/fail/full?prompt={SECRET}", content=SECRET)
    failing.client.get(f"/{SECRET}")
    failing.client.request("INVENTED", "/api/fail/full%0ainjected")
    failing.client.get("/livez")
    lines = [record.getMessage() for record in caplog.records if record.name == "latentfarm.server.access"]
    assert [line.partition(",")[0] for line in lines] == [
        "POST /api/fail/full 429",
        "GET unknown 404",
        "other /api/fail/full%0ainjected 405",
    ]
    samples = metrics_of(failing)
    name = "latentfarm_server_requests_total"
    assert samples[name, "POST", "/api/fail/{how}", "429"] == 1
    assert samples[name, "GET", "unknown", "404"] == 1
    assert samples[name, "other", "/api/fail/{how}", "405"] == 1
    assert samples["latentfarm_server_request_duration_seconds_count", "POST", "/api/fail/{how}"] == 1
    # the request for them
    assert samples["latentfarm_server_requests_running",] == 1
    assert samples["latentfarm_server_streams",] == 0
