"""Simulate up to a thousand workers against one real Redis, to measure how many GPUs one Redis can serve.

    python -m tests.bench.simulate            # print the table
    python -m tests.bench.simulate --write    # also write it into docs/explanation/benchmarks.md

A simulated worker sends the requests of a real one to Redis, through the ledger's scripts. It leases as soon as it has
room, commits, renews, sends heartbeats and expires leases. Its render times are random. All workers share one process,
which has a core of its own if there are two. A request's time counts from the moment at which it was due.
"""

from __future__ import annotations

import functools
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
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import hiredis
from tests.bench.bench_ledger import open_batch, receipt_of
from tests.bench.servers import redis_cpu_s, redis_server, temporary_folder, until
from tests.bench.table import Conditions, Line, parse_arguments, report

from latentfarm.ledger import Lease, Ledger
from latentfarm.ledger.constants import SCHEMA_KEY
from latentfarm.ledger.records import receipt_text
from latentfarm.limits import PART_JOBS

Kind = Literal["lease", "commit", "renew", "heartbeat", "expire_leases"]

MODEL = "simulated"
#: open batches of many users that share the model
BATCHES = 1_000
BATCH_JOBS = 1_000_000
#: the defaults of a real worker
SLOTS, LEASE_TTL_S, RENEW_S, HOUSEKEEPING_S, IDLE_POLL_S = 16, 30.0, 5.0, 3.0, 0.2
#: seconds of work leased ahead; seconds between commits, and how much sooner one may come
AHEAD_S, COMMIT_S, COMMIT_EARLY_S = 1.0, 1.0, 3.0
IMAGES_PER_S = 10.0
#: sigma of the logarithm of render times
SPREAD = 0.3
WARM_UP_S = 5.0
BAR_MS, BAR_WORKERS = 100.0, 1_000
_FORK = multiprocessing.get_context("fork")


@dataclass
class Measured:
    """Measurements after the warm-up: seconds of each request by kind, images, CPU seconds of all workers."""

    seconds: dict[Kind, list[float]] = field(default_factory=lambda: defaultdict(list))
    images: int = 0
    cpu_s: float = 0.0


@dataclass(frozen=True)
class LoadResult:
    """The result for one number of workers. Shares are of one core."""

    workers: int
    images_per_s: float
    operations_per_s: float
    redis_share: float
    workers_share: float
    lease_p50_ms: float
    lease_p99_ms: float
    commit_p99_ms: float

    @property
    def sustained(self) -> bool:
        """Return whether the workers reached their rate with short lease times."""
        return self.images_per_s >= 0.95 * self.workers * IMAGES_PER_S and self.lease_p99_ms < BAR_MS


class Simulation:
    """All simulated workers, with their sockets and a schedule of actions."""

    def __init__(self, url: str, count: int, *, ends: float, seed: int = 0) -> None:
        ledger = Ledger.connect(url)
        self.shas = {kind: ledger.redis.script_load(getattr(ledger.scripts, kind).script) for kind in get_args(Kind)}
        self.rng = random.Random(seed)  # noqa: S311 - the same times in every run
        self.measured = Measured()
        self._ends = ends
        self._measured_from = time.monotonic() + WARM_UP_S
        self._due: list[tuple[float, int, SimulatedWorker, str]] = []
        self._order = itertools.count()
        self._selector = selectors.DefaultSelector()
        for number in range(count):
            worker = SimulatedWorker(self, number, url.removeprefix("unix://"))
            self._selector.register(worker.socket, selectors.EVENT_READ, worker)
            # the workers of a farm start at different times
            began = time.monotonic() + WARM_UP_S / 2 * number / count
            for action, period_s in (
                ("lease", 0.0),
                ("renew", RENEW_S),
                ("heartbeat", HOUSEKEEPING_S),
                ("expire_leases", HOUSEKEEPING_S),
            ):
                self.schedule(began + period_s * self.rng.random(), worker, action)

    def schedule(self, at: float, worker: SimulatedWorker, action: str) -> None:
        """Schedule a worker's action at a time of ``time.monotonic()``."""
        heapq.heappush(self._due, (at, next(self._order), worker, action))

    def record_reply(self, kind: Kind, due: float, images: int) -> None:
        """Record a reply that has just arrived."""
        now = time.monotonic()
        if now >= self._measured_from:
            self.measured.seconds[kind].append(now - due)
            self.measured.images += images

    def run(self) -> Measured:
        """Simulate until the end. CPU seconds count from the end of the warm-up."""
        warm_up_cpu_s = None
        while (now := time.monotonic()) < self._ends:
            if warm_up_cpu_s is None and now >= self._measured_from:
                warm_up_cpu_s = time.process_time()
            for key, _ in self._selector.select(max(0.0, self._due[0][0] - now)):
                key.data.read()
            while self._due and self._due[0][0] <= time.monotonic():
                due, _, worker, action = heapq.heappop(self._due)
                worker.act(action, due)
        self.measured.cpu_s = time.process_time() - (warm_up_cpu_s or 0.0)
        return self.measured


