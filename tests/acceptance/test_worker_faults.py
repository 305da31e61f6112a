"""Real workers whose model blocks, hangs or loses its device, with real signals."""

from __future__ import annotations

import io
import signal
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from PIL import Image
from tests.conftest import until
from tests.support.faulty_workers import SMALL, faulty
from tests.support.processes import alive, process_of

from latentfarm import Batch, Farm
from latentfarm.settings import Settings

pytestmark = pytest.mark.acceptance

LONG = {**SMALL, "num_inference_steps": 500}


def holders(farm: Farm, batch: Batch) -> dict[int, str]:
    """Return which worker holds each leased job."""
    client: Any = farm.ledger.redis
    found = {key.decode(): value.decode() for key, value in client.hgetall("{lf}:holders").items()}
    return {
        int(name.rpartition("/")[2]): value.partition(" ")[2]
        for name, value in found.items()
        if name.startswith(f"{batch.name}/")
    }


def test_a_stopped_worker_parks_its_images_which_go_on_elsewhere_within_seconds_to_the_same_bytes(
    settings: Settings, tmp_path: Path
) -> None:
    farm = Farm.open(settings)
    limits = {"LATENTFARM_SLOTS": "2", "LATENTFARM_SHUTDOWN_TIMEOUT_S": "18"}
    # with `crawl` in its batch a worker takes a second for each step
    fields = {**SMALL, "num_inference_steps": 8, "scheduler": "dpm++2m", "seed": 7}
    rows = [{**fields, "prompt": prompt} for prompt in ("crawl", "on")]
    with (
        faulty(settings, tmp_path / "first", limits, "--shutdown-timeout-s", "18") as first,
        faulty(settings, tmp_path / "second", limits, "--shutdown-timeout-s", "18") as second,
    ):
        assert first.name != second.name
        batch = farm.submit(rows, batch="b")
        until(lambda: len(holders(farm, batch)) == 2)
        workers = {first.name: first, second.name: second}
        held = holders(farm, batch)
        assert held[0] == held[1], "one doorbell was rung"
        leaving = workers.pop(held[0])
        [staying] = workers
        until(lambda: leaving.met("crawl") == 1)
        time.sleep(2)  # so that it has made a step
        began = time.monotonic()
        leaving.process.terminate()
        until(lambda: holders(farm, batch).get(0) not in {None, leaving.name}, timeout_s=20)
        elsewhere_s = time.monotonic() - began
        assert leaving.process.wait(30) == 0, leaving.log
        ended_s = time.monotonic() - began
        # the step that runs takes one of them
        assert elsewhere_s < 3, leaving.log
        assert ended_s < 18.5, leaving.log
        assert batch.wait(timeout_s=60).done == 2
        lines = list(batch.results())
        again = farm.submit(rows[1:], batch="again")
        assert again.wait(timeout_s=60).done == 1
        print(f"put down and leased elsewhere after {elsewhere_s:.2f} s, ended after {ended_s:.2f} s")
    for line in lines:
        spans = [(span["start"], span["stop"]) for span in line["spans"]]
        assert len(spans) == 2, leaving.log
        assert (spans[0][0], spans[0][1], spans[1][1]) == (0, spans[1][0], 8), "no step is made twice"
        assert (line["worker"], line["attempts"]) == (staying, 1)
    [whole] = again.results()
    assert "spans" not in whole
    images = [Image.open(io.BytesIO(farm.bucket.get(line["key"]))) for line in (lines[1], whole)]
    assert images[0].tobytes() == images[1].tobytes()


@pytest.mark.slow
def test_an_engine_that_hangs_with_the_interpreters_lock_is_killed_and_the_worker_restarts(
    settings: Settings, tmp_path: Path
) -> None:
    farm = Farm.open(settings)
    stuck = farm.submit([{**SMALL, "prompt": "hold_the_lock"}], batch="stuck")
    with faulty(
        settings,
        tmp_path / "w",
        {"LATENTFARM_LEASE_TTL_S": "60"},
        "--stall-timeout-s",
        "2",
        "--shutdown-timeout-s",
        "5",
    ) as worker:
        until(lambda: worker.met("hold_the_lock") == 1)
        name, process = worker.name, process_of(worker.name)
        batch = farm.submit([{**SMALL, "prompt": "well"}], batch="b")
        assert batch.wait(timeout_s=60).done == 1
        [line] = batch.results()
        assert line["worker"] == name, "one name for the worker's whole life"
        assert not alive(process)
        assert "the engine has made no step for 2 s" in worker.log
        assert "in hold_the_lock" in worker.log
        assert "while rendering stuck/0 alone" in worker.log
    assert stuck.status().done == 0


