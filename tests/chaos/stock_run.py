"""The control: stock Celery under the same schedule. A plain task that sleeps 20 ms and writes an object.

JSON, ``task_acks_late``, ``task_reject_on_worker_lost``, a prefetch of one, and a visibility timeout short enough for
the run. The object is a file that is renamed into place: a store that never fails.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import OperationalError
from tests.chaos.farm_run import CHAOS_PRELOAD, FAKE_WORKERS
from tests.chaos.fault_injector import FaultInjector
from tests.chaos.fault_log import FaultLog, Replica
from tests.chaos.faults import STOCK_KINDS, schedule
from tests.chaos.network import Network
from tests.chaos.redis_host import RedisHost
from tests.support.fork_server import ForkServer

from latentfarm.doorbell import broker_url

#: seconds after which Celery redelivers an unacknowledged message
VISIBILITY_TIMEOUT_S = 20
#: seconds without progress after which the jobs that are not done count as lost
_STILL_S = 3.5 * VISIBILITY_TIMEOUT_S
_TASK_S = 0.02
_QUEUE = "stock"


@dataclass
class StockOutcome:
    """The result of a run of the control; ``left`` are the messages that Redis still has at the end."""

    faults_seen: FaultLog
    jobs: int
    done: int
    runs: int
    run_twice: int
    most_runs: int
    left: int
    settled_s: float

    @property
    def lost(self) -> int:
        """Jobs that never made their object."""
        return self.jobs - self.done


def stock_app(url: str) -> Celery:
    """Return the app as Celery documents it for tasks that must not be lost."""
    app = Celery("stock", broker=broker_url(url), set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_default_queue=_QUEUE,
        worker_prefetch_multiplier=1,
        worker_pool="threads",
        worker_concurrency=2,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "unacked_restore_interval": 1,
            "socket_timeout": 15,
            "socket_connect_timeout": 5,
        },
    )
    return app


def work(url: str, objects: str, runs: str) -> int:
    """Be a worker process of the control."""
    app, file = stock_app(url), os.open(f"{runs}/{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    @app.task(name="stock.render")  # type: ignore[untyped-decorator]
    def render(job: int) -> None:
        os.write(file, f"{job}\n".encode())
        time.sleep(_TASK_S)
        draft = Path(objects) / f".{job}.{os.getpid()}"
        draft.write_bytes(b"x" * 2000)
        draft.rename(Path(objects) / str(job))

    app.worker_main(["worker", "--loglevel", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"])
    return 0


def run_stock(folder: Path, *, seed: int, duration_s: float, jobs: int) -> StockOutcome:
    """Run the control: with the same faults of workers and Redis and the same number of jobs, sent evenly."""
    objects, runs = folder / "objects", folder / "runs"
    with ExitStack() as stack:
        for each in (folder / "logs", objects, runs):
            each.mkdir(parents=True)
        host = RedisHost(folder / "redis", replicated=False)
        stack.callback(host.end_all)
        network = stack.enter_context(Network())
        fork_server = stack.enter_context(
            ForkServer((*CHAOS_PRELOAD, "tests.chaos.stock_run"), log=folder / "fork_server.log")
        )
        injector = FaultInjector(folder, network, fork_server, host, seed=seed)
        stack.callback(injector.close)
        for number in range(FAKE_WORKERS):
            link = injector.link(seed=seed + number)
            arguments = {"url": link.url, "objects": str(objects), "runs": str(runs)}
            injector.replicas.append(Replica(f"stock-{number}", "tests.chaos.stock_run:work", arguments, {}, link))
            injector.fill(injector.replicas[-1])
        feeder = _Feeder(host.url, jobs, duration_s)
        faults = [fault for fault in schedule(seed, duration_s, FAKE_WORKERS + 1) if fault.kind in STOCK_KINDS]
        injector.run(faults, duration_s, feeder.tick)
        settled_s = _settle(injector, feeder, objects, jobs, limit_s=duration_s + 2 * _STILL_S)
        left = feeder.left()
        injector.end_all()
        counts = Counter(line for file in runs.iterdir() for line in file.read_text().split())
        done = sum(1 for file in objects.iterdir() if not file.name.startswith("."))
    return StockOutcome(
        faults_seen=injector.faults_seen,
        jobs=jobs,
        done=done,
        runs=counts.total(),
        run_twice=sum(1 for count in counts.values() if count > 1),
        most_runs=max(counts.values(), default=0),
        left=left,
        settled_s=settled_s,
    )


class _Feeder:
    """Sends jobs evenly over the run, past every proxy, so that no loss is the producer's."""

    def __init__(self, url: str, jobs: int, duration_s: float) -> None:
        self.sent = 0
        self._jobs, self._duration_s = jobs, duration_s
        self._app = stock_app(url)
        self._redis = redis.Redis.from_url(url, socket_timeout=2)
        self._app.conf.broker_transport_options = {"socket_timeout": 2, "socket_connect_timeout": 2}
        self._began_s = time.monotonic()

    @property
    def all_sent(self) -> bool:
        return self.sent >= self._jobs

    def tick(self) -> None:
        due = self._jobs * (time.monotonic() - self._began_s) / (0.95 * self._duration_s)
        with suppress(OperationalError, redis.RedisError, OSError):
            # a message that a frozen Redis may have taken is not sent again: it would count as run twice
            self._redis.ping()
            with self._app.connection_for_write() as connection, self._app.amqp.Producer(connection) as producer:
                while self.sent < min(due, self._jobs):
                    self._app.send_task("stock.render", [self.sent], queue=_QUEUE, producer=producer, retry=False)
                    self.sent += 1

    def left(self) -> int:
        """Return how many messages Redis has, waiting or taken and not acknowledged."""
        left: Any = self._redis.llen(_QUEUE) + self._redis.hlen("unacked")
        return int(left)


def _settle(injector: FaultInjector, feeder: _Feeder, objects: Path, jobs: int, *, limit_s: float) -> float:
    """Wait until all jobs are done, or none was for longer than Celery takes to redeliver messages."""
    began = moved = time.monotonic()
    before = -1
    while (now := time.monotonic()) - began < limit_s:
        injector.mend()
        if not feeder.all_sent:
            feeder.tick()
        done = sum(1 for file in objects.iterdir() if not file.name.startswith("."))
        left = -1
        with suppress(redis.RedisError):
            left = feeder.left()
        if done == jobs and left == 0:
            break
        if done != before:
            before, moved = done, now
        if now - moved > _STILL_S:
            break
        time.sleep(0.2)
    return time.monotonic() - began
