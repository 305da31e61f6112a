"""Measure the cost of submitting a million rows, against a Celery producer loop over the same rows in the same run.

python -m tests.bench.bench_submission            # print the table
python -m tests.bench.bench_submission --write    # also write it into docs/explanation/benchmarks.md
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import uuid
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import redis
from celery import Celery
from tests.bench.servers import Usage, farm_servers, redis_server, run_command, temporary_folder, used_memory_bytes
from tests.bench.table import Conditions, Line, own_cpu_s, parse_arguments, report
from tests.bench.workload import write_jsonl, write_text

from latentfarm.batch_state import BatchState
from latentfarm.doorbell import broker_url
from latentfarm.ledger import Ledger
from latentfarm.settings import Settings

_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Submission:
    """The cost of a submission, and the growth of Redis."""

    used: Usage
    grown_bytes: int
    jobs: int

    @property
    def cpu_us(self) -> float:
        """Return the CPU microseconds a job."""
        return self.used.cpu_s / self.jobs * 1e6


def submit(settings: Settings, folder: Path, jobs: int, *arguments: str) -> Submission:
    """Run ``latentfarm submit`` against an empty Redis.

    Raises:
        RuntimeError: It failed, or the batch has another number of jobs.
    """
    ledger = Ledger.connect(settings.redis_url)
    ledger.redis.flushall()
    before = used_memory_bytes(ledger.redis)
    # the bucket keeps the manifests of earlier rounds
    batch = f"measured-{uuid.uuid4().hex[:8]}"
    used = run_command(["submit", "--batch", batch, *arguments], settings, log=folder / "submit.log")
    grown = used_memory_bytes(ledger.redis) - before
    record = ledger.batch(batch)
    if (record.state, record.total, ledger.count_pending("mini")) != (BatchState.OPEN, jobs, jobs):
        raise RuntimeError(f"{record} after a submission of {jobs} jobs")
    return Submission(used, grown, jobs)


@dataclass(frozen=True)
class CeleryLoop:
    """The cost of Celery's producer loop a job: its CPU seconds, and bytes of Redis."""

    cpu_s: float
    grown_bytes: float


def celery_loop(url: str, file: Path, rows: int) -> CeleryLoop:
    """Send rows with ``apply_async`` from a separate process.

    Raises:
        RuntimeError: Not all messages arrived.
    """
    client = redis.Redis.from_url(url)
    client.flushall()
    before = used_memory_bytes(client)
    with _SPAWN.Pool(1) as pool:
        cpu_s = pool.apply(_send, (url, file, rows))
    if client.llen("celery") != rows:
        raise RuntimeError(f"{client.llen('celery')} of {rows} messages arrived")
    return CeleryLoop(cpu_s / rows, (used_memory_bytes(client) - before) / rows)


def _send(url: str, file: Path, rows: int) -> float:
    app = Celery("bench", broker=broker_url(url), set_as_current=False)
    app.conf.update(task_serializer="json", task_ignore_result=True)
    task = app.task(name="render")(_render)
    with file.open() as lines:
        # the first call connects; Celery's pool keeps the connection for the others
        task.apply_async((json.loads(next(lines)),))
        began = own_cpu_s()
        for line in islice(lines, rows - 1):
            task.apply_async((json.loads(line),))
        return own_cpu_s() - began


def _render(row: dict[str, object]) -> None:
    """Do nothing: no worker runs this task."""


@dataclass(frozen=True)
class Sizes:
    large: int = 1_000_000
    small: int = 100_000
    celery: int = 50_000
    rounds: int = 3


def measure(settings: Settings, celery_url: str, folder: Path, sizes: Sizes) -> list[Line]:
    """Submit in rounds, alternating with Celery; a text file and a sweep are submitted once."""
    large, small = sizes.large, sizes.small
    file, short, text = write_jsonl(folder, large), write_jsonl(folder, small), write_text(folder, large)
    swept = write_jsonl(folder, large // 1_000)
    larges: list[Submission] = []
    smalls: list[Submission] = []
    loops: list[CeleryLoop] = []
    for _ in range(sizes.rounds):
        loops.append(celery_loop(celery_url, file, sizes.celery))
        smalls.append(submit(settings, folder, small, str(short)))
        larges.append(submit(settings, folder, large, str(file)))
        print(loops[-1], smalls[-1], larges[-1], sep="\n", flush=True)
    text_file = submit(settings, folder, large, str(text))
    sweep = submit(settings, folder, large, str(swept), "--sweep", "seed=1..1000")
    # other processes can only raise a round's CPU time: the cheapest rounds are compared
    cheapest = min(larges, key=lambda run: run.used.cpu_s)
    cpu_us, celery_us = cheapest.cpu_us, min(loop.cpu_s for loop in loops) * 1e6
    peak, small_peak = (statistics.median(run.used.peak_bytes for run in runs) for runs in (larges, smalls))
    grown = max(run.grown_bytes for run in larges)
    return [
        Line(f"`apply_async`: CPU a job ({sizes.celery:,} jobs)", celery_us, "µs"),
        Line(f"`latentfarm submit`: CPU a job ({large:,} rows of JSONL)", cpu_us, "µs"),
        Line("`apply_async` against `submit`, CPU a job", celery_us / cpu_us, "times", 25, at_least=True),
        Line("CPU of the whole command", cheapest.used.cpu_s, "s"),
        Line("wall time of the whole command", cheapest.used.wall_s, "s"),
        Line(f"`apply_async`: Redis growth for {large:,} jobs", loops[0].grown_bytes * large / 1e6, "MB"),
        Line(f"`submit`: Redis growth for {large:,} jobs, doorbells included", grown / 1e6, "MB", 2),
        Line(f"peak memory, {small:,} rows", small_peak / 1e6, "MB"),
        Line(f"peak memory, {large:,} rows", peak / 1e6, "MB", 200),
        Line(f"peak memory, {large:,} rows against {small:,}", 100 * abs(peak / small_peak - 1), "% apart", 20),
        Line(f"{large:,} lines of txt: CPU a job", text_file.cpu_us, "µs"),
        Line(f"{large:,} lines of txt: peak memory", text_file.used.peak_bytes / 1e6, "MB"),
        Line(f"{large // 1_000:,} rows x 1,000 seeds: CPU a job", sweep.cpu_us, "µs"),
        Line(f"{large // 1_000:,} rows x 1,000 seeds: peak memory", sweep.used.peak_bytes / 1e6, "MB"),
    ]


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__)
    sizes = Sizes(10_000, 1_000, 1_000, 1) if arguments.quick else Sizes()
    with (
        temporary_folder() as folder,
        farm_servers(folder / "farm") as settings,
        redis_server(folder / "celery-redis") as celery_url,
    ):
        conditions = Conditions(Ledger.connect(settings.redis_url).ping())
        lines = measure(settings, celery_url, folder, sizes)
    return report("submission", lines, conditions, write=arguments.write)


if __name__ == "__main__":
    raise SystemExit(main())
