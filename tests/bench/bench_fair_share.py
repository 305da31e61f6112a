"""Measure by how much a million-row batch delays a 16-row batch of the same model and priority.

    python -m tests.bench.bench_fair_share            # print the table
    python -m tests.bench.bench_fair_share --write    # also write it into docs/explanation/benchmarks.md

One worker serves the bundled model: 64 x 64 pixels, 8 steps. The small batch runs in turn alone, with the large batch
paused, and beside the large batch.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from tests.bench.servers import farm_servers, redis_ms, temporary_folder, until, workers
from tests.bench.table import Conditions, Line, parse_arguments, report
from tests.bench.workload import prompt_of, write_text

from latentfarm.batch import Batch
from latentfarm.farm import Farm
from latentfarm.settings import Settings
from latentfarm.submission.request import SubmitOptions

_SMALL_ROWS = 16
_JOB: dict[str, Any] = {"num_inference_steps": 8, "width": 64, "height": 64}


def small_batch_s(farm: Farm, name: str) -> float:
    """Submit a small batch. Return the seconds from the call to its last commit."""
    began_ms = redis_ms(farm.ledger.redis)
    batch = farm.submit([prompt_of(number) for number in range(_SMALL_ROWS)], batch=name, **_JOB)
    status = batch.wait(timeout_s=300)
    if status.done != _SMALL_ROWS:
        raise RuntimeError(f"{status}")
    return (farm.ledger.batch(name).last_ms - began_ms) / 1000


def resume(large: Batch) -> None:
    """Resume the large batch and wait until it is well under way."""
    before = large.status().done
    large.resume()
    until(lambda: large.status().done >= before + 2 * _SMALL_ROWS, "images of the large batch")


def pause(large: Batch) -> None:
    """Pause the large batch and wait until none of its jobs is leased."""
    large.pause()
    until(lambda: large.status().leased == 0, "the end of the leased jobs")


def measure(settings: Settings, folder: Path, *, rows: int, rounds: int) -> list[Line]:
    """Run the small batch alone and beside the large one, in turn. Return the table's lines."""
    farm = Farm.open(settings)
    large = farm.submit(write_text(folder, rows), batch="large", options=SubmitOptions(validate_first=False), **_JOB)
    pause(large)
    small_batch_s(farm, "warm-up")
    alone, beside = [], []
    for number in range(rounds):
        alone.append(small_batch_s(farm, f"alone-{number}"))
        resume(large)
        beside.append(small_batch_s(farm, f"beside-{number}"))
        pause(large)
    print(alone, beside, flush=True)
    large.cancel()
    alone_s, beside_s = statistics.median(alone), statistics.median(beside)
    return [
        Line(f"{_SMALL_ROWS} rows on an idle farm, median of {rounds}", alone_s, "s"),
        Line(f"{_SMALL_ROWS} rows beside a running batch of {rows:,}, median of {rounds}", beside_s, "s"),
        Line("beside the large batch against idle", beside_s / alone_s, "times", 3),
    ]


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__)
    with temporary_folder() as folder, farm_servers(folder / "farm") as settings:
        conditions = Conditions(Farm.open(settings).ledger.ping())
        with workers(settings, 1, folder / "logs"):
            rows, rounds = (10_000, 1) if arguments.quick else (1_000_000, 5)
            lines = measure(settings, folder, rows=rows, rounds=rounds)
    return report("fair-share", lines, conditions, write=arguments.write)


if __name__ == "__main__":
    raise SystemExit(main())
