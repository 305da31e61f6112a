"""Measure the time from a worker's start to its first commit, against diffusers' load and first call.

    python -m tests.bench.bench_start            # print the table
    python -m tests.bench.bench_start --write    # also write it into docs/explanation/benchmarks.md

Both are fresh processes that use all cores, and all files are in the disk cache. Both store an image. latentfarm also
commits a state and runs under a supervisor.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.bench.comparison import CORES, DTYPE, describe
from tests.bench.end_to_end import peer_environment
from tests.bench.servers import farm_servers, redis_ms, temporary_folder, until
from tests.bench.table import Conditions, Line, parse_arguments, report
from tests.bench.workload import GUIDANCE, STEPS, uniform

from latentfarm.farm import Farm
from latentfarm.local.process import ManagedProcess
from latentfarm.settings import Settings

_MANY = 64


def latentfarm_start_s(settings: Settings, folder: Path, jobs: int, **job_settings: object) -> float:
    """Return the seconds from the start of ``latentfarm worker``, with a batch waiting, to its first commit."""
    farm = Farm.open(settings)
    batch = farm.submit(uniform(jobs, **job_settings), batch=f"start-{time.monotonic_ns()}", model=settings.model)
    environment = {**settings.environment(), "OMP_NUM_THREADS": str(CORES)}
    began_ms = redis_ms(farm.ledger.redis)
    command = [sys.executable, "-m", "latentfarm", "worker"]
    child = ManagedProcess("worker", command, log=folder / "worker.log", env=environment)

    def committed() -> bool:
        child.require_alive()
        return farm.ledger.batch(batch.name).done > 0

    try:
        until(committed, "the first image")
        took_s = (farm.ledger.batch(batch.name).last_ms - began_ms) / 1000
        batch.cancel()
    finally:
        child.terminate()
        child.wait_or_kill(settings.shutdown_timeout_s + 5)
    return took_s


def diffusers_start_s(settings: Settings, *, device: str = "cpu") -> float:
    """Return the seconds in which a fresh process loads diffusers' pipeline, renders one image and stores it."""
    environment = peer_environment(settings, processes=1, threads=CORES, device=device)
    began = time.monotonic()
    command = [sys.executable, "-m", "tests.bench.diffusers_start"]
    subprocess.run(command, env={**os.environ, **environment}, check=True)
    return time.monotonic() - began


def lines_of(one: Sequence[float], many: Sequence[float], diffusers: Sequence[float]) -> list[Line]:
    count, diffusers_s = len(diffusers), median(diffusers)
    return [
        Line(f"diffusers: load, first call, PNG, put; median of {count}", diffusers_s, "s"),
        Line(f"latentfarm, one job waiting: start to its commit, median of {count}", median(one), "s"),
        Line(f"latentfarm, {_MANY} jobs waiting: start to the first commit, median of {count}", median(many), "s"),
        Line("one job waiting, against diffusers", median(one) / diffusers_s, "times", 1.2),
        Line(f"{_MANY} jobs waiting, against diffusers", median(many) / diffusers_s, "times"),
    ]


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__)
    rounds = 1 if arguments.quick else 5
    one, many, diffusers = [], [], []
    with temporary_folder() as folder, farm_servers(folder / "farm") as servers:
        settings = servers.model_copy(update={"dtype": DTYPE})
        conditions = Conditions(Farm.open(settings).ledger.ping())
        # fills the disk cache for both
        diffusers_start_s(settings)
        for _ in range(rounds):
            diffusers.append(diffusers_start_s(settings))
            one.append(latentfarm_start_s(settings, folder, 1))
            many.append(latentfarm_start_s(settings, folder, _MANY))
            times = ", ".join(f"{each[-1]:.2f} s" for each in (diffusers, one, many))
            print(f"  {times}, load {os.getloadavg()[0]:.1f}", flush=True)
    note = describe(each_job=f"{STEPS} steps, guidance {GUIDANCE:g}", both=f"1 process of {CORES} torch threads")
    return report("start", lines_of(one, many, diffusers), conditions, write=arguments.write, note=note)


if __name__ == "__main__":
    raise SystemExit(main())
