"""A worker and a producer are killed with kill -9 right before and right after each action; another takes over."""

from __future__ import annotations

import hashlib
import io
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tests.chaos.crash_points import KILLED, PARKING_ACTS, PRODUCER_ACTS, WORKER_ACTS
from tests.chaos.fake_worker import ALIAS, write_model
from tests.chaos.farm_run import CHAOS_PRELOAD
from tests.conftest import until
from tests.support.fork_server import ForkedProcess, ForkServer
from tests.support.leasing import flushes_due

from latentfarm import Farm
from latentfarm.storage.keys import batch_prefix
from latentfarm.storage.manifest import ManifestReader, read_header
from latentfarm.storage.orphans import collect_due
from latentfarm.storage.results import read_part

pytestmark = pytest.mark.integration

MOMENTS = ("before", "after")
#: two parts
ROWS = 1_300
#: a model without workers, so that no job is leased while a producer's remains are counted
UNSERVED = "unserved"


@pytest.fixture(scope="module")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    log = tmp_path_factory.mktemp("fork_server") / "log"
    with ForkServer((*CHAOS_PRELOAD, "tests.chaos.crash_points"), log=log) as made:
        yield made


class Processes:
    """Starts workers and producers on the farm of a test."""

    def __init__(self, fork_server: ForkServer, farm: Farm, folder: Path) -> None:
        source = str(write_model(folder / "model"))
        mine = farm.settings.model_copy(update={"model": ALIAS, "model_source": source, "slots": 2})
        self._env = {**mine.environment(), "LATENTFARM_LEASE_TTL_S": "1", "LATENTFARM_HOUSEKEEPING_INTERVAL_S": "0.2"}
        self._fork_server = fork_server
        self._log = folder / "log"

    def work(self, point: str = "") -> ForkedProcess:
        """Start a worker that kills itself at the point."""
        return self._start("work", {"point": point})

    def submit(self, arguments: list[str], point: str = "") -> ForkedProcess:
        """Start a producer that kills itself at the point."""
        return self._start("submit", {"point": point, "arguments": arguments})

    def _start(self, entry: str, arguments: dict[str, object]) -> ForkedProcess:
        start = self._fork_server.start
        return start(entry, f"tests.chaos.crash_points:{entry}", arguments, env=self._env, log=self._log)


@pytest.fixture
def processes(fork_server: ForkServer, farm: Farm, tmp_path: Path) -> Processes:
    return Processes(fork_server, farm, tmp_path)


@pytest.mark.parametrize("act", WORKER_ACTS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_worker_that_dies_at_any_point_loses_no_job_and_no_job_is_committed_twice(
    farm: Farm, processes: Processes, moment: str, act: str
) -> None:
    point = f"{moment} {act}"
    steps = 20 if act in PARKING_ACTS else 1
    row = {"prompt": "a red circle", "num_inference_steps": steps, "guidance_scale": 1.0}
    batch = farm.submit([row], batch="b", model=ALIAS)
    assert processes.work(point).wait(60) == KILLED
    # the second worker does not have to wait until the claim of the first one ends
    flushes_due(farm.ledger)
    second = processes.work()
    until(lambda: batch.status().complete and not farm.ledger.full_parts())
    second.send(signal.SIGKILL)
    second.wait(60)
    [line] = read_part(farm.bucket, "b", 0)
    # the death of a worker is not the job's fault
    assert (line["state"], line["attempts"]) == ("done", 1)
    collect_due(farm.ledger, farm.bucket, delay_s=0)
    left = [key for key in farm.bucket.keys(batch_prefix("b")) if "/images/" in key or "/drafts/" in key]
    assert left == [line["key"]]
    body = farm.bucket.get(line["key"])
    assert hashlib.sha256(body).hexdigest() == line["sha256"]
    with Image.open(io.BytesIO(body), formats=["PNG"]) as image:
        image.load()
    assert farm.ledger.redis.zcard("{lf}:leases") == farm.ledger.redis.hlen("{lf}:holders") == 0


@pytest.mark.parametrize("act", PRODUCER_ACTS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_producer_that_dies_at_any_point_can_run_again_and_never_leaves_half_a_batch_open(
    farm: Farm, processes: Processes, tmp_path: Path, moment: str, act: str
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"a red circle {n}"}) + "\n" for n in range(ROWS)))
    arguments = [str(file), "--batch", "b", "--model", UNSERVED]
    point = f"{moment} {act}"
    assert processes.submit(arguments, point).wait(60) == KILLED
    if "b" in farm.ledger.batches():
        half = farm.ledger.batch("b")
        assert half.state == ("open" if point == "after last append" else "opening")
        assert half.total == ROWS or half.state == "opening"
        # every job that can be leased by now is in the bucket
        reader = ManifestReader(farm.bucket)
        assert all(reader.entry("b", index)["index"] == index for index in range(half.total))
    assert processes.submit(arguments).wait(60) == 0
    record, header = farm.ledger.batch("b"), read_header(farm.bucket, "b")
    assert header is not None
    assert (record.state, record.total, header.total) == ("open", ROWS, ROWS)
    assert [ManifestReader(farm.bucket).entry("b", index)["index"] for index in (0, 999, ROWS - 1)] == [
        0,
        999,
        ROWS - 1,
    ]
    leased = [lease.index for _ in range(2) for lease in farm.ledger.lease(UNSERVED, "w", 1_000, lease_s=30)]
    assert sorted(leased) == list(range(ROWS))
