"""A run of the farm under faults: four workers with the fake family, one with mini, and a producer; then the checks."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlparse

import redis
from tests.chaos.fake_worker import ALIAS, write_model
from tests.chaos.fault_injector import Ground, Happened, RedisHost, Seat
from tests.chaos.faults import LEASE_S, schedule
from tests.chaos.fork_server import Nursery
from tests.chaos.invariants import Findings, Recovery, check_farm, forgotten, recovery, resumption
from tests.chaos.journal import FRESH, Entry, read_journals
from tests.chaos.network import Network, S3Front
from tests.chaos.producer import Producer
from tests.chaos.stores import StoreKind, start_store

from latentfarm.errors import InputError, UnavailableError
from latentfarm.farm import Farm
from latentfarm.ledger import Ledger
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.manifest import read_header

PRELOAD = (
    "torch",
    "diffusers.schedulers.scheduling_euler_discrete",
    "boto3",
    "celery.bin.worker",
    "celery.apps.worker",
    "celery.concurrency.thread",
    "kombu.transport.redis",
    "latentfarm_worker.service.worker",
    "latentfarm_worker.models",
    "latentfarm.cli",
    "tests.chaos.warm",
)
FAKE_WORKERS = 4
SWEEP_S = 0.5
SLOTS = 4
#: a recovery is calm if nothing befell Redis or the store for so long after the kill
CALM_S = LEASE_S + 2
_MINI_JOBS = 24
#: another batch is submitted when fewer jobs than this wait
_LOW_WATER = 500
#: for the farm to finish after the faults: so long, and a share of the run
_SETTLE_S, _SETTLE_SHARE = 90.0, 1.0
#: how far back a kill -9 of Redis might reach: more than appendfsync everysec promises
_FORGETS_S = 5.0


@dataclass
class Outcome:
    """What a run gave."""

    happened: Happened
    found: Findings
    recovery: Recovery
    calm_recovery: Recovery
    resumption: Recovery
    entries: list[Entry]
    duration_s: float
    settled_s: float
    producer_kills: int
    forgotten: list[str]
    store_counts: dict[str, int]
    eaten: int
    versions: dict[str, str]
    violations: list[str] = field(default_factory=list)


def run_farm(folder: Path, *, seed: int, duration_s: float, store: StoreKind) -> Outcome:
    """Run it; everything it did lies in the folder."""
    with ExitStack() as stack:
        (folder / "logs").mkdir(parents=True)
        (folder / "journal").mkdir()
        host = RedisHost(folder / "redis")
        stack.callback(host.end, kill=True)
        server, settings = start_store(store, folder / "s3", log=folder / "s3.log")
        stack.callback(server.wait_or_kill, 0)
        network = stack.enter_context(Network())
        nursery = stack.enter_context(Nursery(PRELOAD, log=folder / "nursery.log"))
        ground = Ground(folder, network, nursery, host)
        stack.callback(ground.close)
        run = _FarmRun(ground, settings.model_copy(update={"redis_url": host.url}), seed=seed)
        return run.run(duration_s)


class _FarmRun:
    def __init__(self, ground: Ground, settings: Settings, *, seed: int) -> None:
        self.ground = ground
        self.seed = seed
        self.farm = Farm.open(settings)
        # a frozen Redis must not hold up the hand that thaws it
        self.looker = Ledger(redis.Redis.from_url(settings.redis_url, socket_timeout=0.5), where="the run's Redis")
        self.bucket = Bucket.connect(settings)
        port = urlparse(settings.s3_endpoint_url).port
        assert port is not None
        self.front = ground.front = S3Front(ground.network, port, seed=seed)
        self.journal = ground.folder / "journal"
        self.acknowledged: list[Entry] = []
        self.forgotten: list[str] = []
        self.seen_whole: set[str] = set()
        self.looked_s = 0.0
        self.violations: list[str] = []
        self._make_seats()
        env = self._env(ground.link(seed=seed + 100).url, ALIAS)
        self.producer = Producer(ground.nursery, ground.folder, env, seed=seed)
        ground.doom_producer = self.producer.doom
        ground.before_redis_dies, ground.after_redis_is_back = self._remember, self._compare

    def _env(self, redis_url: str, model: str, source: str = "") -> dict[str, str]:
        mine = self.farm.settings.model_copy(
            update={
                "redis_url": redis_url,
                "s3_endpoint_url": f"http://127.0.0.1:{self.front.port}",
                "model": model,
                "model_source": source,
                "slots": SLOTS,
            }
        )
        return {
            **mine.environment(),
            "LATENTFARM_LEASE_TTL_S": str(LEASE_S),
            "LATENTFARM_HOUSEKEEPING_INTERVAL_S": str(SWEEP_S),
        }

    def _make_seats(self) -> None:
        source = str(write_model(self.ground.folder / "model"))
        journal = {"journal": str(self.journal)}
        for number in range(FAKE_WORKERS + 1):
            link = self.ground.link(seed=self.seed + number)
            entry, env = "tests.chaos.fake_worker:run", self._env(link.url, ALIAS, source)
            name = f"worker-{number}"
            if number == FAKE_WORKERS:
                entry, env, name = "tests.chaos.fake_worker:run_mini", self._env(link.url, "mini"), "worker-mini"
            self.ground.seats.append(Seat(name, entry, journal, env, link))

    # -- the run ---------------------------------------------------------------------------------------------

    def run(self, duration_s: float) -> Outcome:
        faults = schedule(self.seed, duration_s, len(self.ground.seats))
        self.producer.add("mini", rows=_MINI_JOBS)
        self.producer.add(ALIAS)
        for seat in self.ground.seats:
            self.ground.fill(seat)
        self.ground.run(faults, duration_s, self._tick_and_feed)
        settled_s = self._settle(_SETTLE_S + _SETTLE_SHARE * duration_s)
        self.ground.end_all()
        entries = read_journals(self.journal)
        self.ground.note("checking", batches=len(self.producer.plans))
        found = check_farm(self.farm, self.producer.plans, entries)
        happened = self.ground.happened
        violations = [*self.violations, *happened.violations, *found.lines()]
        return Outcome(
            happened=happened,
            found=found,
            recovery=recovery(entries, happened.kills),
            calm_recovery=recovery(entries, self.ground.calm_kills(CALM_S)),
            resumption=resumption(entries, happened.returns),
            entries=entries,
            duration_s=duration_s,
            settled_s=settled_s,
            producer_kills=self.producer.killed,
            forgotten=self.forgotten,
            store_counts=dict(self.front.counts),
            eaten=sum(link.eaten for link in self.ground.links),
            versions={"Redis": self.farm.ledger.ping()},
            violations=violations,
        )

    def _tick(self) -> None:
        self.producer.tick(self.ground.note)
        now = time.monotonic()
        if now - self.looked_s > 1:
            self.looked_s = now
            self._look_for_halves()

    def _tick_and_feed(self) -> None:
        self._tick()
        if not self.producer.busy:
            try:
                if self.looker.count_pending(ALIAS) < _LOW_WATER:
                    self.producer.add(ALIAS)
            except UnavailableError:
                pass

    def _look_for_halves(self) -> None:
        """A batch that the ledger calls open has its header and all its rows in the bucket."""
        for plan in self.producer.plans:
            if plan.batch in self.seen_whole:
                continue
            try:
                record = self.looker.batch(plan.batch)
                if record.state not in {"open", "complete"}:
                    continue
                header = read_header(self.bucket, plan.batch)
            except (InputError, UnavailableError, MissingObjectError):
                continue
            self.seen_whole.add(plan.batch)
            if header is None or not header.total == record.total == plan.rows:
                self.violations.append(
                    f"{plan.batch} was {record.state} with {record.total} of {plan.rows} and {header}"
                )

    def _settle(self, limit_s: float) -> float:
        """Wait until everything is done; return how long it took."""
        began = time.monotonic()
        while (took := time.monotonic() - began) < limit_s:
            self.ground.mend()
            self._tick()
            if not self.producer.busy and self._finished():
                return took
            time.sleep(0.05)
        self.violations.append(f"the farm had not finished {limit_s:g} s after the faults: {self._left()}")
        return took

    def _finished(self) -> bool:
        try:
            records = [self.looker.batch(plan.batch) for plan in self.producer.plans]
            done = all(record.state == "complete" for record in records) and not self.looker.full_parts()
            return done and not self.looker.redis.exists("lf:leftovers")
        except (InputError, UnavailableError, redis.RedisError):
            return False

    def _left(self) -> str:
        if self.producer.busy:
            return f"a batch is not submitted ({self.producer.refusals[-3:]})"
        records = [self.farm.ledger.batch(plan.batch) for plan in self.producer.plans]
        left = [
            f"{r.name} {r.state} {r.paused} {r.done}+{r.failed}/{r.total}" for r in records if r.state != "complete"
        ]
        return f"{left}, parts to flush {self.farm.ledger.full_parts()}"

    # -- what a killed Redis forgets -------------------------------------------------------------------------

    def _remember(self) -> None:
        since = time.monotonic() - _FORGETS_S
        entries = read_journals(self.journal)
        self.acknowledged = [e for e in entries if e.what == "commit" and e.outcome in FRESH and e.at_s > since]

    def _compare(self) -> None:
        lost = forgotten(self.farm, self.acknowledged)
        self.ground.note("Redis is back", acknowledged=len(self.acknowledged), forgotten=len(lost))
        self.forgotten += lost
