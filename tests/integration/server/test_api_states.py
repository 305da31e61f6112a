"""States of jobs as events: one read for all clients, and only what has changed."""

from __future__ import annotations

import gzip
from base64 import b64decode
from contextlib import ExitStack
from typing import Any

import pytest
from tests.conftest import until
from tests.support.event_stream import following, next_of
from tests.support.http_server import RunningServer

from latentfarm.farm import Farm
from latentfarm.ledger import Ledger
from latentfarm.server.api.state_blocks import BLOCK_JOBS

pytestmark = pytest.mark.integration

JOBS = 3 * BLOCK_JOBS


def create(farm: Farm, batch: str, *, closed: bool = True) -> None:
    farm.ledger.create_batch(batch, digest="d", model="unserved")
    farm.ledger.append_jobs(batch, before=0, total=JOBS, parts_digest="p", closed=closed)


def blocks_of(event: dict[str, Any]) -> list[tuple[int, bytes]]:
    found = [(block["start"], gzip.decompress(b64decode(block["states"]))) for block in event["blocks"]]
    assert [len(states) for _, states in found] == [block["length"] for block in event["blocks"]]
    return found


def test_states_come_once_whole_and_then_by_changed_blocks(server: RunningServer, farm: Farm) -> None:
    create(farm, "cats", closed=False)
    with following(server.client, "batch=cats&states=0") as events:
        assert blocks_of(next_of(events, "states")) == [(0, bytes(JOBS))]
        [lease] = farm.ledger.lease("unserved", "worker-x", 1, lease_s=60)
        assert blocks_of(next_of(events, "states")) == [(0, b"\1" + bytes(BLOCK_JOBS - 1))]
        farm.ledger.commit([(lease, {"key": "k"})])
        assert blocks_of(next_of(events, "states")) == [(0, b"\2" + bytes(BLOCK_JOBS - 1))]
        # the manifest goes on
        farm.ledger.append_jobs("cats", before=JOBS, total=JOBS + 1, parts_digest="q", closed=True)
        event = next_of(events, "states")
        assert (event["start"], event["total"], blocks_of(event)) == (0, JOBS + 1, [(JOBS, b"\0")])
    # a window from the middle of a batch
    with following(server.client, f"batch=cats&states={JOBS - 1}&progress=0") as events:
        event = next_of(events, "states")
        assert (event["start"], event["total"], blocks_of(event)) == (JOBS - 1, JOBS + 1, [(JOBS - 1, bytes(2))])


def test_the_states_are_read_once_for_all_clients_and_not_while_none_changes(
    server: RunningServer, farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(farm, "cows")
    reads: list[str] = []
    versions: list[str] = []
    monkeypatch.setattr(Ledger, "state_bytes", counted(reads, Ledger.state_bytes))
    monkeypatch.setattr(Ledger, "states_version", counted(versions, Ledger.states_version))
    with ExitStack() as stack:
        streams = [stack.enter_context(following(server.client, "batch=cows&states=0")) for _ in range(4)]
        for events in streams:
            next_of(events, "states")
        # a client may come when the snapshot of those before it is no longer fresh, but it has not changed
        assert len(reads) == 1
        seen = len(versions)
        until(lambda: len(versions) > seen + 1)
        assert len(reads) == 1
        farm.ledger.lease("unserved", "worker-x", 1, lease_s=60)
        assert len({str(next_of(events, "states")) for events in streams}) == 1
        assert len(reads) == 2


def counted(calls: list[str], call: Any) -> Any:
    def count(self: Ledger, batch: str, *arguments: object) -> Any:
        calls.append(batch)
        return call(self, batch, *arguments)

    return count


def test_a_batch_that_is_deleted_and_submitted_again_under_an_open_stream(server: RunningServer, farm: Farm) -> None:
    create(farm, "dogs")
    with following(server.client, "batch=dogs&states=0") as events:
        farm.ledger.lease("unserved", "worker-x", 1, lease_s=60)
        next_of(events, "states")
        farm.ledger.mark_deleting("dogs")
        farm.ledger.delete_batch("dogs")
        assert next_of(events, "change")["event"] in {"cancelled", "deleted"}
        farm.ledger.create_batch("dogs", digest="d", model="unserved")
        farm.ledger.append_jobs("dogs", before=0, total=1, parts_digest="p", closed=True)
        event = next_of(events, "states")
        while event["total"] != 1:
            event = next_of(events, "states")
        assert blocks_of(event) in ([(0, b"\0")], [])


def test_states_without_a_batch_are_refused_with_the_cure(server: RunningServer) -> None:
    for query in ("states=0", "batch=none&states=0", "states=-1", "states=9007199254740992"):
        answer = server.client.get(f"/api/events?{query}")
        assert answer.status_code == (404 if "none" in query else 400)
    error = server.client.get("/api/events?states=0").json()["error"]
    assert (error["param"], error["message"]) == ("states", "states needs a batch; write its name as batch")