class SimulatedWorker:
    """A worker with its own connection."""

    def __init__(self, simulation: Simulation, number: int, path: str) -> None:
        self._simulation = simulation
        self._name = f"simulated-{number}"
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self._reader = hiredis.Reader()
        self._sent: deque[tuple[Kind, float]] = deque()
        self._running: dict[str, Lease] = {}
        self._prefetched: deque[Lease] = deque()
        self._finished: list[Lease] = []
        self._commit_due = 0.0
        self._leasing = False
        self._requests = itertools.count()

    def act(self, action: str, due: float) -> None:
        """Send the request that is due, or finish the job that ``action`` names."""
        if action == "lease":
            self._lease(due)
        elif action == "commit":
            self._commit(due)
        elif action == "renew":
            names = [word for lease in self._held() for word in (lease.name, lease.epoch)]
            self._send("renew", due, int(LEASE_TTL_S * 1000), *names)
            self._simulation.schedule(due + RENEW_S, self, action)
        elif action == "heartbeat":
            seconds = repr(HOUSEKEEPING_S)
            measured = ("images", repr(HOUSEKEEPING_S * IMAGES_PER_S), "busy_s", seconds, "wall_s", seconds)
            self._send("heartbeat", due, MODEL, self._name, 60, 1, "device", "cuda", *measured)
            self._simulation.schedule(due + HOUSEKEEPING_S, self, action)
        elif action == "expire_leases":
            self._send("expire_leases", due, 1_000, 250, 10_000)
            self._simulation.schedule(due + HOUSEKEEPING_S, self, action)
        else:
            self._finish(self._running.pop(action), due)

    def read(self) -> None:
        """Read the replies that have arrived."""
        self._reader.feed(self.socket.recv(1 << 16))
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, Exception):
                raise reply
            kind, due = self._sent.popleft()
            self._simulation.record_reply(kind, due, images=len(reply) if kind == "commit" else 0)
            if kind == "lease":
                self._accept(reply)
            elif kind == "commit" and not set(reply) <= {b"done", b"full"}:
                raise RuntimeError(f"the reply to a commit was {reply}")

    def _held(self) -> list[Lease]:
        return [*self._running.values(), *self._prefetched, *self._finished]

    def _lease(self, due: float) -> None:
        capacity = SLOTS - len(self._running) + round(AHEAD_S * IMAGES_PER_S)
        if 2 * len(self._prefetched) <= capacity and not self._leasing:
            self._leasing = True
            room = capacity - len(self._prefetched)
            request = f"{next(self._requests):032x}"
            self._send("lease", due, MODEL, self._name, room, int(LEASE_TTL_S * 1000), request, 1, "")

    def _accept(self, reply: list[list[Any]]) -> None:
        self._leasing = False
        for batch, index, count, epoch, *_ in reply:
            self._prefetched.extend(Lease(batch.decode(), index + at, epoch, attempts=0) for at in range(count))
        now = time.monotonic()
        while self._prefetched and len(self._running) < SLOTS:
            self._begin(now)
        if not reply:
            self._simulation.schedule(now + IDLE_POLL_S, self, "lease")

    def _begin(self, now: float) -> None:
        lease = self._prefetched.popleft()
        self._running[lease.name] = lease
        mean_s = SLOTS / IMAGES_PER_S
        # log-normal with this mean
        render_s = mean_s * self._simulation.rng.lognormvariate(-(SPREAD**2) / 2, SPREAD)
        self._simulation.schedule(now + render_s, self, lease.name)

    def _finish(self, lease: Lease, due: float) -> None:
        if not self._finished:
            self._simulation.schedule(max(due, self._commit_due - COMMIT_EARLY_S), self, "commit")
        self._finished.append(lease)
        if self._prefetched:
            self._begin(due)
        self._lease(due)

    def _commit(self, due: float) -> None:
        arguments: list[str | int | bytes] = []
        for lease in self._finished:
            arguments += [lease.name, lease.epoch, receipt_text({**receipt_of(lease), "epoch": lease.epoch}), 0]
        self._finished.clear()
        self._commit_due = max(self._commit_due, due) + COMMIT_S
        self._send("commit", due, *arguments)

    def _send(self, kind: Kind, due: float, *arguments: str | int | bytes) -> None:
        self._sent.append((kind, due))
        words: Any = ("EVALSHA", self._simulation.shas[kind], 1, SCHEMA_KEY, *arguments)
        self.socket.sendall(hiredis.pack_command(words))


