"""Measure the time from `latentfarm submit` of a million rows to the first rendered job, with idle workers.

    python -m tests.bench.bench_first_image            # print the table
    python -m tests.bench.bench_first_image --write    # also write it into docs/explanation/benchmarks.md

Two workers have loaded the bundled model, one thread each. They share the cores with the submission and the servers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench.servers import farm_servers, redis_ms, temporary_folder, until, workers
from tests.bench.table import Conditions, Line, parse_arguments, report
from tests.bench.workload import write_jsonl

from latentfarm.doorbell import queue_name
from latentfarm.farm import Farm
from latentfarm.job_state import JobState
from latentfarm.settings import Settings

_WORKERS = 2


@dataclass(frozen=True)
class FirstJob:
    """Seconds from the start of the command to the first lease, the first denoising step and the first stored image."""

    leased_s: float
    denoised_s: float
    stored_s: float


def first_job(farm: Farm, file: Path, batch: str, log: Path) -> FirstJob:
    """Submit a file, and cancel its batch after the first commit.

    Raises:
        RuntimeError: No job was committed in time.
    """
    began_ms = redis_ms(farm.ledger.redis)
    with log.open("ab") as out:
        command = subprocess.Popen(
            [sys.executable, "-m", "latentfarm", "submit", str(file), "--batch", batch],
            env={**os.environ, **farm.settings.environment()},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    until(lambda: batch in farm.ledger.batches(), "the batch")
    until(lambda: farm.ledger.batch(batch).done > 0, "the first image")
    record = farm.ledger.batch(batch)
    timings = farm.batch(batch).job(next(farm.ledger.indices(batch, JobState.DONE))).timings or {}
    # the stages from the first step to the commit; waits between them are not included, so the step began even earlier
    after_s = sum(timings[name] for name in ("denoise", "decode", "encode", "upload"))
    farm.batch(batch).cancel()
    command.wait()
    until(lambda: farm.ledger.redis.llen(queue_name(farm.settings.model)) == 0, "an empty queue of doorbells")
    stored_s = (record.last_ms - began_ms) / 1000
    return FirstJob((record.first_ms - began_ms) / 1000, stored_s - after_s, stored_s)


def measure(settings: Settings, folder: Path, *, rows: int, rounds: int) -> list[Line]:
    """Submit the file several times, the first time to workers that have rendered nothing yet."""
    file, farm = write_jsonl(folder, rows), Farm.open(settings)
    found = [first_job(farm, file, f"first-{number}", folder / "submit.log") for number in range(rounds)]
    print(*found, sep="\n", flush=True)
    fresh, warm = found[0], found[1:]
    count, denoised = len(warm), [job.denoised_s for job in warm]
    step = f"{rows:,} rows: first denoising step after"
    return [
        Line(f"{rows:,} rows: first job leased after, median of {count}", median(job.leased_s for job in warm), "s"),
        Line(f"{step}, median of {count}", median(denoised), "s", 5),
        Line(f"{step}, slowest of {count}", max(denoised), "s", 5),
        Line(f"{step}, workers that have rendered nothing yet", fresh.denoised_s, "s", 5),
        Line(f"{rows:,} rows: first image stored after, median of {count}", median(job.stored_s for job in warm), "s"),
    ]


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__)
    with temporary_folder() as folder, farm_servers(folder / "farm") as settings:
        conditions = Conditions(Farm.open(settings).ledger.ping())
        with workers(settings, _WORKERS, folder / "logs"):
            rows, rounds = (10_000, 2) if arguments.quick else (1_000_000, 6)
            lines = measure(settings, folder, rows=rows, rounds=rounds)
    return report("first-image", lines, conditions, write=arguments.write)


if __name__ == "__main__":
    raise SystemExit(main())
