"""Simulates up to a thousand workers against one real Redis, to measure how many GPUs one Redis carries.

    python -m tests.bench.simulate            # prints the table
    python -m tests.bench.simulate --write    # and puts it into docs/explanation/benchmarks.md

A simulated worker sends to Redis what a real one sends, through the ledger's scripts. It leases as soon as it has room,
commits, renews, sends heartbeats and expires leases. Its render times are random. All workers share one process, which
has a core of its own if there are two. A request's time counts from the moment at which it was due.
"""

from __future__ import annotations

import heapq
import itertools
import json
import multiprocessing
import os
import random
import selectors
import socket
import statistics
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import hiredis
from tests.bench.bench_ledger import open_batch, receipt_of
from tests.bench.servers import redis_cpu_s, redis_server, temporary_folder
from tests.bench.table import Conditions, Line, parse_arguments, report

from latentfarm.ledger import Lease, Ledger
from latentfarm.ledger.records import receipt_text
from latentfarm.limits import PART_JOBS

Kind = Literal["lease", "commit", "renew", "heartbeat", "expire_leases"]

MODEL = "simulated"
#: batches that share the model, as users do
BATCHES = 4
BATCH_JOBS = 10_000_000
#: the defaults of a real worker
SLOTS, LEASE_S, RENEW_S, HOUSE_S, DRY_S = 16, 30.0, 5.0, 3.0, 0.2
#: seconds of work leased ahead; seconds between commits, and how much sooner one may come
AHEAD_S, COMMIT_S, COMMIT_EARLY_S = 0.5, 0.5, 1.5
IMAGES_PER_S = 10.0
#: sigma of the logarithm of render times
SPREAD = 0.3
WARM_UP_S = 5.0
BAR_MS, BAR_WORKERS = 100.0, 1_000
_FORK = multiprocessing.get_context("fork")


@dataclass
class Measured:
    """A simulation after its warm-up: seconds of each request by kind, images, CPU seconds of all workers."""

    seconds: dict[Kind, list[float]] = field(default_factory=lambda: defaultdict(list))
    images: int = 0
    cpu_s: float = 0.0


@dataclass(frozen=True)
class Load:
    """Result of one number of workers. Shares are of one core; times are milliseconds."""

    workers: int
    images_per_s: float
    operations_per_s: float
    redis_share: float
    workers_share: float
    lease_p50_ms: float
    lease_p99_ms: float
    commit_p99_ms: float

    @property
    def carried(self) -> bool:
        """Whether the workers got their images in time."""
        return self.images_per_s >= 0.95 * self.workers * IMAGES_PER_S and self.lease_p99_ms < BAR_MS


class Farm:
    """All simulated workers: their sockets, and what is due when."""

    def __init__(self, url: str, count: int, *, ends: float, seed: int = 0) -> None:
        ledger = Ledger.connect(url)
        self.shas = {kind: ledger.redis.script_load(getattr(ledger.scripts, kind).script) for kind in get_args(Kind)}
        self.rng = random.Random(seed)  # noqa: S311 (each run has the same times)
        self.measured = Measured()
        self._ends = ends
        self._measured_from = time.monotonic() + WARM_UP_S
        self._due: list[tuple[float, int, Worker, str]] = []
        self._order = itertools.count()
        self._selector = selectors.DefaultSelector()
        for number in range(count):
            worker = Worker(self, number, url.removeprefix("unix://"))
            self._selector.register(worker.socket, selectors.EVENT_READ, worker)
            # the workers of a farm start at different times
            began = time.monotonic() + WARM_UP_S / 2 * number / count
            for action, period_s in (
                ("lease", 0.0),
                ("renew", RENEW_S),
                ("heartbeat", HOUSE_S),
                ("expire_leases", HOUSE_S),
            ):
                self.plan(began + period_s * self.rng.random(), worker, action)

    def plan(self, at: float, worker: Worker, action: str) -> None:
        """Schedule an action of a worker at a time of ``time.monotonic()``."""
        heapq.heappush(self._due, (at, next(self._order), worker, action))

    def note(self, kind: Kind, due: float, images: int) -> None:
        """Record a reply that came now."""
        now = time.monotonic()
        if now >= self._measured_from:
            self.measured.seconds[kind].append(now - due)
            self.measured.images += images

    def run(self) -> Measured:
        """Simulate until the end; CPU seconds count from the end of the warm-up on."""
        spent_s = None
        while (now := time.monotonic()) < self._ends:
            if spent_s is None and now >= self._measured_from:
                spent_s = time.process_time()
            for key, _ in self._selector.select(max(0.0, self._due[0][0] - now)):
                key.data.read()
            while self._due and self._due[0][0] <= time.monotonic():
                due, _, worker, action = heapq.heappop(self._due)
                worker.act(action, due)
        self.measured.cpu_s = time.process_time() - (spent_s or 0.0)
        return self.measured