def test_without_a_supervisor_a_hanging_engine_ends_its_process(settings: Settings, tmp_path: Path) -> None:
    farm = Farm.open(settings)
    batch = farm.submit([{**SMALL, "prompt": "block"}], batch="b")
    limits = {"LATENTFARM_STALL_TIMEOUT_S": "2", "LATENTFARM_LEASE_TTL_S": "60"}
    with faulty(settings, tmp_path / "w", limits, supervised=False) as worker:
        assert worker.process.wait(150) == 75, worker.log
        assert "in block" in worker.log
    # lost when its lease expires, as for any killed worker: the job may be the cause
    assert batch.status().leased == 1


def test_a_lost_device_releases_its_jobs_uncharged_and_ends_the_process(settings: Settings, tmp_path: Path) -> None:
    farm = Farm.open(settings)
    batch = farm.submit([{**SMALL, "prompt": "stick"}, {**LONG, "prompt": "beside it"}], batch="b")
    with faulty(settings, tmp_path / "w", {}, supervised=False) as worker:
        assert worker.process.wait(150) == 75, worker.log
        assert "the device is lost to this process: CUDA error: an illegal memory access" in worker.log
    status = batch.status()
    assert (status.pending, status.leased, [job.attempts for job in batch.jobs()]) == (2, 0, [0, 0])


def test_a_worker_that_ends_unasked_exits_with_3_and_names_the_cause(settings: Settings, tmp_path: Path) -> None:
    with faulty(
        settings, tmp_path / "w", {"BROKEN_CONSUMER": "1", "LATENTFARM_SLOTS": "1"}, supervised=False
    ) as worker:
        assert worker.process.wait(150) == 3, worker.log
        assert (
            "the worker ended, though nothing requested it: RuntimeError('a broken part of the consumer')" in worker.log
        )


class Metadata(BaseHTTPRequestHandler):
    """AWS's instance metadata service, as its manual describes it."""

    notice = Event()

    def do_PUT(self) -> None:
        life = self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(200 if self.path == "/latest/api/token" and life else 400, "secret-token")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "secret-token":
            self._answer(401, "")
        elif self.path == "/latest/meta-data/spot/instance-action" and self.notice.is_set():
            self._answer(200, '{"action": "terminate", "time": "2026-11-23T18:02:00Z"}')
        else:
            self._answer(404, "")

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_worker_with_a_blocked_engine_ends_by_the_deadline_and_at_once_after_a_second_request(
    settings: Settings, tmp_path: Path, metadata: str
) -> None:
    farm = Farm.open(settings)
    spot = {"LATENTFARM_SPOT_PROVIDER": "aws", "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata}
    limits = {"LATENTFARM_SHUTDOWN_TIMEOUT_S": "3", "LATENTFARM_SLOTS": "1"}
    with (
        faulty(settings, tmp_path / "noticed", {**limits, **spot}, "--shutdown-timeout-s", "3") as noticed,
        faulty(settings, tmp_path / "stopped", limits, supervised=False) as stopped,
    ):
        until(lambda: len(farm.ledger.workers("mini")) == 2)
        batch = farm.submit([{**SMALL, "prompt": "block"}] * 2, batch="b")
        until(lambda: noticed.met("block") == stopped.met("block") == 1)
        began = time.monotonic()
        stopped.process.terminate()
        until(lambda: "leasing nothing more" in stopped.log)
        stopped.process.send_signal(signal.SIGINT)
        assert stopped.process.wait(20) == 0, stopped.log
        assert time.monotonic() - began < 2, stopped.log
        # the other worker has a blocked engine: the job waits
        assert batch.status().pending == 1

        Metadata.notice.set()
        until(lambda: "this instance will be interrupted: terminate at 2026-11-23T18:02:00Z" in noticed.log)
        began = time.monotonic()
        assert noticed.process.wait(20) == 0, noticed.log
        assert time.monotonic() - began < 3.5, noticed.log
    assert batch.status().pending == 2
    assert [job.attempts for job in batch.jobs()] == [0, 0]