def _simulate(url: str, count: int, seconds: float, pipe: Any) -> None:
    pipe.send(Simulation(url, count, ends=time.monotonic() + WARM_UP_S + seconds).run())


def _flush(url: str) -> None:
    """Read and drop the receipts of full parts for ever, as workers do but without a bucket."""
    ledger = Ledger.connect(url)
    while True:
        for batch, part in ledger.full_parts():
            json.dumps([job.receipt for job in ledger.jobs(batch, range(part * PART_JOBS, (part + 1) * PART_JOBS))])
            ledger.drop_flushed(batch, part, retries=0)
        time.sleep(HOUSEKEEPING_S / 10)


def simulate(url: str, count: int, seconds: float, *, rewrite: bool = False) -> LoadResult:
    """Simulate ``count`` workers on an empty ledger, with ``rewrite`` beside a rewrite of Redis' append-only file."""
    ledger = Ledger.connect(url)
    ledger.redis.flushall()
    for number in range(BATCHES):
        open_batch(ledger, f"batch-{number}", BATCH_JOBS, model=MODEL)
    receiver, sender = _FORK.Pipe()
    simulation = _FORK.Process(target=_simulate, args=(url, count, seconds, sender))
    flusher = _FORK.Process(target=_flush, args=(url,), daemon=True)
    flusher.start()
    simulation.start()
    time.sleep(WARM_UP_S)
    redis_s, began = redis_cpu_s(ledger.redis), time.monotonic()
    if rewrite:
        ledger.redis.bgrewriteaof()
    measured: Measured = receiver.recv()
    wall_s, redis_s = time.monotonic() - began, redis_cpu_s(ledger.redis) - redis_s
    simulation.join()
    flusher.kill()
    lease_ms, commit_ms = ([1000 * s for s in measured.seconds[kind]] for kind in ("lease", "commit"))
    print("  ", count, Counter({kind: len(each) for kind, each in measured.seconds.items()}), flush=True)
    return LoadResult(
        workers=count,
        images_per_s=measured.images / seconds,
        operations_per_s=sum(map(len, measured.seconds.values())) / seconds,
        redis_share=redis_s / wall_s,
        workers_share=measured.cpu_s / seconds,
        lease_p50_ms=statistics.median(lease_ms),
        lease_p99_ms=statistics.quantiles(lease_ms, n=100)[-1],
        commit_p99_ms=statistics.quantiles(commit_ms, n=100)[-1],
    )


