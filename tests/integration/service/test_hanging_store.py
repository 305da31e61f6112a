"""A store that hangs, with results due: heartbeats and sweeps go on at their pace."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pytest
from tests.conftest import until
from tests.support.raising_worker import serving
from tests.support.tiny import make_tiny

from latentfarm import Farm
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket

pytestmark = pytest.mark.integration


@contextmanager
def black_hole() -> Iterator[str]:
    """Provide the URL of a store that accepts connections and never answers."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    accepted.append(server.accept()[0])

        Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for connection in accepted:
                connection.close()


@pytest.mark.parametrize(
    ("seconds", "interval_s"), [(4, 0.2), pytest.param(300, 3.0, marks=[pytest.mark.slow, pytest.mark.timeout(500)])]
)
def test_a_store_that_hangs_with_parts_due_stops_neither_heartbeats_nor_sweeps(
    farm: Farm, settings: Settings, tmp_path: Path, seconds: float, interval_s: float
) -> None:
    tiny = str(make_tiny(tmp_path / "tiny"))
    with serving(settings, model_source=tiny, housekeeping_interval_s=interval_s) as subject, black_hole() as url:
        hole = Bucket.connect(settings.model_copy(update={"s3_endpoint_url": url}))
        batch = subject.submit(2)
        subject.worker._bucket.__dict__["client"] = hole.client
        for lease in farm.ledger.lease("mini", "worker-b", 2, lease_s=60):
            farm.ledger.commit([(lease, {"key": "k"})])
        assert farm.ledger.full_parts() == [(batch.name, 0)]
        until(lambda: "bucket.put" in subject.faults.calls, timeout_s=30)
        began = time.monotonic()
        lost = farm.submit([{"prompt": "p"}], batch="lost")
        [lease] = farm.ledger.lease("mini", "worker-b", 1, lease_s=0.001)
        assert lease.batch == lost.name
        until(lambda: lost.status().leased == 0, timeout_s=3 * interval_s + 5)
        while time.monotonic() < began + seconds:
            time.sleep(0.1)
            assert farm.ledger.workers("mini") == ["worker-a"]
        beats = [beat for beat in subject.faults.beats if began <= beat <= began + seconds]
        gaps = [after - before for before, after in pairwise([began, *beats, began + seconds])]
        # the machine may be busy
        assert len(beats) >= 0.6 * seconds / interval_s
        assert max(gaps) < interval_s + 1.5
        # it is still due
        assert farm.ledger.full_parts() == [(batch.name, 0)]
