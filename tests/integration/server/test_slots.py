"""The slots of watched workers, from the engine to a client of the server."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from PIL import Image
from tests.conftest import until
from tests.integration.server.conftest import Serving
from tests.support.http_server import WORKER, RunningServer, RunningWorker

from latentfarm.farm import Farm
from latentfarm.ledger import Slot, SlotsReport
from latentfarm.server.live import watched_workers
from latentfarm_worker.service import slot_reporter

pytestmark = pytest.mark.integration

WATCHED, SLOTS = f"{{lf}}:watched:{WORKER}", f"{{lf}}:slots:{WORKER}"
LONG = {"num_inference_steps": 500, "width": 64, "height": 64, "scheduler": "euler"}


@contextmanager
def slots_of(server: RunningServer, *workers: str) -> Iterator[Iterator[dict[str, Any]]]:
    """Watch workers; provide the data of their events."""
    query = "&".join(["progress=0", *(f"worker={worker}" for worker in workers)])
    with server.client.stream("GET", f"/api/events?{query}") as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        yield (json.loads(next(lines).removeprefix("data: ")) for line in lines if line == "event: slots")


def opened(preview: str) -> Image.Image:
    """Return the image of a preview."""
    kind, _, content = preview.partition(",")
    assert kind == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
    assert image.format == "JPEG"
    return image


def recorded(calls: list[str], name: str, function: Callable[[], object]) -> Callable[[], object]:
    """Return the function, whose calls are recorded."""

    def call() -> object:
        calls.append(name)
        return function()

    return call


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_reporter, "_INTERVAL_S", 0.1)
    monkeypatch.setattr(slot_reporter, "WATCHED_S", 1.0)
    monkeypatch.setattr(watched_workers, "WATCH_REPEAT_S", 0.3)


def test_slots_are_reported_while_a_client_watches_and_neither_before_nor_after(
    server: RunningServer, rendering: RunningWorker, farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = rendering.worker.render_loop._slots
    engine = rendering.worker.render_loop._engine
    calls: list[str] = []
    for owner, name in ((reporter, "report"), (engine, "view_slots"), (engine.slot_viewer, "take")):
        monkeypatch.setattr(owner, name, recorded(calls, name, getattr(owner, name)))
    short = {**LONG, "num_inference_steps": 2}
    with farm.ledger.slot_reports([WORKER]) as reports:
        assert reports.wait(0) is None
        first = farm.submit([{"prompt": "a", **short}] * 6, batch="first")
        until(lambda: first.status().complete)
        assert (reports.wait(0.2), calls, reporter.watched) == (None, [], False)

    batch = farm.submit([{"prompt": "a", **LONG}] * 12, batch="cats")
    with slots_of(server, WORKER, "unknown") as events:
        found: list[list[dict[str, Any]]] = []
        while len(found) < 3:
            event = next(events)
            assert event["worker"] == WORKER
            if len(event["slots"]) == 2:
                found.append(event["slots"])
        assert [[slot["job"] for slot in slots] for slots in found] == [["cats/0", "cats/1"]] * 3
        for at in (0, 1):
            steps = [slots[at]["step"] for slots in found]
            assert steps == sorted({*steps})
            assert 0 < steps[0] < steps[-1] <= 500
            assert {slots[at]["steps"] for slots in found} == {500}
            previews = [slots[at]["preview"] for slots in found]
            assert {opened(preview).size for preview in previews} == {(8, 8)}
            assert len({*previews}) > 1
    # the client has hung up
    until(lambda: not reporter.watched, timeout_s=20)
    assert farm.ledger.redis.pubsub_numsub(SLOTS)[0][1] == 0
    calls.clear()
    done = farm.ledger.batch("cats").done
    until(lambda: farm.ledger.batch("cats").done > done, timeout_s=60)
    assert calls == []
    batch.cancel()


def test_an_idle_worker_reports_that_it_has_no_image(server: RunningServer, rendering: RunningWorker) -> None:
    assert not rendering.worker.render_loop._engine.busy
    with slots_of(server, WORKER) as events:
        assert next(events) == {"worker": WORKER, "slots": []}
        # with each signal
        assert next(events) == {"worker": WORKER, "slots": []}


def test_a_client_gets_the_slots_of_its_workers_only(server: RunningServer, farm: Farm) -> None:
    def published(worker: str, step: int) -> None:
        # it has no place for anything but a JPEG
        farm.ledger.publish_slots(SlotsReport(worker, (Slot("cats/1", step, 9, "text/html"),)))

    channels = ("{lf}:slots:w1", "{lf}:slots:w2")
    with slots_of(server, "w1") as one, slots_of(server, "w1", "w2") as two:
        until(lambda: [count for _, count in farm.ledger.redis.pubsub_numsub(*channels)] == [1, 1])
        farm.ledger.redis.publish("{lf}:slots:w1", b'[{"job": 1}]')
        for step, worker in enumerate(("w3", "w2", "w3", "w1")):
            published(worker, step)
        slot = {"job": "cats/1", "steps": 9, "preview": "data:image/jpeg;base64,text/html"}
        assert next(one) == {"worker": "w1", "slots": [{**slot, "step": 3}]}
        assert next(two) == {"worker": "w2", "slots": [{**slot, "step": 1}]}


def test_one_server_signals_a_worker_once_however_many_clients_watch_it(
    server: RunningServer, farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_workers, "WATCH_REPEAT_S", 60.0)
    with farm.ledger.signals(worker="w1") as signals:
        assert signals.wait(0) is None
        with slots_of(server, "w1"), slots_of(server, "w1"), slots_of(server, "w1"):
            assert signals.wait(10) is not None
            until(lambda: server.app.state.context.hub.watched_workers._clients["w1"] == 3)
            assert signals.wait(0.6) is None
        until(lambda: not server.app.state.context.hub.watched_workers.names())


def test_slots_come_again_after_an_outage_of_redis(serving: Serving, farm: Farm) -> None:
    server = serving()
    with slots_of(server, "w1") as events:
        until(lambda: farm.ledger.redis.pubsub_numsub("{lf}:slots:w1")[0][1] == 1)
        for connection in farm.ledger.redis.client_list("pubsub"):
            farm.ledger.redis.client_kill(connection["addr"])
        until(lambda: farm.ledger.redis.pubsub_numsub("{lf}:slots:w1")[0][1] == 1)
        farm.ledger.publish_slots(SlotsReport("w1", ()))
        assert next(events) == {"worker": "w1", "slots": []}


@pytest.mark.parametrize("query", ["worker=", "worker=" + "x" * 201, "&".join(f"worker=w{n}" for n in range(17))])
def test_a_query_of_too_many_or_impossible_workers_is_refused(server: RunningServer, query: str) -> None:
    answer = server.client.get(f"/api/events?{query}")
    assert (answer.status_code, answer.json()["error"]["param"].partition(".")[0]) == (400, "worker")
