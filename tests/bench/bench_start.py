"""Measures the time from a worker's start to its first picture, jobs waiting, against diffusers' load and first call.

    python -m tests.bench.bench_start            # prints the table
    python -m tests.bench.bench_start --write    # and puts it into docs/explanation/benchmarks.md

Both are fresh processes with all cores; what they read from the disk was read before. Both end with an object stored;
ours also with a state, under a supervisor, and warm for whatever comes next.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.bench.bench_throughput import CORES, DTYPE, note
from tests.bench.end_to_end import stock_environment
from tests.bench.servers import farm_servers, redis_ms, temporary_folder, until
from tests.bench.table import Conditions, Line, parse_arguments, report
from tests.bench.workload import GUIDANCE, STEPS, uniform

from latentfarm.farm import Farm
from latentfarm.local.process import ManagedProcess
from latentfarm.settings import Settings

_MANY = 64


def our_start_s(settings: Settings, folder: Path, jobs: int, **more: object) -> float:
    """Return the seconds from the start of ``latentfarm worker``, while a batch waits, to its first commit."""
    farm = Farm.open(settings)
    batch = farm.submit(uniform(jobs, **more), batch=f"start-{time.monotonic_ns()}", model=settings.model)
    environment = {**settings.environment(), "OMP_NUM_THREADS": str(CORES)}
    began_ms = redis_ms(farm.ledger.redis)
    command = [sys.executable, "-m", "latentfarm", "worker"]
    child = ManagedProcess("worker", command, log=folder / "worker.log", env=environment)

    def drawn() -> bool:
        child.require_alive()
        return farm.ledger.batch(batch.name).done > 0

    try:
        until(drawn, "the first picture")
        took_s = (farm.ledger.batch(batch.name).last_ms - began_ms) / 1000
        batch.cancel()
    finally:
        child.terminate()
        child.wait_or_kill(settings.shutdown_timeout_s + 5)
    return took_s


def peer_start_s(settings: Settings, *, device: str = "cpu") -> float:
    """Return the seconds that a fresh process takes to load the pipe, draw one picture and store it."""
    told = stock_environment(settings, processes=1, threads=CORES, device=device)
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "tests.bench.first_image"], env={**os.environ, **told}, check=True)
    return time.monotonic() - began


def lines_of(one: Sequence[float], many: Sequence[float], peer: Sequence[float]) -> list[Line]:
    """Return the table."""
    count, peer_s = len(peer), median(peer)
    return [
        Line(f"diffusers: load, first call, PNG, put; median of {count}", peer_s, "s"),
        Line(f"latentfarm, one job waiting: start to its commit, median of {count}", median(one), "s"),
        Line(f"latentfarm, {_MANY} jobs waiting: start to the first commit, median of {count}", median(many), "s"),
        Line("one job waiting, against diffusers", median(one) / peer_s, "times", 1.2),
        Line(f"{_MANY} jobs waiting, against diffusers", median(many) / peer_s, "times"),
    ]


def main() -> int:
    """Return 1 where a bar is missed."""
    arguments = parse_arguments(__doc__)
    turns = 1 if arguments.quick else 5
    one, many, peer = [], [], []
    with temporary_folder() as folder, farm_servers(folder / "farm") as found:
        settings = found.model_copy(update={"dtype": DTYPE})
        conditions = Conditions(Farm.open(settings).ledger.ping())
        # so that both find everything in the disk's cache
        peer_start_s(settings)
        for _ in range(turns):
            peer.append(peer_start_s(settings))
            one.append(our_start_s(settings, folder, 1))
            many.append(our_start_s(settings, folder, _MANY))
            print(f"  {peer[-1]:.2f} s, {one[-1]:.2f} s, {many[-1]:.2f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    said = note(each_job=f"{STEPS} steps, guidance {GUIDANCE:g}", both=f"1 process of {CORES} torch threads")
    return report("start", lines_of(one, many, peer), conditions, write=arguments.write, note=said)


if __name__ == "__main__":
    raise SystemExit(main())
