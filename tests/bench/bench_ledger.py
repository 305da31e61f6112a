"""Measure the ledger alone: eight client processes lease and commit, and nothing is rendered.

    python -m tests.bench.bench_ledger            # print the table
    python -m tests.bench.bench_ledger --write    # also write it into docs/explanation/benchmarks.md

Each client leases 64 jobs, commits them with a receipt each, and flushes parts that are full, as a worker does. It has
connected to the store before the measurement begins, as workers run for days.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass
from typing import Any

from tests.bench.servers import farm_servers, redis_cpu_s, redis_server, temporary_folder, used_memory_bytes
from tests.bench.table import Conditions, Line, all_cpu_s, parse_arguments, report

from latentfarm.batch_state import BatchState
from latentfarm.ledger import Lease, Ledger
from latentfarm.ledger.constants import CHUNK_JOBS
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import part_of
from latentfarm.storage.results import flush_due

CLIENTS = 8
JOBS_PER_LEASE = 64
_LEASE_TTL_S = 60
_FORK = multiprocessing.get_context("fork")

_PROVENANCE = {
    "request": {
        "prompt": "a large red circle on the left of a white background, an image number 000000",
        "negative_prompt": "",
        "width": 128,
        "height": 128,
        "num_inference_steps": 25,
        "guidance_scale": 7.5,
        "scheduler": "DPMSolverMultistepScheduler",
        "scheduler_options": {},
    },
    "model": "mini",
    "model_digest": hashlib.sha256(b"model").hexdigest(),
    "plan": hashlib.sha256(b"plan").hexdigest()[:16],
    "device": "cpu",
    "dtype": "float32",
    "micro_batch": 8,
    "prompt_truncated": False,
    "worker": "host-4711-abcdef",
    "timings": {"text": 0.012345, "denoise": 3.456789, "decode": 0.045678, "encode": 0.012345, "upload": 0.004567},
}


def receipt_of(lease: Lease) -> dict[str, Any]:
    """Return a receipt of about 800 bytes of JSON, as a worker writes it. The index determines what varies."""
    # as random as an image's: it does not compress
    digest = hashlib.sha256(b"%d" % lease.index).hexdigest()
    key = f"batches/{lease.batch}/images/{part_of(lease.index):05d}/{lease.index:08d}-{lease.epoch}.png"
    varying = {"key": key, "sha256": digest, "bytes": 20_000 + lease.index % 997}
    return {**_PROVENANCE, **varying}


@dataclass(frozen=True)
class Run:
    """The cost of leasing and committing jobs: wall seconds, and CPU seconds of Redis, the clients, and all with S3."""

    jobs: int
    wall_s: float
    redis_s: float
    clients_s: float
    all_s: float

    @property
    def jobs_per_s(self) -> float:
        return self.jobs / self.wall_s

    @property
    def store_s(self) -> float:
        """Return the CPU seconds of the S3 server: what neither Redis nor the clients used."""
        return self.all_s - self.redis_s - self.clients_s

    @property
    def two_cores_jobs_per_s(self) -> float:
        """Return the rate at which two cores without other work would be busy all the time."""
        return 2 * self.jobs / self.all_s


def open_batch(ledger: Ledger, batch: str, total: int, *, model: str = "") -> None:
    """Open a batch of ``total`` jobs. ``model``: [default: the batch's name, so that only its own clients lease it]."""
    ledger.create_batch(batch, digest="0" * 64, model=model or batch)
    ledger.append_jobs(batch, before=0, total=total, parts_digest="0" * 64, closed=True)


def work(settings: Settings, batch: str, jobs: int, *, to_bucket: bool) -> Run:
    """Run clients that lease and commit ``jobs`` jobs of the batch and flush their receipts."""
    ledger = Ledger.connect(settings.redis_url)
    ready = _FORK.Barrier(CLIENTS + 1)
    shares = [jobs // CLIENTS + (client < jobs % CLIENTS) for client in range(CLIENTS)]
    spent = _FORK.Value("d", 0.0)
    clients = [_FORK.Process(target=_client, args=(settings, batch, n, ready, spent, to_bucket)) for n in shares]
    for client in clients:
        client.start()
    ready.wait()
    began, redis_s, all_s = time.monotonic(), redis_cpu_s(ledger.redis), all_cpu_s()
    for client in clients:
        client.join()
    if any(client.exitcode for client in clients):
        raise RuntimeError("a client failed")
    wall_s = time.monotonic() - began
    return Run(jobs, wall_s, redis_cpu_s(ledger.redis) - redis_s, spent.value, all_cpu_s() - all_s)


def _client(settings: Settings, batch: str, jobs: int, ready: Any, spent: Any, to_bucket: bool) -> None:  # noqa: FBT001
    ledger, bucket = Ledger.connect(settings.redis_url), Bucket.connect(settings)
    ledger.ping()
    bucket.head()
    worker = f"client-{os.getpid()}"
    ready.wait()
    began_s = time.process_time()
    while jobs:
        leases = ledger.lease(batch, worker, min(JOBS_PER_LEASE, jobs), lease_s=_LEASE_TTL_S)
        outcomes = ledger.commit([(lease, receipt_of(lease)) for lease in leases])
        if not leases or set(outcomes) - {"done", "full"}:
            raise RuntimeError(f"{batch}: {len(leases)} leases, {set(outcomes)}")
        full = [lease for lease, outcome in zip(leases, outcomes, strict=True) if outcome == "full"]
        if full and to_bucket:
            flush_due(ledger, bucket)
        for lease in full if not to_bucket else []:
            ledger.drop_flushed(batch, part_of(lease.index), retries=0)
        jobs -= len(leases)
    with spent.get_lock():
        spent.value += time.process_time() - began_s


def throughput(settings: Settings, jobs: int, *, rounds: int) -> list[Line]:
    """Lease and commit whole batches, with the ledger alone and with results in the bucket."""
    ledger = Ledger.connect(settings.redis_url)
    runs: dict[str, list[Run]] = {"bucket": [], "drop": []}
    for number in range(rounds):
        for name, found in runs.items():
            batch = f"whole-{name}-{number}"
            open_batch(ledger, batch, jobs)
            found.append(work(settings, batch, jobs, to_bucket=name == "bucket"))
            record = ledger.batch(batch)
            if record.state != BatchState.COMPLETE or record.done != jobs or ledger.full_parts():
                raise RuntimeError(f"{record} after {jobs} jobs; full parts: {len(ledger.full_parts())}")
            print(name, found[-1], flush=True)
    # other processes can only slow a round down
    bucket, dropped = (max(found, key=lambda run: run.jobs_per_s) for found in runs.values())
    lines = []
    for label, run, bar in (
        (f"{jobs:,} jobs, the ledger alone", dropped, None),
        ("same, results in the bucket", bucket, 10_000),
    ):
        lines += [
            Line(f"{label}: leased and committed", run.jobs_per_s, "jobs/s", bar, at_least=True),
            Line(f"{label}: at which two free cores would be full", run.two_cores_jobs_per_s, "jobs/s"),
            Line(f"{label}: CPU of Redis a job", run.redis_s / jobs * 1e6, "µs"),
            Line(f"{label}: CPU of the {CLIENTS} clients a job", run.clients_s / jobs * 1e6, "µs"),
        ]
    lines.append(Line("same: CPU of the S3 server a job", bucket.store_s / jobs * 1e6, "µs"))
    return lines


def flatness(settings: Settings, *, small: int, large: int, slice_jobs: int, rounds: int) -> list[Line]:
    """Measure the cost of a job in a small batch, and at the beginning, middle and end of a large one, in turn."""
    ledger = Ledger.connect(settings.redis_url)
    open_batch(ledger, "large", large)
    places = {"beginning": 0, "middle": large // 2, "end": large - rounds * slice_jobs}
    runs: dict[str, list[Run]] = {name: [] for name in ("small", *places)}
    for number in range(rounds):
        open_batch(ledger, f"small-{number}", small)
        runs["small"].append(work(settings, f"small-{number}", small, to_bucket=True))
        for name, start in places.items():
            # skip the jobs between: only the cursor moves
            ledger.redis.hset("{lf}:batch:large", "cursor", start + number * slice_jobs)
            runs[name].append(work(settings, "large", slice_jobs, to_bucket=True))
        print({name: found[-1] for name, found in runs.items()}, flush=True)
    # other processes can only lengthen the wall time: the shortest round was disturbed least
    wall = {name: min(run.wall_s / run.jobs for run in found) * 1e6 for name, found in runs.items()}
    redis = {name: statistics.median(run.redis_s / run.jobs for run in found) * 1e6 for name, found in runs.items()}
    cpu = {name: statistics.median(run.all_s / run.jobs for run in found) * 1e6 for name, found in runs.items()}
    lines = []
    for label, costs in (
        ("CPU of Redis", redis),
        ("CPU of everything", cpu),
        ("wall time, shortest of all rounds,", wall),
    ):
        lines.append(Line(f"{label} a job, batch of {small:,}", costs["small"], "µs"))
        lines += [Line(f"{label} a job, {name} of a batch of {large:,}", costs[name], "µs") for name in places]
        apart = max(abs(costs[name] / costs["small"] - 1) for name in places)
        lines.append(Line(f"{label} a job: how far apart the two batches are", 100 * apart, "%", 20))
    return lines


#: writes the states of a chunk job by job, so that the string grows as with leases. ARGV: batch, chunk.
_WRITE_STATES = """
local key = '{lf}:states:' .. ARGV[1] .. ':' .. ARGV[2]
for at = 0, 999999 do redis.call('SETRANGE', key, at, '\\2') end
"""


def huge(url: str, *, total: int, reads: int) -> list[Line]:
    """Measure a huge batch: its memory with a few leases and with all states written, and the time of its status."""
    ledger = Ledger.connect(url)
    memory = used_memory_bytes(ledger.redis)
    open_batch(ledger, "huge", total)
    leases = ledger.lease("huge", "bench", 1_000, lease_s=_LEASE_TTL_S)
    ledger.redis.hset("{lf}:batch:huge", "cursor", total - 1_000)
    leases += ledger.lease("huge", "bench", 1_000, lease_s=_LEASE_TTL_S)
    if [leases[0].index, leases[-1].index, len(leases)] != [0, total - 1, 2_000]:
        raise RuntimeError(f"leased {len(leases)} jobs, {leases[0].index} to {leases[-1].index}")
    ends = used_memory_bytes(ledger.redis) - memory
    for chunk in range(total // CHUNK_JOBS):
        ledger.redis.eval(_WRITE_STATES, 0, "huge", chunk)
    full = used_memory_bytes(ledger.redis)
    times_ms = []
    for _ in range(reads):
        began = time.perf_counter()
        ledger.batch("huge")
        times_ms.append((time.perf_counter() - began) * 1000)
    return [
        Line(f"batch of {total:,}: Redis with 1,000 jobs leased at each end", ends / 1e6, "MB"),
        Line(f"batch of {total:,}: Redis in all, every job's state written", full / 1e6, "MB", 200),
        Line(f"batch of {total:,}: its status, median of {reads}", statistics.median(times_ms), "ms", 5),
        Line(f"batch of {total:,}: its status, p99", statistics.quantiles(times_ms, n=100)[-1], "ms", 5),
    ]


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__)
    quick = arguments.quick
    with temporary_folder() as folder:
        with farm_servers(folder / "farm") as settings:
            conditions = Conditions(Ledger.connect(settings.redis_url).ping())
            lines = throughput(settings, 10_000 if quick else 300_000, rounds=1 if quick else 3)
            sizes = (1_000, 100_000, 1_000, 1) if quick else (100_000, 10_000_000, 100_000, 3)
            lines += flatness(settings, small=sizes[0], large=sizes[1], slice_jobs=sizes[2], rounds=sizes[3])
        with redis_server(folder / "huge") as url:
            lines += huge(url, total=1_000_000 if quick else 100_000_000, reads=200)
    return report("ledger", lines, conditions, write=arguments.write)


if __name__ == "__main__":
    raise SystemExit(main())
