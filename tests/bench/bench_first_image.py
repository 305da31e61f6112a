"""Measures how soon after `latentfarm submit` of a million rows the first of them is being rendered, workers being up.

    python -m tests.bench.bench_first_image            # prints the table
    python -m tests.bench.bench_first_image --write    # and puts it into docs/benchmarks.md

Two real workers hold the bundled model, one thread each; they share the two cores with the submission and the servers.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

from tests.bench.bench_submission import write_prompts
from tests.bench.servers import farm_servers, redis_ms, temporary_folder, until, workers
from tests.bench.table import Conditions, Line, parse_arguments, report

from latentfarm.farm import Farm
from latentfarm.settings import Settings

_WORKERS = 2


def first_image(farm: Farm, file: Path, batch: str, log: Path) -> tuple[float, float]:
    """Submit a file; return the seconds from the command's start to its first lease, and to its first picture.

    Raises:
        RuntimeError: neither came.
    """
    began_ms = redis_ms(farm.ledger.redis)
    with log.open("ab") as out:
        command = subprocess.Popen(
            [sys.executable, "-m", "latentfarm", "submit", str(file), "--batch", batch],
            env={**os.environ, **farm.settings.environment()},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    until(lambda: batch in farm.ledger.batches(), "a batch")
    until(lambda: farm.ledger.batch(batch).done > 0, "a picture")
    ended_ms = redis_ms(farm.ledger.redis)
    first_ms = farm.ledger.batch(batch).first_ms
    farm.batch(batch).cancel()
    command.wait()
    until(lambda: farm.ledger.redis.llen("render.mini") == 0, "the workers' rest")
    return (first_ms - began_ms) / 1000, (ended_ms - began_ms) / 1000


def measure(settings: Settings, folder: Path, *, rows: int, rounds: int) -> list[Line]:
    """Submit the file several times, cancelling each batch once its first picture is there."""
    file, farm = write_prompts(folder, rows), Farm(settings)
    found = [first_image(farm, file, f"first-{turn}", folder / "submit.log") for turn in range(rounds)]
    print(found, flush=True)
    leased, made = zip(*found, strict=True)
    return [
        Line(f"{rows:,} rows: first job under way after, median of {rounds}", statistics.median(leased), "s", 5),
        Line(f"{rows:,} rows: first job under way after, slowest", max(leased), "s", 5),
        Line(f"{rows:,} rows: first picture stored after, median", statistics.median(made), "s"),
    ]


def main() -> int:
    """Return 1 where a bar is missed."""
    arguments = parse_arguments(__doc__)
    with temporary_folder() as folder, farm_servers(folder / "farm") as settings:
        conditions = Conditions(Farm(settings).ledger.ping())
        with workers(settings, _WORKERS, folder / "logs"):
            rows, rounds = (10_000, 1) if arguments.quick else (1_000_000, 5)
            lines = measure(settings, folder, rows=rows, rounds=rounds)
    return report("first-image", lines, conditions, write=arguments.write)


if __name__ == "__main__":
    raise SystemExit(main())