class Worker:
    """One worker, on a connection of its own."""

    def __init__(self, farm: Farm, number: int, path: str) -> None:
        self._farm = farm
        self._name = f"simulated-{number}"
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self._reader = hiredis.Reader()
        self._sent: deque[tuple[Kind, float]] = deque()
        self._running: dict[str, Lease] = {}
        self._staged: deque[Lease] = deque()
        self._finished: list[Lease] = []
        self._commit_due = 0.0
        self._leasing = False
        self._requests = itertools.count()

    def act(self, action: str, due: float) -> None:
        """Do what is due: send a request, or finish the job that ``action`` names."""
        if action == "lease":
            self._lease(due)
        elif action == "commit":
            self._commit(due)
        elif action == "renew":
            names = [word for lease in self._held() for word in (lease.name, lease.epoch)]
            self._send("renew", due, int(LEASE_S * 1000), *names)
            self._farm.plan(due + RENEW_S, self, action)
        elif action == "heartbeat":
            measured = ("images", repr(HOUSE_S * IMAGES_PER_S), "busy_s", repr(HOUSE_S), "wall_s", repr(HOUSE_S))
            self._send("heartbeat", due, MODEL, self._name, 60, 1, "device", "cuda", *measured)
            self._farm.plan(due + HOUSE_S, self, action)
        elif action == "expire_leases":
            self._send("expire_leases", due, 1_000, 250, 10_000)
            self._farm.plan(due + HOUSE_S, self, action)
        else:
            self._finish(self._running.pop(action), due)

    def read(self) -> None:
        """Read the replies that have arrived."""
        self._reader.feed(self.socket.recv(1 << 16))
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, Exception):
                raise reply
            kind, due = self._sent.popleft()
            self._farm.note(kind, due, images=len(reply) if kind == "commit" else 0)
            if kind == "lease":
                self._take(reply)
            elif kind == "commit" and not set(reply) <= {b"done", b"full"}:
                raise RuntimeError(f"the reply to a commit was {reply}")

    def _held(self) -> list[Lease]:
        return [*self._running.values(), *self._staged, *self._finished]

    def _lease(self, due: float) -> None:
        wanted = SLOTS - len(self._running) + round(AHEAD_S * IMAGES_PER_S)
        if 2 * len(self._staged) <= wanted and not self._leasing:
            self._leasing = True
            room = wanted - len(self._staged)
            self._send("lease", due, MODEL, self._name, room, int(LEASE_S * 1000), f"{next(self._requests):032x}")

    def _take(self, reply: list[list[Any]]) -> None:
        self._leasing = False
        self._staged.extend(Lease(batch.decode(), *numbers) for batch, *numbers in reply)
        now = time.monotonic()
        while self._staged and len(self._running) < SLOTS:
            self._begin(now)
        if not reply:
            self._farm.plan(now + DRY_S, self, "lease")

    def _begin(self, now: float) -> None:
        lease = self._staged.popleft()
        self._running[lease.name] = lease
        typical_s = SLOTS / IMAGES_PER_S
        # a logarithmic normal distribution with this mean
        drawn_s = typical_s * self._farm.rng.lognormvariate(-(SPREAD**2) / 2, SPREAD)
        self._farm.plan(now + drawn_s, self, lease.name)

    def _finish(self, lease: Lease, due: float) -> None:
        if not self._finished:
            self._farm.plan(max(due, self._commit_due - COMMIT_EARLY_S), self, "commit")
        self._finished.append(lease)
        if self._staged:
            self._begin(due)
        self._lease(due)

    def _commit(self, due: float) -> None:
        arguments: list[str | int] = []
        for lease in self._finished:
            arguments += [lease.name, lease.epoch, receipt_text({**receipt_of(lease), "epoch": lease.epoch}), 0]
        self._finished.clear()
        self._commit_due = max(self._commit_due, due) + COMMIT_S
        self._send("commit", due, *arguments)

    def _send(self, kind: Kind, due: float, *arguments: str | int) -> None:
        self._sent.append((kind, due))
        words: Any = ("EVALSHA", self._farm.shas[kind], 0, *arguments)
        self.socket.sendall(hiredis.pack_command(words))


