"""The processes of a run, Redis among them, and the hand that lays faults on them."""

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
from tests.chaos.fork_server import Born, Nursery
from tests.chaos.network import Link, Network, S3Front

from latentfarm.local.process import ManagedProcess
from latentfarm.local.redis_server import socket_path, start_redis

#: a worker told to end has ended by then: the promised 25 s, and what a busy machine adds
END_S = 32.0
_REBIRTH_S = 0.3
#: what a fault of Redis or the store takes to be over, for connections to be made anew
_AFTERMATH_S = 3.0
_TICK_S = 0.05


@dataclass
class Seat:
    """A worker's place: how it is started, and the process that has it now."""

    name: str
    entry: str
    arguments: Mapping[str, Any]
    env: Mapping[str, str]
    link: Link
    born: Born | None = None
    stopped: bool = False
    held: bool = False
    #: when it was told to end, or was killed, in seconds of CLOCK_MONOTONIC
    told_s: float | None = None
    killed: bool = False
    gone_s: float | None = None

    @property
    def sound(self) -> bool:
        """Whether nothing befalls it now."""
        return self.born is not None and not (self.stopped or self.held or self.killed) and self.told_s is None


@dataclass(frozen=True)
class Kill:
    """A process that was killed with what it held."""

    at_s: float
    pid: int


@dataclass(frozen=True)
class Return:
    """Redis is back for these workers, to which nothing else was done."""

    at_s: float
    pids: tuple[int, ...]


@dataclass
class Happened:
    """What befell the processes, as far as figures are made of it."""

    faults: list[str] = field(default_factory=list)
    #: from when to when Redis or the store was not whole
    disturbances: list[tuple[float, float]] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    returns: list[Return] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)


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


