"""The OpenAPI document: requests made of it get no 5xx, and answers that match it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS
from tests.support.http_server import RunningServer

from latentfarm.farm import Farm
from latentfarm.server.app import OPERATIONS
from latentfarm.storage.keys import image_key

pytestmark = pytest.mark.integration

#: a stream of events has no end
WITHOUT_END = "/api/events"
#: rows that the schema allows may be invalid all the same, and a pause needs an active batch
NOT_CHECKED = ("positive_data_acceptance",)
EXAMPLES = 6


@pytest.fixture
def cats(farm: Farm) -> None:
    """A batch with a done, a failed and a pending job, and the worker that rendered them."""
    farm.submit(["a cat", "a cow", "a dog"], batch="cats", model="unserved")
    farm.ledger.heartbeat("unserved", "worker-x")
    done, failed = farm.ledger.lease("unserved", "worker-x", 2, lease_s=60)
    content = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(content, "PNG")
    body, key = content.getvalue(), image_key("cats", done.index, done.epoch)
    farm.bucket.put(key, body)
    receipt = {"worker": "worker-x", "key": key, "sha256": hashlib.sha256(body).hexdigest(), "request": {"seed": 1}}
    farm.ledger.commit([(done, receipt)])
    farm.ledger.fail(failed, {"code": "nan", "message": "not a number"})


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        yield opened


@pytest.mark.usefixtures("cats")
def test_no_request_gets_a_5xx_and_every_answer_matches_the_document(
    server: RunningServer, session: requests.Session
) -> None:
    document = server.client.get("/api/openapi.json").json()
    described = {(path, method.upper()) for path, found in document["paths"].items() for method in found}
    own = {(each.path, each.method) for each in OPERATIONS if each.path.startswith("/api/")}
    assert own - described == {("/api/openapi.json", "GET")}

    schema = schemathesis.openapi.from_dict(document)
    found: Iterable[Any] = schema.exclude(path=WITHOUT_END).get_all_operations()
    operations = [each.ok() for each in found]
    # what ends the batch comes last
    for operation in sorted(operations, key=lambda each: (each.method == "delete", "cancel" in each.path)):
        for mode in GenerationMode:
            try_operation(operation, mode, server.url, session)


def try_operation(operation: Any, mode: GenerationMode, url: str, session: requests.Session) -> None:
    @settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            known = {"name": "cats", "worker": "worker-x", "index": case.path_parameters.get("index", 0) % 4}
            for name in case.path_parameters:
                case.path_parameters[name] = known[name]
        answer = case.call(base_url=url, session=session, allow_redirects=False)
        case.validate_response(answer, excluded_checks=[CHECKS.get_one(name) for name in NOT_CHECKED])

    # an operation without parameters has no wrong request
    with suppress(Unsatisfiable) if mode is GenerationMode.NEGATIVE else nullcontext():
        send()
