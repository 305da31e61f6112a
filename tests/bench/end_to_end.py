"""Renderers that take jobs from a queue to an object and a state: latentfarm's workers, and plain Celery workers."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.celery_worker import TASK, make_app
from tests.bench.render_processes import Run
from tests.bench.servers import redis_ms, until, workers
from tests.bench.table import process_cpu_s
from tests.bench.workload import Row, uniform, write_rows

from latentfarm.batch_state import BatchState
from latentfarm.farm import Farm
from latentfarm.job_state import JobState
from latentfarm.local.process import ManagedProcess
from latentfarm.settings import Settings

#: seconds between polls of the ledger; each takes a millisecond of the CPU that the workers need
_POLL_S = 0.25
_TIMEOUT_S = 3600


class LatentfarmWorkers:
    """Workers that serve a model alias of their own, and the real ``latentfarm submit``."""

    def __init__(self, settings: Settings, supervisors: list[int], folder: Path) -> None:
        self.settings = settings
        self.supervisors = supervisors
        self._folder = folder
        self.farm = Farm.open(settings)
        self.last_batch = ""
        #: Redis's time at which the ledger had all jobs of the last batch
        self.began_ms = 0.0

    def run(self, rows: Sequence[Row]) -> Run:
        """Submit the rows and wait. Time runs from the moment at which the ledger has all jobs to the last commit.

        Raises:
            RuntimeError: A job failed.
        """
        file = write_rows(self._folder / f"{uuid.uuid4().hex[:8]}.jsonl", rows)
        batch = self.last_batch = f"run-{file.stem}"
        cpu_s = self._cpu_s()
        command = self.submit(file, batch)
        ledger = self.farm.ledger
        # the times at which commits were seen; all jobs began together, so their order does not matter
        job_s: list[float] = []

        def submitted() -> bool:
            if command.poll():
                raise RuntimeError(f"the submission failed:\n{(self._folder / 'submit.log').read_text()[-2000:]}")
            return batch in ledger.batches() and ledger.batch(batch).state != BatchState.OPENING

        until(submitted, "the batch")
        began_ms = self.began_ms = redis_ms(ledger.redis)
        while True:
            record, now_ms = ledger.batch(batch), redis_ms(ledger.redis)
            job_s += [(now_ms - began_ms) / 1000] * (record.done - len(job_s))
            if record.failed or record.complete:
                break
            time.sleep(_POLL_S)
        command.wait()
        if record.failed:
            raise RuntimeError(f"{batch}: {record.errors}")
        return Run((record.last_ms - began_ms) / 1000, self._cpu_s() - cpu_s, tuple(job_s))

    def warm_up(self) -> None:
        """Render until every worker has: one that is quick may lease all jobs of a small batch.

        Raises:
            RuntimeError: A worker has rendered nothing in twenty batches.
        """
        ready: set[str] = set()
        for _ in range(20):
            self.run(uniform(2 * len(self.supervisors)))
            ready |= {job.worker or "" for job in self.farm.batch(self.last_batch).jobs(state=JobState.DONE)}
            if len(ready) == len(self.supervisors):
                return
        raise RuntimeError(f"only {len(ready)} of {len(self.supervisors)} workers render")

    def run_arriving(self, rows: Sequence[Row], arrive_s: Sequence[float]) -> Run:
        """Submit each row as a batch of its own, at these seconds from now.

        Raises:
            RuntimeError: A job failed.
        """
        ledger, run, cpu_s = self.farm.ledger, uuid.uuid4().hex[:8], self._cpu_s()
        began, began_ms = time.monotonic(), redis_ms(ledger.redis)
        batches = []
        for number, (row, after) in enumerate(zip(rows, arrive_s, strict=True)):
            time.sleep(max(0.0, began + after - time.monotonic()))
            batches.append(self.farm.submit([row], batch=f"run-{run}-{number}", model=self.settings.model))
        for batch in batches:
            batch.wait(timeout_s=_TIMEOUT_S)
        records = [ledger.batch(batch.name) for batch in batches]
        if failed := [record.name for record in records if record.failed]:
            raise RuntimeError(f"{failed[0]} failed")
        ended_s = [(record.last_ms - began_ms) / 1000 for record in records]
        job_s = tuple(ended - after for ended, after in zip(ended_s, arrive_s, strict=True))
        return Run(max(ended_s), self._cpu_s() - cpu_s, job_s)

    def submit(self, file: Path, batch: str) -> subprocess.Popen[bytes]:
        """Start ``latentfarm submit`` as a process of its own."""
        with (self._folder / "submit.log").open("ab") as out:
            options = ["--batch", batch, "--model", self.settings.model]
            return subprocess.Popen(
                [sys.executable, "-m", "latentfarm", "submit", str(file), *options],
                env={**os.environ, **self.settings.environment()},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def save(self, row: Row, file: Path) -> Path:
        """Render one image and copy its object into a file."""
        self.run([row])
        key = self.farm.batch(self.last_batch).job(0).key
        assert key is not None
        file.write_bytes(self.farm.bucket.get(key))
        return file

    def slots(self) -> int:
        """Return the slots of a worker, from its heartbeat."""
        return self.farm.workers(self.settings.model)[0].slots

    def stage_seconds(self) -> dict[str, float]:
        """Return the mean seconds of each stage, from the receipts of the last batch."""
        timings = [job.timings or {} for job in self.farm.batch(self.last_batch).jobs(state=JobState.DONE)]
        return {name: math.fsum(each[name] for each in timings) / len(timings) for name in timings[0]}

    def _cpu_s(self) -> float:
        return sum(process_cpu_s(pid) for pid in self.supervisors)


@contextmanager
def latentfarm_workers(settings: Settings, count: int, folder: Path) -> Iterator[LatentfarmWorkers]:
    """Run ``count`` real workers, which share the cores, under a model alias of their own."""
    own = settings.model_copy(update={"model": f"{settings.model}-{settings.dtype}-by-{count}"})
    folder.mkdir(parents=True, exist_ok=True)
    with workers(own, count, folder / "logs") as supervisors:
        yield LatentfarmWorkers(own, supervisors, folder)


class CeleryWorkers:
    """A plain Celery worker with one pipeline in each of its processes, and a task for each job."""

    def __init__(self, settings: Settings, child: ManagedProcess, *, processes: int) -> None:
        self._child = child
        self._processes = processes
        self._app = make_app(settings.redis_url, processes=processes)
        self._farm = Farm.open(settings)

    def run(self, rows: Sequence[Row]) -> Run:
        """Send the rows and wait. Time runs from before the first message to the last state."""
        began, cpu_s = time.monotonic(), process_cpu_s(self._child.pid)
        sent = [self._app.send_task(TASK, (row,)) for row in rows]
        job_s = []
        for result in sent:
            result.get(timeout=_TIMEOUT_S)
            # in sending order, which is nearly the order of ending with one or two processes
            job_s.append(time.monotonic() - began)
            result.forget()
        return Run(time.monotonic() - began, process_cpu_s(self._child.pid) - cpu_s, tuple(job_s))

    def warm_up(self) -> None:
        """Render until every process has: the first is ready long before the last has loaded its pipeline.

        Raises:
            RuntimeError: A process has rendered nothing in twenty rounds.
        """
        ready: set[int] = set()
        for _ in range(20):
            sent = [self._app.send_task(TASK, (row,)) for row in uniform(2 * self._processes)]
            ready |= {result.get(timeout=_TIMEOUT_S)["process"] for result in sent}
            if len(ready) == self._processes:
                return
        raise RuntimeError(f"only {len(ready)} of {self._processes} processes render")

    def save(self, row: Row, file: Path) -> Path:
        """Render one image and copy its object into a file."""
        key = self._app.send_task(TASK, (row,)).get(timeout=_TIMEOUT_S)["key"]
        file.write_bytes(self._farm.bucket.get(key))
        return file


def peer_environment(settings: Settings, *, processes: int, threads: int, device: str) -> dict[str, str]:
    """Return the environment of ``celery_worker`` and ``diffusers_start``: a worker's, and their own variables."""
    return {
        **settings.environment(),
        "OMP_NUM_THREADS": str(threads),
        "BENCH_PROCESSES": str(processes),
        "BENCH_THREADS": str(threads),
        "BENCH_DEVICE": device,
    }


@contextmanager
def celery_workers(
    settings: Settings, redis_url: str, count: int, folder: Path, *, device: str
) -> Iterator[CeleryWorkers]:
    """Run a plain Celery worker with ``count`` processes, which share the cores, on a Redis of its own."""
    own = settings.model_copy(update={"redis_url": redis_url})
    threads = max(1, (os.cpu_count() or 1) // count)
    child = ManagedProcess(
        "celery",
        [sys.executable, "-m", "tests.bench.celery_worker"],
        log=folder / "celery.log",
        env=peer_environment(own, processes=count, threads=threads, device=device),
    )
    try:
        celery = CeleryWorkers(own, child, processes=count)
        celery.warm_up()
        yield celery
    finally:
        child.terminate()
        child.wait_or_kill(30)
