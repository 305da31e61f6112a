"""Measures how soon after `latentfarm submit` of a million rows the first of them is being rendered, workers being up.

    python -m tests.bench.bench_first_image            # prints the table
    python -m tests.bench.bench_first_image --write    # and puts it into docs/explanation/benchmarks.md

Two real workers hold the bundled model, one thread each; they share the two cores with the submission and the servers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench.bench_submission import write_prompts
from tests.bench.servers import farm_servers, redis_ms, temporary_folder, until, workers
from tests.bench.table import Conditions, Line, parse_arguments, report

from latentfarm.doorbell import queue_name
from latentfarm.farm import Farm
from latentfarm.job_state import JobState
from latentfarm.settings import Settings

_WORKERS = 2


@dataclass(frozen=True)
class First:
    """Seconds from the command's start until a job was leased, denoised for the first time, and stored as a picture."""

    leased_s: float
    denoised_s: float
    stored_s: float


def first_image(farm: Farm, file: Path, batch: str, log: Path) -> First:
    """Submit a file, and cancel its batch once the first picture is there.

    Raises:
        RuntimeError: it did not come.
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
    until(lambda: farm.ledger.batch(batch).done > 0, "the first picture")
    record = farm.ledger.batch(batch)
    timings = farm.batch(batch).job(next(farm.ledger.indices(batch, JobState.DONE))).timings or {}
    # what lies between the first step and the commit; waiting in between is not in it, so the step began even earlier
    after_s = sum(timings[name] for name in ("denoise", "decode", "encode", "upload"))
    farm.batch(batch).cancel()
    command.wait()
    until(lambda: farm.ledger.redis.llen(queue_name(farm.settings.model)) == 0, "the workers' rest")
    stored_s = (record.last_ms - began_ms) / 1000
    return First((record.first_ms - began_ms) / 1000, stored_s - after_s, stored_s)


def measure(settings: Settings, folder: Path, *, rows: int, rounds: int) -> list[Line]:
    """Submit the file several times; the first time to workers that have loaded the model and done nothing else."""
    file, farm = write_prompts(folder, rows), Farm.open(settings)
    found = [first_image(farm, file, f"first-{turn}", folder / "submit.log") for turn in range(rounds)]
    print(*found, sep="\n", flush=True)
    fresh, warm = found[0], found[1:]
    denoised = [first.denoised_s for first in warm]
    return [
        Line(f"{rows:,} rows: first job leased after, median of {len(warm)}", median(f.leased_s for f in warm), "s"),
        Line(f"{rows:,} rows: first denoising step after, median of {len(warm)}", median(denoised), "s", 5),
        Line(f"{rows:,} rows: first denoising step after, slowest of {len(warm)}", max(denoised), "s", 5),
        Line(f"{rows:,} rows: first denoising step after, workers that never drew before", fresh.denoised_s, "s", 5),
        Line(f"{rows:,} rows: first image stored after, median of {len(warm)}", median(f.stored_s for f in warm), "s"),
    ]


def main() -> int:
    """Return 1 where a bar is missed."""
    arguments = parse_arguments(__doc__)
    with temporary_folder() as folder, farm_servers(folder / "farm") as settings:
        conditions = Conditions(Farm.open(settings).ledger.ping())
        with workers(settings, _WORKERS, folder / "logs"):
            rows, rounds = (10_000, 2) if arguments.quick else (1_000_000, 6)
            lines = measure(settings, folder, rows=rows, rounds=rounds)
    return report("first-image", lines, conditions, write=arguments.write)


if __name__ == "__main__":
    raise SystemExit(main())