class Ground:
    """Everything that faults are laid on.

    ``before_redis_dies`` and ``after_redis_is_back`` are called around a kill -9 of Redis, while nothing reaches it.
    """

    def __init__(self, folder: Path, network: Network, nursery: Nursery, redis: RedisHost) -> None:
        self.folder = folder
        self.network = network
        self.nursery = nursery
        self.redis = redis
        self.seats: list[Seat] = []
        self.links: list[Link] = []
        self.front: S3Front | None = None
        self.happened = Happened()
        self.doom_producer: Callable[[], None] = lambda: None
        self.before_redis_dies: Callable[[], None] = lambda: None
        self.after_redis_is_back: Callable[[], None] = lambda: None
        self._events = (folder / "events.jsonl").open("a")
        self._began_s = time.monotonic()

    def close(self) -> None:
        """Close what was opened here."""
        self._events.close()

    def note(self, what: str, **more: Any) -> None:
        """Write an event down."""
        self._events.write(json.dumps({"at_s": time.monotonic(), "what": what, **more}) + "\n")
        self._events.flush()
        text = " ".join(f"{key}={value}" for key, value in more.items())
        print(f"{time.monotonic() - self._began_s:7.1f} s  {what} {text}", file=sys.stderr, flush=True)

    def link(self, *, seed: int) -> Link:
        """Make another way to Redis."""
        made = Link(self.network, self.redis.socket, seed=seed)
        self.links.append(made)
        return made

    # -- workers ---------------------------------------------------------------------------------------------

    def fill(self, seat: Seat) -> None:
        """Start the worker of a seat."""
        (self.folder / "logs").mkdir(exist_ok=True)
        log = self.folder / "logs" / f"{seat.name}.log"
        seat.born = self.nursery.start(seat.name, seat.entry, seat.arguments, env=seat.env, log=log)
        seat.stopped, seat.told_s, seat.killed, seat.gone_s = False, None, False, None

    def mend(self) -> None:
        """Start workers anew that have ended; kill those that were told to end and do not."""
        now = time.monotonic()
        for seat in self.seats:
            if seat.born is None:
                continue
            code = seat.born.exit_code()
            if code is None:
                self._press(seat, now)
            elif seat.gone_s is None:
                seat.gone_s = now
                self._note_end(seat, code, now)
            elif now > seat.gone_s + _REBIRTH_S:
                self.fill(seat)

    def _press(self, seat: Seat, now: float) -> None:
        if seat.told_s is not None and now > seat.told_s + END_S and not seat.killed:
            self.happened.violations.append(f"{seat.name} had not ended {END_S:g} s after SIGTERM")
            self.kill(seat)

    def _note_end(self, seat: Seat, code: int, now: float) -> None:
        if seat.told_s is not None and not seat.killed:
            self.happened.ends_s.append(now - seat.told_s)
            self.note("ended", worker=seat.name, code=code, after_s=round(now - seat.told_s, 1))
        elif not seat.killed:
            self.happened.unasked.append(f"{seat.name} ended unasked with exit code {code}")
            self.note("ended unasked", worker=seat.name, code=code)

    def kill(self, seat: Seat) -> None:
        """Kill -9 a worker and whatever it started."""
        assert seat.born is not None
        seat.killed = True
        self.happened.kills.append(Kill(time.monotonic(), seat.born.pid))
        seat.born.send(signal.SIGKILL)

    def end_all(self) -> None:
        """Tell all workers to end and wait for it."""
        for seat in self.seats:
            if seat.born is not None and seat.born.exit_code() is None and seat.told_s is None:
                seat.told_s = time.monotonic()
                seat.born.send(signal.SIGTERM)
        deadline = time.monotonic() + END_S + 5
        while time.monotonic() < deadline:
            living = [seat for seat in self.seats if seat.born is not None and seat.born.exit_code() is None]
            for seat in self.seats:
                if seat.born is not None and seat not in living and seat.gone_s is None:
                    seat.gone_s = time.monotonic()
                    self._note_end(seat, seat.born.exit_code() or 0, seat.gone_s)
            if not living:
                return
            for seat in living:
                self._press(seat, time.monotonic())
            time.sleep(_TICK_S)

    def calm_kills(self, within_s: float) -> list[Kill]:
        """Return the kills with no disturbance of Redis or the store so long after them."""
        troubled = self.happened.disturbances
        return [
            kill
            for kill in self.happened.kills
            if not any(start < kill.at_s + within_s and kill.at_s < end for start, end in troubled)
        ]

    # -- faults ----------------------------------------------------------------------------------------------

    def begin(self, fault: Fault) -> Callable[[], None] | None:
        """Lay a fault; return what ends it, if it lasts."""
        seat = self._sound_seat(fault.target)
        self.note(fault.kind, **({"worker": seat.name} if seat and "worker" in fault.kind else {}), s=fault.lasts_s)
        self.happened.faults.append(fault.kind)
        if "worker" in fault.kind:
            return self._befall(fault.kind, seat) if seat else None
        now = time.monotonic()
        self.happened.disturbances.append((now, now + fault.lasts_s + _AFTERMATH_S))
        if fault.kind.startswith("S3"):
            return self._befall_store(fault.kind)
        return self._befall_redis(fault.kind)

    def _sound_seat(self, first: int) -> Seat | None:
        order = [self.seats[(first + offset) % len(self.seats)] for offset in range(len(self.seats))]
        return next((seat for seat in order if seat.sound), None)

    def _befall(self, kind: str, seat: Seat) -> Callable[[], None] | None:
        assert seat.born is not None
        born, link = seat.born, seat.link
        match kind:
            case "kill -9 a worker":
                self.kill(seat)
            case "SIGTERM a worker":
                seat.told_s = time.monotonic()
                born.send(signal.SIGTERM)
            case "stop a worker past its lease":
                seat.stopped = True
                born.send(signal.SIGSTOP)
                return lambda: self._wake(seat, born)
            case "black hole for a worker":
                seat.held = True
                link.hold(back=True)
                return lambda: self._let_pass(seat, born)
            case _:
                link.eat_share = 0.1
                return lambda: setattr(link, "eat_share", 0.0)
        return None

    def _wake(self, seat: Seat, born: Born) -> None:
        seat.stopped = False
        born.send(signal.SIGCONT)

    def _let_pass(self, seat: Seat, born: Born) -> None:
        seat.held = False
        seat.link.hold(back=False)
        self.happened.returns.append(Return(time.monotonic(), (born.pid,)))

    def _befall_store(self, kind: str) -> Callable[[], None] | None:
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

    def _befall_redis(self, kind: str) -> Callable[[], None] | None:
        match kind:
            case "restart Redis":
                self.redis.end()
                self.redis.start()
                self._is_back()
            case "kill -9 Redis":
                self._kill_redis()
                self._is_back()
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
                self.doom_producer()
        return None

    def _thaw(self) -> None:
        self.redis.freeze(on=False)
        self._is_back()

    def _is_back(self) -> None:
        pids = tuple(seat.born.pid for seat in self.seats if seat.sound and seat.born is not None)
        self.happened.returns.append(Return(time.monotonic(), pids))

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
        self.after_redis_is_back()
        for link in self.links:
            link.hold(back=False)

    def heal(self) -> None:
        """End every fault."""
        for link in self.links:
            link.heal()
        if self.front is not None:
            self.front.heal()
        for seat in self.seats:
            seat.held = seat.stopped = False
            if seat.born is not None:
                seat.born.send(signal.SIGCONT)

    def run(self, faults: list[Fault], duration_s: float, tick: Callable[[], None]) -> None:
        """Lay the faults at their times, and call ``tick`` often, for ``duration_s``; then heal everything."""
        self._began_s = time.monotonic()
        began_s, to_come, to_end = time.monotonic(), list(faults), list[tuple[float, Callable[[], None]]]()
        while (now_s := time.monotonic() - began_s) < duration_s or to_end:
            for ending in [each for each in to_end if each[0] <= now_s or now_s > duration_s]:
                to_end.remove(ending)
                ending[1]()
            # Redis is frozen or whole: a second fault on it would wait for the first
            if to_come and to_come[0].at_s <= now_s < duration_s:
                fault = to_come.pop(0)
                if ends := self.begin(fault):
                    to_end.append((fault.at_s + fault.lasts_s, ends))
            self.mend()
            tick()
            time.sleep(_TICK_S)
        self.heal()
        self.note("all faults have ended")
