"""A run of the farm under faults: four workers with the fake family, one with mini, and a producer; then the checks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlparse

import redis
from tests.chaos.alone import images_that_differ
from tests.chaos.curator import Curator
from tests.chaos.fake_worker import ALIAS, write_model
from tests.chaos.fault_injector import FaultInjector
from tests.chaos.fault_log import FaultLog, Replica
from tests.chaos.faults import LEASE_S, schedule
from tests.chaos.invariants import Findings, Losses, check_farm, forgotten
from tests.chaos.journal import FRESH, STORES, Entry, read_journals
from tests.chaos.network import Network
from tests.chaos.producer import Producer
from tests.chaos.recovery import Recovery, recovery, resumption, work_again
from tests.chaos.redis_host import RedisHost
from tests.chaos.s3_front import S3Front
from tests.chaos.stores import StoreKind, start_store
from tests.support.fork_server import PRELOAD, ForkServer
from tests.support.machines import free_ports
from tests.support.scraping import http_get

from latentfarm.batch_state import ACTIVE, PausedBy
from latentfarm.errors import InputError, UnavailableError
from latentfarm.farm import Farm
from latentfarm.job_state import JobState
from latentfarm.ledger import Ledger
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.manifest import read_header
from latentfarm.storage.orphans import collect_orphans

CHAOS_PRELOAD = (*PRELOAD, "tests.chaos.warm")
FAKE_WORKERS = 4
#: the worker that has a supervisor, and the one whose clock is off
_SUPERVISED, _SKEWED = 0, 1
HOUSEKEEPING_S = 0.5
SLOTS = 4
#: a recovery is calm if neither Redis nor the store had a fault for this long after the kill
CALM_S = LEASE_S + 2
_MINI_JOBS = 24
#: another batch is submitted when fewer jobs than this wait
_LOW_WATER = 300
#: a worker is ready so long after the farm has finished
_READY_S = 30.0
#: time to finish after the faults: seconds, plus a share of the run
_SETTLE_S, _SETTLE_SHARE = 90.0, 1.0
#: how long a pause lasts, and how long the lease of a long job is old whose work is put down for it
_PAUSE_S, _LONG_S = 2.0, 1.0
#: how far back a kill -9 of Redis might reach: more than appendfsync everysec promises
_FORGETS_S = 5.0


@dataclass
class Outcome:
    """The result of a run."""

    faults_seen: FaultLog
    found: Findings
    recovery: Recovery
    calm_recovery: Recovery
    resumption: Recovery
    #: by kind of fault: from its end to the first commit of each worker
    work_again: Mapping[str, Recovery]
    entries: list[Entry]
    duration_s: float
    settled_s: float
    producer_kills: int
    #: commands that finished or discarded drafts, by verb, and how many of them were killed
    curated: dict[str, int]
    curator_kills: int
    forgotten: list[str]
    store_counts: dict[str, int]
    eaten: int
    versions: dict[str, str]
    violations: list[str] = field(default_factory=list)


def run_farm(folder: Path, *, seed: int, duration_s: float, store: StoreKind) -> Outcome:
    """Run the farm under faults of every kind; its files stay in the folder."""
    with ExitStack() as stack:
        (folder / "logs").mkdir(parents=True)
        (folder / "journal").mkdir()
        host = RedisHost(folder / "redis")
        stack.callback(host.end_all)
        server, settings = start_store(store, folder / "s3", log=folder / "s3.log")
        stack.callback(server.wait_or_kill, 0)
        network = stack.enter_context(Network())
        fork_server = stack.enter_context(ForkServer(CHAOS_PRELOAD, log=folder / "fork_server.log"))
        injector = FaultInjector(folder, network, fork_server, host, seed=seed)
        stack.callback(injector.close)
        run = _FarmRun(injector, settings.model_copy(update={"redis_url": host.url}), seed=seed)
        return run.run(duration_s)


class _FarmRun:
    def __init__(self, injector: FaultInjector, settings: Settings, *, seed: int) -> None:
        self.injector = injector
        self.seed = seed
        self.farm = Farm.open(settings)
        # a frozen Redis must not block the thread that thaws it
        self.observer = Ledger(redis.Redis.from_url(settings.redis_url, socket_timeout=0.5), where="the run's Redis")
        self.bucket = Bucket.connect(settings)
        port = urlparse(settings.s3_endpoint_url).port
        assert port is not None
        self.front = injector.front = S3Front(injector.network, port, seed=seed)
        self.journal = injector.folder / "journal"
        self.acknowledged: list[Entry] = []
        self.forgotten: list[str] = []
        #: drafts that a killed Redis may have forgotten
        self.uncertain: set[str] = set()
        self.checked: set[str] = set()
        self.observed_s = 0.0
        self.violations: list[str] = []
        self._make_replicas()
        env = self._env(injector.link(seed=seed + 100).url, ALIAS)
        self.producer = Producer(injector.fork_server, injector.folder, env, seed=seed)
        self.curator = Curator(injector.fork_server, injector.folder, env, self.observer, seed=seed)
        injector.stop_producer = self._stop_commands
        injector.drain, injector.pause = self._drain, self._pause_soon
        #: batches that are paused, and when they are to run again
        self.paused: set[str] = set()
        self.resume_s = 0.0
        #: a pause is due, once a long job is seen to run
        self.pause_due = False
        self.long_since_s: dict[tuple[str, int], float] = {}
        injector.before_redis_dies, injector.after_redis_returns = self._remember, self._compare

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
            "LATENTFARM_METRICS_ADDRESS": f"127.0.0.1:{free_ports(1)[0]}",
            "CHAOS_DEEDS": str(self.injector.deeds),
            "LATENTFARM_LEASE_TTL_S": str(LEASE_S),
            "LATENTFARM_HOUSEKEEPING_INTERVAL_S": str(HOUSEKEEPING_S),
        }

    def _make_replicas(self) -> None:
        source = str(write_model(self.injector.folder / "model"))
        journal: dict[str, object] = {"journal": str(self.journal)}
        for number in range(FAKE_WORKERS + 1):
            link = self.injector.link(seed=self.seed + number)
            entry, env = "tests.chaos.fake_worker:run", self._env(link.url, ALIAS, source)
            name, arguments = f"worker-{number}", journal
            if number == _SUPERVISED:
                entry = "tests.chaos.fake_worker:run_supervised"
            elif number == _SKEWED:
                arguments = {**journal, "skewed": True}
            if number == FAKE_WORKERS:
                entry, env, name = "tests.chaos.fake_worker:run_mini", self._env(link.url, "mini"), "worker-mini"
            self.injector.replicas.append(Replica(name, entry, arguments, env, link, supervised=number == _SUPERVISED))

    # -- the run ---------------------------------------------------------------------------------------------

    def run(self, duration_s: float) -> Outcome:
        faults = schedule(self.seed, duration_s, len(self.injector.replicas))
        self.producer.add("mini", rows=_MINI_JOBS)
        self.producer.add(ALIAS)
        for replica in self.injector.replicas:
            self.injector.fill(replica)
        self.injector.run(faults, duration_s, self._tick_and_feed)
        settled_s = self._settle(_SETTLE_S + _SETTLE_SHARE * duration_s)
        self._check_readiness()
        self.injector.end_all()
        entries = read_journals(self.journal)
        # an object that was stored after its batch was collected
        known = set(self.farm.ledger.batches()) & {plan.batch for plan in self.producer.plans}
        late = sum(collect_orphans(self.farm.ledger, self.farm.bucket, batch) for batch in known)
        self.injector.note("checking", batches=len(self.producer.plans), late_orphans=late)
        faults_seen = self.injector.faults_seen
        lost = Losses(frozenset(self.forgotten), frozenset(self.uncertain), faults_seen.failovers_s)
        found = check_farm(self.farm, self.producer.plans, entries, lost)
        for problem in images_that_differ(self.farm, self.injector.folder / "model", found.put_down, seed=self.seed):
            found.require(None, "images are as if rendered alone", problem)
        self.injector.note("checked", violations=len(found.violations))
        violations = [*self.violations, *self.curator.violations, *faults_seen.violations, *found.lines()]
        return Outcome(
            faults_seen=faults_seen,
            found=found,
            recovery=recovery(entries, faults_seen.kills),
            calm_recovery=recovery(entries, self.injector.calm_kills(CALM_S)),
            resumption=resumption(entries, faults_seen.returns),
            work_again=work_again(entries, faults_seen),
            entries=entries,
            duration_s=duration_s,
            settled_s=settled_s,
            producer_kills=self.producer.kills,
            curated=dict(self.curator.commands),
            curator_kills=self.curator.kills,
            forgotten=self.forgotten,
            store_counts=dict(self.front.counts),
            eaten=sum(link.eaten for link in self.injector.links),
            versions={"Redis": self.farm.ledger.ping()},
            violations=violations,
        )

    def _tick(self) -> None:
        self.producer.tick(self.injector.note)
        self.curator.tick(self.producer.plans, self.injector.note)
        now = time.monotonic()
        if self.pause_due and self._runs_long(now):
            self._pause(now)
        if self.paused and now >= self.resume_s:
            self._resume()
        if now - self.observed_s > 1:
            self.observed_s = now
            self._check_open_batches()

    def _tick_and_feed(self) -> None:
        self._tick()
        if not self.producer.busy:
            try:
                if self.observer.count_pending(ALIAS) < _LOW_WATER:
                    self.producer.add(ALIAS)
            except UnavailableError:
                pass

    def _check_open_batches(self) -> None:
        """Check that an open batch has its header and all its rows in the bucket."""
        for plan in self.producer.plans:
            if plan.batch in self.checked:
                continue
            try:
                record = self.observer.batch(plan.batch)
                if record.state not in {"open", "complete"}:
                    continue
                header = read_header(self.bucket, plan.batch)
            except (InputError, UnavailableError, MissingObjectError):
                continue
            self.checked.add(plan.batch)
            if header is None or not header.total == record.total == plan.rows:
                self.violations.append(
                    f"{plan.batch} was {record.state} with {record.total} of {plan.rows} and {header}"
                )

    def _settle(self, limit_s: float) -> float:
        """Wait until everything is done; return how long it took."""
        began, self.curator.hurries = time.monotonic(), True
        while (took := time.monotonic() - began) < limit_s:
            self.injector.mend()
            self._tick()
            if not self.producer.busy and not self.curator.busy and self._finished():
                return took
            time.sleep(0.05)
        self.violations.append(f"the farm had not finished {limit_s:g} s after the faults: {self._left()}")
        return took

    def _check_readiness(self) -> None:
        """Check that no worker is without one of its threads: one that was just restarted needs some seconds."""
        deadline = time.monotonic() + _READY_S
        problems = dict[str, str]()
        for replica in self.injector.replicas:
            address = replica.env["LATENTFARM_METRICS_ADDRESS"]
            while True:
                self.injector.mend()
                problem = _problem_at(address)
                if not problem or time.monotonic() > deadline:
                    break
                time.sleep(0.1)
            if problem:
                problems[replica.name] = problem
        if problems:
            self.violations.append(f"workers are not ready {_READY_S:g} s after the end: {problems}")

    def _finished(self) -> bool:
        try:
            records = [self.observer.batch(plan.batch) for plan in self.producer.plans]
            # a Redis that took over may have forgotten that they run again
            self.paused |= {record.name for record in records if record.paused}
            # a batch whose collection of orphans was killed is due an hour later; the run collects them itself
            return all(record.state == "complete" for record in records) and not self.observer.full_parts()
        except (InputError, UnavailableError, redis.RedisError):
            return False

    def _left(self) -> str:
        if self.producer.busy:
            return f"a batch is not submitted ({self.producer.refusals[-3:]})"
        records = [self.farm.ledger.batch(plan.batch) for plan in self.producer.plans]
        left = [
            f"{r.name} {r.state} {r.paused} {r.done}+{r.failed}+{r.cancelled}, {r.drafted} drafts, of {r.total}"
            for r in records
            if r.state != "complete"
        ]
        return f"{left}, parts to flush {self.farm.ledger.full_parts()}"

    # -- what its user does ----------------------------------------------------------------------------------

    def _stop_commands(self) -> None:
        self.producer.kill_soon()
        self.curator.kill_soon()

    def _drain(self, replica: Replica) -> bool:
        """Request the end of a worker by the ledger; return whether it could be."""
        try:
            for worker in self.observer.worker_records("mini" if replica.name == "worker-mini" else ALIAS):
                if any(f"-{pid}-" in worker.name for pid in replica.worker_pids()):
                    return self.observer.request_drain(worker.name)
        except UnavailableError as error:
            self.injector.note(f"there is no drain: {error}")
        return False

    def _pause_soon(self) -> None:
        self.pause_due = True

    def _runs_long(self, now: float) -> bool:
        """Return whether a long job has been leased for some time, so that it probably runs."""
        leased: set[tuple[str, int]] = set()
        try:
            for plan in self.producer.plans:
                if plan.long and self.observer.batch(plan.batch).state in ACTIVE:
                    states = self.observer.states(plan.batch, 0, plan.rows)
                    leased |= {(plan.batch, index) for index in plan.long if states[index] is JobState.LEASED}
        except (InputError, UnavailableError):
            return False
        self.long_since_s = {job: self.long_since_s.get(job, now) for job in leased}
        return any(now - since_s > _LONG_S for since_s in self.long_since_s.values())

    def _pause(self, now: float) -> None:
        """Pause every open batch, and have what runs of it put down."""
        self.pause_due, self.resume_s = False, now + _PAUSE_S
        for plan in self.producer.plans:
            try:
                if self.observer.batch(plan.batch).state in ACTIVE:
                    self.observer.pause(plan.batch, PausedBy.USER, now=True)
                    self.paused.add(plan.batch)
            except InputError:
                continue
            except UnavailableError as error:
                # it may have been heard
                self.paused.add(plan.batch)
                self.injector.note(f"there is no pause: {error}")
                return

    def _resume(self) -> None:
        """Let the paused batches run again, now or as soon as Redis is available."""
        for batch in sorted(self.paused):
            try:
                self.observer.resume(batch)
            except UnavailableError:
                return
            except InputError:
                # its submission had not begun
                pass
            self.paused.discard(batch)

    # -- what a killed Redis forgets -------------------------------------------------------------------------

    def _remember(self) -> None:
        since = time.monotonic() - _FORGETS_S
        entries = read_journals(self.journal)
        recent = [e for e in entries if e.what in STORES and e.outcome in FRESH and e.at_s > since]
        self.acknowledged = [entry for entry in recent if entry.what == "commit"]
        self.uncertain |= {entry.job for entry in recent if entry.what == "draft"}

    def _compare(self) -> None:
        lost = forgotten(self.farm, self.acknowledged)
        self.injector.note("Redis is back", acknowledged=len(self.acknowledged), forgotten=len(lost))
        self.forgotten += lost


def _problem_at(address: str) -> str:
    """Return why a worker is not ready, or an empty text."""
    try:
        status, text = http_get(address, "/readyz")
    except OSError as error:
        return str(error)
    return "" if status == HTTPStatus.OK else text or str(status)
