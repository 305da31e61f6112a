"""``python -m tests.chaos.outage --seconds 600``: workers render while the store is down."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlparse

from tests.bench.table import cpu_name, write_between
from tests.chaos.fake_worker import ALIAS, write_model
from tests.chaos.farm_run import CHAOS_PRELOAD
from tests.chaos.journal import FRESH, read_journals
from tests.chaos.network import Network
from tests.chaos.redis_host import RedisHost
from tests.chaos.report import PAGE
from tests.chaos.s3_front import S3Front
from tests.chaos.soak import resident_bytes
from tests.chaos.stores import start_store
from tests.support.fork_server import ForkedProcess, ForkServer

from latentfarm.batch import Batch
from latentfarm.farm import Farm
from latentfarm.settings import Settings

WORKERS, SLOTS = 2, 4
#: images that a worker may hold while the store is unavailable: those that wait, and those in its engine
MOST_HELD = 64 + 2 * SLOTS
#: more than both hold
JOBS = 3 * WORKERS * MOST_HELD
#: done before the store goes
_BEFORE = 30
_LIMIT_S = 120.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Outage:
    """Measurements of a run; times are seconds since the store became unavailable, or available again."""

    seconds: float
    refused: int
    done_before: int
    done_during: int
    most_leased: int
    last_lease_s: float
    memory_before: int
    memory_during: int
    first_commit_s: float
    all_done_s: float
    done: int
    failed: int
    charged: int
    most_leases_of_a_job: int
    commits: int
    objects: int


def run(folder: Path, seconds: float) -> Outage:
    """Let workers render, make the store unavailable for ``seconds``, and wait until all jobs are done."""
    with ExitStack() as stack:
        (folder / "journal").mkdir(parents=True)
        host = RedisHost(folder / "redis", replicated=False)
        stack.callback(host.end_all)
        server, settings = start_store("rclone", folder / "s3", log=folder / "s3.log")
        stack.callback(server.wait_or_kill, 0)
        network = stack.enter_context(Network())
        port = urlparse(settings.s3_endpoint_url).port
        assert port is not None
        front = S3Front(network, port, seed=0)
        farm = Farm.open(settings.model_copy(update={"redis_url": host.url}))
        fork_server = stack.enter_context(ForkServer(CHAOS_PRELOAD, log=folder / "fork_server.log"))
        workers = _start_workers(fork_server, farm.settings, front, folder)
        row = {"prompt": "a red circle", "num_inference_steps": 4, "guidance_scale": 1.0}
        batch = farm.submit([row] * JOBS, batch="b", model=ALIAS)
        return _watch(farm, batch, front, workers, folder / "journal", seconds)


def _start_workers(fork_server: ForkServer, settings: Settings, front: S3Front, folder: Path) -> list[ForkedProcess]:
    mine = settings.model_copy(
        update={
            "s3_endpoint_url": f"http://127.0.0.1:{front.port}",
            "model": ALIAS,
            "model_source": str(write_model(folder / "model")),
            "slots": SLOTS,
        }
    )
    entry, journal = "tests.chaos.fake_worker:run", {"journal": str(folder / "journal")}
    names = [f"worker-{number}" for number in range(WORKERS)]
    return [
        fork_server.start(name, entry, journal, env=mine.environment(), log=folder / f"{name}.log") for name in names
    ]


def _watch(
    farm: Farm, batch: Batch, front: S3Front, workers: list[ForkedProcess], journal: Path, seconds: float
) -> Outage:
    _wait(lambda: batch.status().done >= _BEFORE, "the first images")
    memory_before = max(resident_bytes(worker.pid) for worker in workers)
    front.down, down_s = True, time.monotonic()
    most_leased, memory = 0, 0
    while time.monotonic() - down_s < seconds:
        most_leased = max(most_leased, batch.status().leased)
        memory = max(memory, *(resident_bytes(worker.pid) for worker in workers))
        time.sleep(_POLL_S)
    before, during = batch.status().done, read_journals(journal)
    back_s = time.monotonic()
    front.heal()
    _wait(lambda: batch.status().complete and not farm.ledger.full_parts(), "the end")
    all_done_s = time.monotonic() - back_s
    entries = read_journals(journal)
    commits = [entry for entry in entries if entry.what == "commit" and entry.outcome in FRESH]
    leases = Counter(entry.job for entry in entries if entry.what == "lease")
    status = batch.status()
    return Outage(
        seconds=seconds,
        refused=front.counts["down"],
        done_before=sum(1 for entry in commits if entry.at_s < down_s),
        # stored, but not yet committed
        done_during=before - sum(1 for entry in commits if entry.at_s < down_s),
        most_leased=most_leased,
        last_lease_s=max(entry.at_s for entry in during if entry.what == "lease") - down_s,
        memory_before=memory_before,
        memory_during=memory,
        first_commit_s=min(entry.at_s for entry in commits if entry.at_s > back_s) - back_s,
        all_done_s=all_done_s,
        done=status.done,
        failed=status.failed,
        charged=sum(job.attempts - 1 for job in batch.jobs()),
        most_leases_of_a_job=max(leases.values()),
        commits=len(commits),
        objects=sum(1 for key in farm.bucket.keys("batches/b/images/")),
    )


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not come within {_LIMIT_S:g} s")
        time.sleep(_POLL_S)


def main() -> int:
    """Run, and print the table; return 1 where something was lost, failed or made twice."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.outage", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the store is down")
    parser.add_argument("--write", action="store_true", help="write the table into docs/explanation/reliability.md")
    args = parser.parse_args()
    with TemporaryDirectory(prefix="latentfarm-outage-") as folder:
        found = run(Path(folder), args.seconds)
    lines = [
        f"| a store that is down for {found.seconds:g} s | |",
        "| --- | --- |",
        f"| jobs, of them done before | {JOBS}, {found.done_before} |",
        f"| requests that the store did not answer | {found.refused:,} |",
        f"| most jobs leased at once, of {WORKERS * MOST_HELD} that {WORKERS} workers may hold | {found.most_leased} |",
        f"| last lease after the store went | {found.last_lease_s:.1f} s |",
        f"| memory of the larger worker, before and at most meanwhile | {found.memory_before / 1e6:.0f}, "
        f"{found.memory_during / 1e6:.0f} MB |",
        f"| first commit after it came back, all done | {found.first_commit_s:.1f}, {found.all_done_s:.1f} s |",
        f"| done, failed, attempts charged | {found.done}, {found.failed}, {found.charged} |",
        f"| most leases of one job; commits; images in the bucket | {found.most_leases_of_a_job}; {found.commits}; "
        f"{found.objects} |",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {cpu_name()}, cores shared with other work.",
    ]
    print("\n".join(lines), flush=True)
    if args.write:
        write_between("outage", "\n".join(lines), PAGE)
    whole = (found.done, found.failed, found.charged, found.most_leases_of_a_job, found.commits) == (
        JOBS,
        0,
        0,
        1,
        JOBS,
    )
    return int(not whole)


if __name__ == "__main__":
    sys.exit(main())
