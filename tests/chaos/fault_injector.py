"""The processes of a run, Redis among them, and the faults that are injected into them."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.chaos.fake_worker import KILLS, LOSES_DEVICE
from tests.chaos.fault_log import FaultLog, Kill, Replica, Return, Spell
from tests.chaos.faults import WORKER_KINDS, Fault, seeded
from tests.chaos.network import Link, Network
from tests.chaos.redis_host import PASSWORD, USER, RedisHost
from tests.chaos.s3_front import MISSING_S, SHARE, S3Front
from tests.support.fork_server import ForkServer

from latentfarm.errors import UnavailableError
from latentfarm_worker.supervise.exit_codes import EXIT_CRASH_LOOP, EXIT_RESTART, EXIT_UNAVAILABLE

#: a worker has ended this long after SIGTERM: the promised 25 s, and a margin for a busy machine
END_S = 32.0
_RESTART_S = 0.3
#: after a fault of Redis or the store, connections take this long to be restored
_AFTERMATH_S = 3.0
_TICK_S = 0.05
#: kinds without an end after which a worker works again: it does not, or at once
_ENDLESS = frozenset(
    {"kill -9 a worker", "SIGTERM a worker", "drain a worker", "kill -9 the producer", "pause batches at once"}
)
#: a fault of the store: its attribute of the front, and its value
_STORE_FAULTS: dict[str, tuple[str, Any]] = {
    "S3: 30% 503": ("refuse_share", SHARE),
    "S3: 10% resets": ("reset_share", 0.1),
    "S3: slow": ("slow_s", 0.5),
    "S3: down": ("down", True),
    "S3: frozen": ("frozen", True),
    "S3: truncated bodies": ("truncate_share", SHARE),
    "S3: errors within 200": ("error_share", SHARE),
    "S3: 404 after a put": ("missing_s", MISSING_S),
    "S3: clock five minutes off": ("skew_s", 300.0),
}


#: seconds in which a supervisor ends that does not restart its worker
_GIVING_UP_S = 2.0


class FaultInjector:
    """Injects faults into everything that can have them.

    ``before_redis_dies`` and ``after_redis_returns`` are called around a SIGKILL of Redis, when no connection
    reaches it. ``drain`` requests a worker's end, and ``pause`` puts down what runs for some seconds.
    """

    def __init__(self, folder: Path, network: Network, fork_server: ForkServer, redis: RedisHost, *, seed: int) -> None:
        self.folder = folder
        self.network = network
        self.fork_server = fork_server
        self.redis = redis
        self.deeds = folder / "deeds"
        self.deeds.mkdir()
        self._random = seeded(seed)
        self.replicas: list[Replica] = []
        self.links: list[Link] = []
        self.front: S3Front | None = None
        self.faults_seen = FaultLog()
        self.stop_producer: Callable[[], None] = lambda: None
        self.drain: Callable[[Replica], bool] = lambda _: False
        self.pause: Callable[[], None] = lambda: None
        self.before_redis_dies: Callable[[], None] = lambda: None
        self.after_redis_returns: Callable[[], None] = lambda: None
        self._events = (folder / "events.jsonl").open("a")
        self._began_s = time.monotonic()

    def close(self) -> None:
        """Close what was opened here."""
        self._events.close()

    def note(self, what: str, **more: Any) -> None:
        """Record an event."""
        self._events.write(json.dumps({"at_s": time.monotonic(), "what": what, **more}) + "\n")
        self._events.flush()
        text = " ".join(f"{key}={value}" for key, value in more.items())
        print(f"{time.monotonic() - self._began_s:7.1f} s  {what} {text}", file=sys.stderr, flush=True)

    def link(self, *, seed: int) -> Link:
        """Return a new proxy in front of Redis."""
        made = Link(self.network, self.redis.socket, seed=seed, user=f"{USER}:{PASSWORD}")
        self.links.append(made)
        return made

    # -- workers ---------------------------------------------------------------------------------------------

    def fill(self, replica: Replica) -> None:
        """Start the worker of a replica."""
        (self.folder / "logs").mkdir(exist_ok=True)
        log = self.folder / "logs" / f"{replica.name}.log"
        replica.process = self.fork_server.start(
            replica.name, replica.entry, replica.arguments, env=replica.env, log=log
        )
        replica.stopped, replica.signalled_s, replica.killed, replica.gone_s = False, None, False, None
        replica.drained = False

    def mend(self) -> None:
        """Restart workers that have ended; kill those that ignore SIGTERM."""
        now = time.monotonic()
        for replica in self.replicas:
            if replica.process is None:
                continue
            code = replica.process.exit_code()
            if code is None:
                self._enforce_end(replica, now)
            elif replica.gone_s is None:
                replica.gone_s = now
                self._note_end(replica, code, now)
            elif now > replica.gone_s + _RESTART_S:
                self.fill(replica)

    def _enforce_end(self, replica: Replica, now: float) -> None:
        if replica.signalled_s is not None and now > replica.signalled_s + END_S and not replica.killed:
            self.faults_seen.violations.append(f"{replica.name} had not ended {END_S:g} s after SIGTERM")
            self.kill(replica)
            replica.killed = True
            assert replica.process is not None
            replica.process.send(signal.SIGKILL)

    def _note_end(self, replica: Replica, code: int, now: float) -> None:
        if replica.signalled_s is not None and not replica.killed:
            self.faults_seen.ends_s.append(now - replica.signalled_s)
            self.note("ended", worker=replica.name, code=code, after_s=round(now - replica.signalled_s, 1))
        elif replica.drained and code == 0:
            self.note("drained", worker=replica.name)
        elif not replica.killed:
            self.note("ended unexpectedly", worker=replica.name, code=code)
            problem = f"{replica.name} ended unexpectedly with exit code {code}"
            self.faults_seen.unexpected.append(problem)
            pid = replica.process.pid if replica.process else 0
            deed = {-signal.SIGKILL: KILLS, EXIT_RESTART: LOSES_DEVICE}.get(code)
            # scheduled kills without an image in between are like a broken device
            abandoned = code == EXIT_CRASH_LOOP and now < replica.child_killed_s + _GIVING_UP_S
            if code != EXIT_UNAVAILABLE and not abandoned and not (deed and (self.deeds / f"{deed}-{pid}").exists()):
                self.faults_seen.violations.append(problem)

    def kill(self, replica: Replica) -> None:
        """Send SIGKILL to a worker and its children."""
        assert replica.process is not None
        # a supervisor restarts its worker
        replica.killed = not replica.supervised
        replica.child_killed_s = time.monotonic()
        self.faults_seen.kills += [Kill(time.monotonic(), pid) for pid in replica.worker_pids()]
        replica.send(signal.SIGKILL)

    def end_all(self) -> None:
        """Send SIGTERM to all workers and wait for their end."""
        for replica in self.replicas:
            if replica.process is not None and replica.process.exit_code() is None and replica.signalled_s is None:
                replica.signalled_s = time.monotonic()
                replica.send(signal.SIGTERM)
        deadline = time.monotonic() + END_S + 5
        while time.monotonic() < deadline:
            living = [
                replica
                for replica in self.replicas
                if replica.process is not None and replica.process.exit_code() is None
            ]
            for replica in self.replicas:
                if replica.process is not None and replica not in living and replica.gone_s is None:
                    replica.gone_s = time.monotonic()
                    self._note_end(replica, replica.process.exit_code() or 0, replica.gone_s)
            if not living:
                return
            for replica in living:
                self._enforce_end(replica, time.monotonic())
            time.sleep(_TICK_S)

    def calm_kills(self, within_s: float) -> list[Kill]:
        """Return the kills that no fault of Redis or the store overlaps within ``within_s`` seconds."""
        troubled = self.faults_seen.disturbances
        return [
            kill
            for kill in self.faults_seen.kills
            if not any(start < kill.at_s + within_s and kill.at_s < end for start, end in troubled)
        ]

    # -- faults ----------------------------------------------------------------------------------------------

    def begin(self, fault: Fault) -> Callable[[], None] | None:
        """Inject a fault; return the function that ends it, if it lasts."""
        replica = self._healthy_replica(fault.target)
        self.note(
            fault.kind, **({"worker": replica.name} if replica and "worker" in fault.kind else {}), s=fault.lasts_s
        )
        self.faults_seen.faults.append(fault.kind)
        began_s, of_worker = time.monotonic(), fault.kind in WORKER_KINDS
        if of_worker:
            ends = self._fault_worker(fault.kind, replica) if replica else None
        else:
            self.faults_seen.disturbances.append((began_s, began_s + fault.lasts_s + _AFTERMATH_S))
            ends = self._fault_shared(fault.kind)

        def end() -> None:
            if ends is not None:
                ends()
            if fault.kind not in _ENDLESS:
                affected = [replica] if of_worker and replica else self.replicas
                pids = [pid for each in affected if each.healthy for pid in each.worker_pids()]
                self.faults_seen.spells.append(
                    Spell(fault.kind, began_s, time.monotonic(), tuple(pids), shared=not of_worker)
                )

        if ends is None:
            end()
            return None
        return end

    def _healthy_replica(self, first: int) -> Replica | None:
        order = [self.replicas[(first + offset) % len(self.replicas)] for offset in range(len(self.replicas))]
        return next((replica for replica in order if replica.healthy), None)

    def _fault_worker(self, kind: str, replica: Replica) -> Callable[[], None] | None:
        assert replica.process is not None
        link = replica.link
        match kind:
            case "kill -9 a worker":
                self.kill(replica)
            case "SIGTERM a worker":
                replica.signalled_s = time.monotonic()
                replica.send(signal.SIGTERM)
            case "drain a worker":
                replica.drained = self.drain(replica)
            case "stop a worker past its lease":
                replica.stopped = True
                replica.send(signal.SIGSTOP)
                return lambda: self._wake(replica)
            case "black hole for a worker":
                replica.held = True
                link.hold(back=True)
                return lambda: self._release_link(replica)
            case _:
                link.eat_share = 0.1
                return lambda: setattr(link, "eat_share", 0.0)
        return None

    def _wake(self, replica: Replica) -> None:
        replica.stopped = False
        replica.send(signal.SIGCONT)

    def _release_link(self, replica: Replica) -> None:
        replica.held = False
        replica.link.hold(back=False)
        self.faults_seen.returns.append(Return(time.monotonic(), tuple(replica.worker_pids())))

    def _fault_shared(self, kind: str) -> Callable[[], None] | None:
        if kind in _STORE_FAULTS:
            return self._fault_store(kind)
        if kind.startswith("Redis: ") or "replica" in kind:
            try:
                return self._fault_redis_answers(kind)
            except UnavailableError as error:
                # the replica has not caught up on this busy machine
                self.note(f"there is no {kind}: {error}")
                return None
        return self._fault_redis(kind)

    def _fault_store(self, kind: str) -> Callable[[], None]:
        front = self.front
        assert front is not None
        name, value = _STORE_FAULTS[kind]
        setattr(front, name, value)
        return lambda: setattr(front, name, type(value)(0))

    def _fault_redis_answers(self, kind: str) -> Callable[[], None]:
        """Have Redis refuse what changes it, or have its replica take over."""
        match kind:
            case "Redis: READONLY" | "switch over to the replica":
                self.redis.exchange()
                return self._exchange_back if kind == "Redis: READONLY" else self._switch
            case "fail over to the replica":
                self.redis.lose_primary()
                return self._promote
            case _:
                self.redis.refuse(kind.removeprefix("Redis: "), self._random)
                return self._allow

    def _fault_redis(self, kind: str) -> Callable[[], None] | None:
        match kind:
            case "restart Redis":
                self.redis.end()
                self.redis.start()
                self._note_return()
            case "kill -9 Redis":
                self._kill_redis()
                self._note_return()
            case "freeze Redis":
                self.redis.freeze(on=True)
                return self._thaw
            case "cut every connection to Redis":
                for link in self.links:
                    link.cut()
            case "delay Redis by 0.2 s":
                for link in self.links:
                    link.delay_s = 0.1
                return self._end_delays
            case "pause batches at once":
                self.pause()
            case _:
                self.stop_producer()
        return None

    def _thaw(self) -> None:
        self.redis.freeze(on=False)
        self._note_return()

    def _allow(self) -> None:
        self.redis.allow()
        self._note_return()

    def _exchange_back(self) -> None:
        try:
            self.redis.exchange()
            self._note_return()
        except UnavailableError as error:
            self.note(f"the replica stays the primary: {error}")
            self._switch()

    def _switch(self) -> None:
        """Have the proxies lead to the new primary; what is connected to the old one is cut."""
        self.redis.lead_to_primary()
        for link in self.links:
            link.cut()
        self._note_return()

    def _promote(self) -> None:
        self.before_redis_dies()
        self.faults_seen.failovers_s.append(time.monotonic())
        self.redis.promote()
        self._note_return()
        self.after_redis_returns()
        self.redis.restore_replica()

    def _note_return(self) -> None:
        pids = tuple(pid for replica in self.replicas if replica.healthy for pid in replica.worker_pids())
        self.faults_seen.returns.append(Return(time.monotonic(), pids))

    def _end_delays(self) -> None:
        for link in self.links:
            link.delay_s = 0.0

    def _kill_redis(self) -> None:
        for link in self.links:
            link.hold(back=True)
        time.sleep(_TICK_S)
        self.before_redis_dies()
        self.redis.end(kill=True)
        self.redis.start()
        self.after_redis_returns()
        for link in self.links:
            link.hold(back=False)

    def heal(self) -> None:
        """End every fault."""
        for link in self.links:
            link.heal()
        if self.front is not None:
            self.front.heal()
        for replica in self.replicas:
            replica.held = replica.stopped = False
            replica.send(signal.SIGCONT)

    def run(self, faults: list[Fault], duration_s: float, tick: Callable[[], None]) -> None:
        """Inject the faults at their times for ``duration_s`` and call ``tick`` often; then end every fault."""
        self._began_s = time.monotonic()
        began_s, to_come, to_end = time.monotonic(), list(faults), list[tuple[float, Callable[[], None]]]()
        while (now_s := time.monotonic() - began_s) < duration_s or to_end:
            for ending in [each for each in to_end if each[0] <= now_s or now_s > duration_s]:
                to_end.remove(ending)
                ending[1]()
            # a second fault on a frozen Redis would wait for the first
            if to_come and to_come[0].at_s <= now_s < duration_s:
                fault = to_come.pop(0)
                if ends := self.begin(fault):
                    to_end.append((fault.at_s + fault.lasts_s, ends))
            self.mend()
            tick()
            time.sleep(_TICK_S)
        self.heal()
        self.note("all faults have ended")