def _simulate(url: str, count: int, seconds: float, pipe: Any) -> None:
    pipe.send(Farm(url, count, ends=time.monotonic() + WARM_UP_S + seconds).run())


def _flush(url: str) -> None:
    """Read and drop the receipts of full parts for ever, as workers do, without a bucket."""
    ledger = Ledger.connect(url)
    while True:
        for batch, part in ledger.full_parts():
            json.dumps([job.receipt for job in ledger.jobs(batch, range(part * PART_JOBS, (part + 1) * PART_JOBS))])
            ledger.drop_flushed(batch, part, retries=0)
        time.sleep(HOUSE_S / 10)


def load_of(url: str, count: int, seconds: float) -> Load:
    """Simulate a number of workers for some seconds on an empty ledger."""
    ledger = Ledger.connect(url)
    ledger.redis.flushall()
    for number in range(BATCHES):
        open_batch(ledger, f"batch-{number}", BATCH_JOBS, model=MODEL)
    ours, theirs = _FORK.Pipe()
    simulation = _FORK.Process(target=_simulate, args=(url, count, seconds, theirs))
    flusher = _FORK.Process(target=_flush, args=(url,), daemon=True)
    flusher.start()
    simulation.start()
    time.sleep(WARM_UP_S)
    redis_s, began = redis_cpu_s(ledger.redis), time.monotonic()
    measured: Measured = ours.recv()
    wall_s, redis_s = time.monotonic() - began, redis_cpu_s(ledger.redis) - redis_s
    simulation.join()
    flusher.kill()
    lease_ms, commit_ms = ([1000 * s for s in measured.seconds[kind]] for kind in ("lease", "commit"))
    print("  ", count, Counter({kind: len(each) for kind, each in measured.seconds.items()}), flush=True)
    return Load(
        workers=count,
        images_per_s=measured.images / seconds,
        operations_per_s=sum(map(len, measured.seconds.values())) / seconds,
        redis_share=redis_s / wall_s,
        workers_share=measured.cpu_s / seconds,
        lease_p50_ms=statistics.median(lease_ms),
        lease_p99_ms=statistics.quantiles(lease_ms, n=100)[-1],
        commit_p99_ms=statistics.quantiles(commit_ms, n=100)[-1],
    )


def lines_of(loads: list[Load]) -> list[Line]:
    """Return the table."""
    lines = []
    for load in loads:
        what = f"{load.workers:,} workers of {IMAGES_PER_S:g} images/s"
        lines += [
            Line(f"{what}: images", load.images_per_s, "images/s"),
            Line(f"{what}: requests to Redis", load.operations_per_s, "a second"),
            Line(f"{what}: CPU of Redis", 100 * load.redis_share, "% of a core"),
            Line(f"{what}: CPU of all simulated workers", 100 * load.workers_share, "% of a core"),
            Line(f"{what}: a lease, median", load.lease_p50_ms, "ms"),
            Line(f"{what}: a lease, p99", load.lease_p99_ms, "ms"),
            Line(f"{what}: a commit, p99", load.commit_p99_ms, "ms"),
        ]
    carried = max((load.workers for load in loads if load.carried), default=0)
    bar = f"the most workers that got their images, with a lease's p99 under {BAR_MS:g} ms"
    return [*lines, Line(bar, carried, "workers", BAR_WORKERS, at_least=True)]


def main() -> int:
    """Return 1 where a bar is missed."""
    arguments = parse_arguments(__doc__)
    counts, seconds = ((20,), 2.0) if arguments.quick else ((125, 250, 500, 750, 1_000), 20.0)
    with temporary_folder() as folder, redis_server(folder) as url:
        conditions = Conditions(Ledger.connect(url).ping())
        loads = [load_of(url, count, seconds) for count in counts]
    note = (
        f"{SLOTS} slots a worker, render times spread by {SPREAD:g} (sigma of the logarithm), {BATCHES} batches; a "
        f"connection a worker, over a unix socket. {os.cpu_count()} cores for Redis, its disk and all workers."
    )
    return report("simulation", lines_of(loads), conditions, write=arguments.write, note=note)


if __name__ == "__main__":
    raise SystemExit(main())
