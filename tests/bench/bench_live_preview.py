"""Measure what it costs a worker that a client watches its slots, and that none does.

    python -m tests.bench.bench_live_preview            # print the table
    python -m tests.bench.bench_live_preview --write    # also write it into docs/explanation/benchmarks.md

The render loop of a worker runs here, the server in a process of its own. A client watches for some seconds, then not
for as long, and so on: each pair of such periods is compared, in alternating order, so that what else happens on the
machine cancels out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from statistics import fmean, median
from threading import Event, Thread

import torch
from tests.bench.bench_server import http_server
from tests.bench.servers import farm_servers, temporary_folder, until
from tests.bench.table import Conditions, Line, parse_arguments, report
from tests.bench.worker_engine import load
from tests.bench.workload import uniform

from latentfarm.farm import Farm
from latentfarm.settings import Settings
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.service.render_loop import RenderLoop

_SLOTS, _MICRO_BATCH, _WORKER = 4, 8, "watched"
#: jobs that keep the slots busy, of so many steps that hardly any ends within a period
_JOBS, _STEPS = 2_000, 500


class Meter:
    """Counts the steps of a render loop and the calls of its reporter, and the time of the engine's thread in these."""

    def __init__(self, loop: RenderLoop) -> None:
        self.loop = loop
        self.steps = self.reports = 0
        self.report_s = 0.0
        engine, reporter = loop._engine, loop._slots
        step, send = engine.step, reporter.report

        def counted_step() -> object:
            self.steps += 1
            return step()

        def timed_report() -> None:
            began = time.perf_counter()
            send()
            self.report_s += time.perf_counter() - began
            self.reports += 1

        engine.step, reporter.report = counted_step, timed_report  # type: ignore[method-assign,assignment]

    def measure(self, seconds: float) -> Period:
        """Measure so many seconds, from the end of a step to the end of another."""
        first = self._next_step()
        began, cpu_s, report_s, reports = time.perf_counter(), time.process_time(), self.report_s, self.reports
        time.sleep(seconds)
        steps = self._next_step() - first
        return Period(
            steps,
            time.perf_counter() - began,
            time.process_time() - cpu_s,
            self.report_s - report_s,
            self.reports - reports,
        )

    def _next_step(self) -> int:
        before = self.steps
        while self.steps == before:
            time.sleep(0.0005)
        return self.steps


@dataclass(frozen=True)
class Period:
    """Steps, seconds, CPU seconds of the process, and seconds and calls of the reporter on the engine's thread."""

    steps: int
    wall_s: float
    cpu_s: float
    report_s: float
    reports: int

    @property
    def step_s(self) -> float:
        return self.wall_s / self.steps

    @property
    def step_cpu_s(self) -> float:
        return self.cpu_s / self.steps


@contextmanager
def watching(address: str, sizes: list[int]) -> Iterator[None]:
    """Watch the worker's slots as one client meanwhile, from the first report on; add the size of each one."""
    connection = HTTPConnection(address, timeout=60)
    connection.request("GET", f"/api/events?progress=0&worker={_WORKER}")
    answer = connection.getresponse()
    begun = Event()

    def read() -> None:
        while line := answer.readline():
            if line.startswith(b'data: {"worker"'):
                slots = json.loads(line[6:])["slots"]
                sizes.extend(len(slot["preview"]) * 3 // 4 for slot in slots if slot["preview"])
                if sizes:
                    begun.set()

    thread = Thread(target=read, daemon=True)
    thread.start()
    if not begun.wait(60):
        raise RuntimeError("no report of slots came")
    yield
    # the read of the other thread ends with the socket
    connection.sock.shutdown(2)
    thread.join(10)
    connection.close()


@contextmanager
def rendering(farm: Farm) -> Iterator[RenderLoop]:
    """Let a worker render images of many steps meanwhile."""
    engine = Engine(load("", dtype="float32", device="cpu"), slots=_SLOTS, micro_batch=_MICRO_BATCH)
    engine.warm_up()
    loop = RenderLoop(
        ledger=farm.ledger, bucket=farm.bucket, engine=engine, model="mini", worker=_WORKER, lease_ttl_s=60
    )
    farm.submit(uniform(_JOBS, num_inference_steps=_STEPS), batch="long")
    thread = Thread(target=loop.render_all, daemon=True)
    thread.start()
    try:
        until(lambda: engine.slots_taken == _SLOTS, "the first step")
        yield loop
    finally:
        loop.stop()
        thread.join(60)
        loop.close()


def measure(farm: Farm, address: str, *, rounds: int, seconds: float) -> list[Line]:
    """Return the lines of the table."""
    unwatched: list[Period] = []
    watched: list[Period] = []
    sizes: list[int] = []
    with rendering(farm) as loop:
        meter = Meter(loop)

        def measure_watched() -> None:
            with watching(address, sizes):
                watched.append(meter.measure(seconds))

        def measure_unwatched() -> None:
            # the last signal holds for some seconds
            loop._slots._until = 0.0
            until(lambda: not loop._slots.watched, "a step")
            unwatched.append(meter.measure(seconds))

        orders: tuple[tuple[Callable[[], None], ...], ...]
        orders = ((measure_unwatched, measure_watched), (measure_watched, measure_unwatched))
        meter.measure(seconds)
        for number in range(rounds):
            for each in orders[number % 2]:
                each()
        check_s = _check_s(loop)
    pairs = list(zip(unwatched, watched, strict=True))
    slower = [100 * (on.step_s / off.step_s - 1) for off, on in pairs]
    more_cpu = [100 * (on.step_cpu_s / off.step_cpu_s - 1) for off, on in pairs]
    share = [100 * on.report_s / on.wall_s for on in watched]
    step_s = median(period.step_s for period in unwatched)
    print("slower by %:", " ".join(f"{each:.2f}" for each in slower), flush=True)
    return [
        Line("no client watches: calls of the reporter", sum(period.reports for period in unwatched), "", 0),
        Line("no client watches: what is left, one check a step, of a step", 100 * check_s / step_s, "%", 0.001),
        Line(f"one client watches: a step takes longer by, median of {rounds} pairs", median(slower), "%", 1),
        Line("the same, of the CPU of the worker's process", median(more_cpu), "%"),
        Line("of the engine's thread, all calls of the reporter", fmean(share), "%", 1),
        Line(f"a step of {_SLOTS} guided images, unwatched", 1000 * step_s, "ms"),
        Line("a preview, mean", fmean(sizes), "bytes", 4_000),
    ]


def _check_s(loop: RenderLoop) -> float:
    """Return the seconds of the check that each step makes."""
    count = 1_000_000
    began = time.perf_counter()
    for _ in range(count):
        if loop._slots.watched:
            raise RuntimeError("a client watches")
    return (time.perf_counter() - began) / count


def run(settings: Settings, folder: Path, *, quick: bool) -> list[Line]:
    """Measure a worker in this process and a server in another."""
    with http_server(settings, folder) as (address, _):
        rounds, seconds = (2, 3.0) if quick else (20, 10.0)
        return measure(Farm.open(settings), address, rounds=rounds, seconds=seconds)


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__)
    # the other core is the server's and the reporter's
    torch.set_num_threads(1)
    with temporary_folder() as folder, farm_servers(folder / "farm") as settings:
        conditions = Conditions(Farm.open(settings).ledger.ping())
        lines = run(settings, folder, quick=arguments.quick)
    note = "One core renders; the server, the client and the reporter's thread have the other."
    return report("live-preview", lines, conditions, write=arguments.write, note=note)


if __name__ == "__main__":
    raise SystemExit(main())
