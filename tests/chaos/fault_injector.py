"""The processes of a run, Redis among them, and the faults that are injected into them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.faults import Fault
from tests.chaos.network import Link, Network, S3Front
from tests.support.fork_server import ForkedProcess, ForkServer

from latentfarm.local.process import ManagedProcess
from latentfarm.local.redis_server import socket_path, start_redis

#: a worker has ended this long after SIGTERM: the promised 25 s, and a margin for a busy machine
END_S = 32.0
_RESTART_S = 0.3
#: after a fault of Redis or the store, connections take this long to be restored
_AFTERMATH_S = 3.0
_TICK_S = 0.05


@dataclass
class Replica:
    """How one worker is started, and its current process."""

    name: str
    entry: str
    arguments: Mapping[str, Any]
    env: Mapping[str, str]
    link: Link
    process: ForkedProcess | None = None
    stopped: bool = False
    held: bool = False
    #: when it was sent SIGTERM or killed, in seconds of CLOCK_MONOTONIC
    signalled_s: float | None = None
    killed: bool = False
    gone_s: float | None = None

    @property
    def healthy(self) -> bool:
        """Whether no fault is injected into it now."""
        return self.process is not None and not (self.stopped or self.held or self.killed) and self.signalled_s is None


@dataclass(frozen=True)
class Kill:
    """A process that was killed with what it held."""

    at_s: float
    pid: int


@dataclass(frozen=True)
class Return:
    """Redis is available again to these workers, which have no other fault."""

    at_s: float
    pids: tuple[int, ...]


@dataclass
class FaultLog:
    """The faults of a run, and what figures are computed from."""

    faults: list[str] = field(default_factory=list)
    #: start and end of each fault of Redis or the store
    disturbances: list[tuple[float, float]] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    returns: list[Return] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


class RedisHost:
    """The embedded Redis, which may be ended and started again on its data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = str(socket_path(folder))
        self._child: ManagedProcess
        self.start()

    def start(self) -> None:
        """Start it on what it has; return when it answers."""
        self._child, self.url = start_redis(self.folder, log=self.folder.parent / "redis.log")

    def end(self, *, kill: bool = False) -> None:
        """End it, by SIGTERM or kill -9."""
        if not kill:
            self._child.terminate()
        self._child.wait_or_kill(0 if kill else 20)

    def freeze(self, *, on: bool) -> None:
        """Stop it, or let it go on."""
        os.kill(self._child.pid, signal.SIGSTOP if on else signal.SIGCONT)


class FaultInjector:
    """Injects faults into everything that can have them.

    ``before_redis_dies`` and ``after_redis_returns`` are called around a SIGKILL of Redis, when no connection
    reaches it.
    """

    def __init__(self, folder: Path, network: Network, fork_server: ForkServer, redis: RedisHost) -> None:
        self.folder = folder
        self.network = network
        self.fork_server = fork_server
        self.redis = redis
        self.replicas: list[Replica] = []
        self.links: list[Link] = []
        self.front: S3Front | None = None
        self.faults_seen = FaultLog()
        self.stop_producer: Callable[[], None] = lambda: None
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
        made = Link(self.network, self.redis.socket, seed=seed)
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

    def _note_end(self, replica: Replica, code: int, now: float) -> None:
        if replica.signalled_s is not None and not replica.killed:
            self.faults_seen.ends_s.append(now - replica.signalled_s)
            self.note("ended", worker=replica.name, code=code, after_s=round(now - replica.signalled_s, 1))
        elif not replica.killed:
            self.faults_seen.unexpected.append(f"{replica.name} ended unexpectedly with exit code {code}")
            self.note("ended unexpectedly", worker=replica.name, code=code)

    def kill(self, replica: Replica) -> None:
        """Send SIGKILL to a worker and its children."""
        assert replica.process is not None
        replica.killed = True
        self.faults_seen.kills.append(Kill(time.monotonic(), replica.process.pid))
        replica.process.send(signal.SIGKILL)

    def end_all(self) -> None:
        """Send SIGTERM to all workers and wait for their end."""
        for replica in self.replicas:
            if replica.process is not None and replica.process.exit_code() is None and replica.signalled_s is None:
                replica.signalled_s = time.monotonic()
                replica.process.send(signal.SIGTERM)
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
        if "worker" in fault.kind:
            return self._fault_worker(fault.kind, replica) if replica else None
        now = time.monotonic()
        self.faults_seen.disturbances.append((now, now + fault.lasts_s + _AFTERMATH_S))
        if fault.kind.startswith("S3"):
            return self._fault_store(fault.kind)
        return self._fault_redis(fault.kind)

    def _healthy_replica(self, first: int) -> Replica | None:
        order = [self.replicas[(first + offset) % len(self.replicas)] for offset in range(len(self.replicas))]
        return next((replica for replica in order if replica.healthy), None)

    def _fault_worker(self, kind: str, replica: Replica) -> Callable[[], None] | None:
        assert replica.process is not None
        process, link = replica.process, replica.link
        match kind:
            case "kill -9 a worker":
                self.kill(replica)
            case "SIGTERM a worker":
                replica.signalled_s = time.monotonic()
                process.send(signal.SIGTERM)
            case "stop a worker past its lease":
                replica.stopped = True
                process.send(signal.SIGSTOP)
                return lambda: self._wake(replica, process)
            case "black hole for a worker":
                replica.held = True
                link.hold(back=True)
                return lambda: self._release_link(replica, process)
            case _:
                link.eat_share = 0.1
                return lambda: setattr(link, "eat_share", 0.0)
        return None

    def _wake(self, replica: Replica, process: ForkedProcess) -> None:
        replica.stopped = False
        process.send(signal.SIGCONT)

    def _release_link(self, replica: Replica, process: ForkedProcess) -> None:
        replica.held = False
        replica.link.hold(back=False)
        self.faults_seen.returns.append(Return(time.monotonic(), (process.pid,)))

    def _fault_store(self, kind: str) -> Callable[[], None] | None:
        front = self.front
        if front is None:
            return None
        name, value = {
            "S3: 30% 503": ("refuse_share", 0.3),
            "S3: 10% resets": ("reset_share", 0.1),
            "S3: slow": ("slow_s", 0.5),
            "S3: down": ("down", True),
        }[kind]
        setattr(front, name, value)
        return lambda: setattr(front, name, type(value)(0))

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
            case _:
                self.stop_producer()
        return None

    def _thaw(self) -> None:
        self.redis.freeze(on=False)
        self._note_return()

    def _note_return(self) -> None:
        pids = tuple(
            replica.process.pid for replica in self.replicas if replica.healthy and replica.process is not None
        )
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
            if replica.process is not None:
                replica.process.send(signal.SIGCONT)

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