def open_batches(url: str, counts: tuple[int, ...]) -> list[Line]:
    """Measure a lease of 32 jobs and a heartbeat beside more and more open batches."""
    ledger = Ledger.connect(url)
    ledger.redis.flushall()
    open_batch(ledger, "batch-0", BATCH_JOBS, model=MODEL)
    fields: Any = ledger.redis.hgetall("{lf}:batch:batch-0")
    costs: dict[str, list[float]] = {"a lease of 32": [], "a heartbeat": []}
    opened = 1
    for count in counts:
        pipe = ledger.redis.pipeline(transaction=False)
        for number in range(opened, count):
            pipe.hset(f"{{lf}}:batch:batch-{number}", mapping=fields)
            pipe.sadd(f"{{lf}}:active:{MODEL}", f"batch-{number}")
            pipe.zadd(f"{{lf}}:runnable:{MODEL}", {f"batch-{number}": 0})
            # as of a batch that has begun: the first lease of a batch makes this string
            pipe.setrange(f"{{lf}}:states:batch-{number}:0", 0, bytes(64))
            if number % 10_000 == 0:
                pipe.execute()
        pipe.execute()
        ledger.redis.hset("{lf}:pending", MODEL, count * BATCH_JOBS)
        opened = count
        # a rewrite of the append-only file copies pages, and leases that pile up cost by themselves
        until(lambda: not ledger.redis.info("persistence")["aof_rewrite_in_progress"], "the append-only file")
        ledger.redis.delete("{lf}:leases", "{lf}:holders")
        lease = functools.partial(ledger.lease, MODEL, "worker", 32, lease_s=LEASE_TTL_S)
        costs["a lease of 32"].append(_script_us(ledger, lease))
        costs["a heartbeat"].append(_script_us(ledger, lambda: ledger.heartbeat(MODEL, "worker", {"images": 1.0})))
    lines = []
    for name, found in costs.items():
        lines += [Line(f"{name} beside {n:,} open batches", us, "µs") for n, us in zip(counts, found, strict=True)]
        lines.append(Line(f"{name}: how far apart", 100 * (max(found) / min(found) - 1), "%", 30))
    return lines


def _script_us(ledger: Ledger, call: Callable[[], Any]) -> float:
    """Return the time of a script in Redis, the best of ten rounds: other processes can only lengthen it."""
    rounds = []
    for _ in range(10):
        ledger.redis.config_resetstat()
        for _ in range(100):
            call()
        stats: Any = ledger.redis.info("commandstats")
        rounds.append(float(stats["cmdstat_evalsha"]["usec_per_call"]))
    return min(rounds)


def lines_of(loads: list[LoadResult]) -> list[Line]:
    lines = []
    for load in loads:
        label = f"{load.workers:,} workers of {IMAGES_PER_S:g} images/s"
        lines += [
            Line(f"{label}: images", load.images_per_s, "images/s"),
            Line(f"{label}: requests to Redis", load.operations_per_s, "a second"),
            Line(f"{label}: CPU of Redis", 100 * load.redis_share, "% of a core"),
            Line(f"{label}: CPU of all simulated workers", 100 * load.workers_share, "% of a core"),
            Line(f"{label}: a lease, median", load.lease_p50_ms, "ms"),
            Line(f"{label}: a lease, p99", load.lease_p99_ms, "ms"),
            Line(f"{label}: a commit, p99", load.commit_p99_ms, "ms"),
        ]
    most = max((load.workers for load in loads if load.sustained), default=0)
    label = f"the most workers at their full rate, with a lease's p99 under {BAR_MS:g} ms"
    return [*lines, Line(label, most, "workers", BAR_WORKERS, at_least=True)]


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__)
    counts, seconds = ((20,), 2.0) if arguments.quick else ((125, 250, 500, 750, 1_000), 20.0)
    with temporary_folder() as folder, redis_server(folder) as url:
        conditions = Conditions(Ledger.connect(url).ping())
        open_lines = open_batches(url, (1, 100) if arguments.quick else (1, 1_000, 100_000))
        loads = [simulate(url, count, seconds) for count in counts]
        rewriting = simulate(url, counts[-1], seconds, rewrite=True)
    note = (
        f"{SLOTS} slots a worker, render times spread by {SPREAD:g} (sigma of the logarithm), {BATCHES:,} batches; a "
        f"connection a worker, over a unix socket. {os.cpu_count()} cores for Redis, its disk and all workers."
    )
    label = f"{counts[-1]:,} workers while the append-only file is rewritten once: a lease, p99"
    lines = [*open_lines, *lines_of(loads), Line(label, rewriting.lease_p99_ms, "ms")]
    return report("simulation", lines, conditions, write=arguments.write, note=note)


if __name__ == "__main__":
    raise SystemExit(main())
