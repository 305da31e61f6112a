"""Sides that take jobs from a queue to an object and a state: latentfarm's real workers, and plain Celery ones."""

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

from tests.bench.in_process import Run
from tests.bench.servers import redis_ms, until, workers
from tests.bench.stock_worker import TASK, make_app
from tests.bench.table import process_cpu_s
from tests.bench.workload import Row, uniform, write_rows

from latentfarm.farm import Farm
from latentfarm.job_state import JobState
from latentfarm.local.process import ManagedProcess
from latentfarm.settings import Settings

#: seconds between two looks at the ledger, which take CPU that the workers want
_LOOK_S = 0.05
_LONGEST_S = 3600


class Ours:
    """latentfarm: workers of an alias of their own, and the real ``latentfarm submit``."""

    def __init__(self, settings: Settings, supervisors: list[int], folder: Path) -> None:
        self.settings = settings
        self.supervisors = supervisors
        self._folder = folder
        self.farm = Farm.open(settings)
        self.last_batch = ""

    def run(self, rows: Sequence[Row]) -> Run:
        """Submit the rows; from the moment at which the ledger has them all to the last commit.

        Raises:
            RuntimeError: a job failed.
        """
        file = write_rows(self._folder / f"{uuid.uuid4().hex[:8]}.jsonl", rows)
        batch = self.last_batch = f"run-{file.stem}"
        cpu_s = self._cpu_s()
        command = self.submit(file, batch)
        ledger = self.farm.ledger
        # of every job the time at which it was found committed; all began together, so which is which matters not
        ready: list[float] = []

        def stored() -> bool:
            if command.poll():
                raise RuntimeError(f"the submission failed:\n{(self._folder / 'submit.log').read_text()[-2000:]}")
            return batch in ledger.batches() and ledger.batch(batch).state != "opening"

        until(stored, "the batch")
        began_ms = redis_ms(ledger.redis)
        while True:
            record, now_ms = ledger.batch(batch), redis_ms(ledger.redis)
            ready += [(now_ms - began_ms) / 1000] * (record.done - len(ready))
            if record.failed or record.complete:
                break
            time.sleep(_LOOK_S)
        command.wait()
        if record.failed:
            raise RuntimeError(f"{batch}: {record.errors}")
        return Run((record.last_ms - began_ms) / 1000, self._cpu_s() - cpu_s, tuple(ready))

    def run_arriving(self, rows: Sequence[Row], arrive_s: Sequence[float]) -> Run:
        """Submit each row as a batch of its own after its seconds; a job's time is from then to its commit.

        Raises:
            RuntimeError: a job failed.
        """
        ledger, run, cpu_s = self.farm.ledger, uuid.uuid4().hex[:8], self._cpu_s()
        began, began_ms = time.monotonic(), redis_ms(ledger.redis)
        batches = []
        for number, (row, after) in enumerate(zip(rows, arrive_s, strict=True)):
            time.sleep(max(0.0, began + after - time.monotonic()))
            batches.append(self.farm.submit([row], batch=f"run-{run}-{number}", model=self.settings.model))
        for batch in batches:
            batch.wait(timeout_s=_LONGEST_S)
        records = [ledger.batch(batch.name) for batch in batches]
        if failed := [record.name for record in records if record.failed]:
            raise RuntimeError(f"{failed[0]} failed")
        ended_s = [(record.last_ms - began_ms) / 1000 for record in records]
        ready = tuple(ended - after for ended, after in zip(ended_s, arrive_s, strict=True))
        return Run(max(ended_s), self._cpu_s() - cpu_s, ready)

    def submit(self, file: Path, batch: str) -> subprocess.Popen[bytes]:
        """Run ``latentfarm submit`` in a process of its own."""
        with (self._folder / "submit.log").open("ab") as out:
            options = ["--batch", batch, "--model", self.settings.model]
            return subprocess.Popen(
                [sys.executable, "-m", "latentfarm", "submit", str(file), *options],
                env={**os.environ, **self.settings.environment()},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def save(self, row: Row, file: Path) -> Path:
        """Have one picture rendered and copy its object into a file."""
        self.run([row])
        key = self.farm.batch(self.last_batch).job(0).key
        assert key is not None
        file.write_bytes(self.farm.bucket.get(key))
        return file

    def slots(self) -> int:
        """Return the slots of the worker that made the last batch's first picture, by its receipt."""
        [line] = [line for line in self.farm.batch(self.last_batch).results() if line["index"] == 0]
        return int(line["slots"])

    def stage_seconds(self) -> dict[str, float]:
        """Return the mean seconds of each stage, as the receipts of the last batch tell them."""
        told = [job.timings or {} for job in self.farm.batch(self.last_batch).jobs(state=JobState.DONE)]
        return {name: math.fsum(each[name] for each in told) / len(told) for name in told[0]}

    def _cpu_s(self) -> float:
        return sum(process_cpu_s(pid) for pid in self.supervisors)


@contextmanager
def our_workers(settings: Settings, count: int, folder: Path) -> Iterator[Ours]:
    """Run ``count`` real workers, which share the cores, under an alias of their own."""
    named = settings.model_copy(update={"model": f"{settings.model}-by-{count}"})
    folder.mkdir(parents=True, exist_ok=True)
    with workers(named, count, folder / "logs") as supervisors:
        yield Ours(named, supervisors, folder)


class Stock:
    """Plain Celery: a worker with one pipe in each of its processes, a task for each job."""

    def __init__(self, settings: Settings, child: ManagedProcess, *, processes: int) -> None:
        self._child = child
        self._processes = processes
        self._app = make_app(settings.redis_url, processes=processes)
        self._farm = Farm.open(settings)

    def run(self, rows: Sequence[Row]) -> Run:
        """Send the rows; from before the first message to the last state."""
        began, cpu_s = time.monotonic(), process_cpu_s(self._child.pid)
        sent = [self._app.send_task(TASK, (row,)) for row in rows]
        ready = []
        for result in sent:
            result.get(timeout=_LONGEST_S)
            # in the order of sending, which with one or two processes is that of ending
            ready.append(time.monotonic() - began)
            result.forget()
        return Run(time.monotonic() - began, process_cpu_s(self._child.pid) - cpu_s, tuple(ready))

    def warm_up(self) -> None:
        """Have every process draw: the first is ready long before the last has loaded its pipe.

        Raises:
            RuntimeError: one has not drawn within twenty rounds.
        """
        seen: set[int] = set()
        for _ in range(20):
            sent = [self._app.send_task(TASK, (row,)) for row in uniform(2 * self._processes)]
            seen |= {result.get(timeout=_LONGEST_S)["process"] for result in sent}
            if len(seen) == self._processes:
                return
        raise RuntimeError(f"only {len(seen)} of {self._processes} processes draw")

    def save(self, row: Row, file: Path) -> Path:
        """Have one picture rendered and copy its object into a file."""
        key = self._app.send_task(TASK, (row,)).get(timeout=_LONGEST_S)["key"]
        file.write_bytes(self._farm.bucket.get(key))
        return file


def stock_environment(settings: Settings, *, processes: int, threads: int, device: str) -> dict[str, str]:
    """Return what a stock worker's process is told."""
    return {
        **settings.environment(),
        "OMP_NUM_THREADS": str(threads),
        "STOCK_PROCESSES": str(processes),
        "STOCK_THREADS": str(threads),
        "STOCK_DEVICE": device,
    }


@contextmanager
def stock_workers(settings: Settings, redis_url: str, count: int, folder: Path, *, device: str) -> Iterator[Stock]:
    """Run a stock worker with ``count`` processes, which share the cores, on a Redis of its own."""
    own = settings.model_copy(update={"redis_url": redis_url})
    threads = max(1, (os.cpu_count() or 1) // count)
    environment = stock_environment(own, processes=count, threads=threads, device=device)
    child = ManagedProcess(
        "stock", [sys.executable, "-m", "tests.bench.stock_worker"], log=folder / "stock.log", env=environment
    )
    try:
        stock = Stock(own, child, processes=count)
        stock.warm_up()
        yield stock
    finally:
        child.terminate()
        child.wait_or_kill(30)
