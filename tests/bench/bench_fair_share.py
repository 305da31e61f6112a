"""Measures what a 16-row batch suffers from a million-row batch of the same model and priority.

    python -m tests.bench.bench_fair_share            # prints the table
    python -m tests.bench.bench_fair_share --write    # and puts it into docs/explanation/benchmarks.md

One real worker holds the bundled model: 8 slots, pictures of 64 x 64 pixels in 8 steps. In turn, the large batch is
paused and the small one has the farm for itself, and the large one goes on and the small one comes beside it.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from tests.bench.bench_submission import prompt_of, write_text
from tests.bench.servers import farm_servers, redis_ms, temporary_folder, until, workers
from tests.bench.table import Conditions, Line, parse_arguments, report

from latentfarm.batch import Batch
from latentfarm.farm import Farm
from latentfarm.settings import Settings
from latentfarm.submission.request import SubmitOptions

_SMALL_ROWS = 16
_JOB: dict[str, Any] = {"num_inference_steps": 8, "width": 64, "height": 64}


def small_batch_s(farm: Farm, name: str) -> float:
    """Submit a small batch; return the seconds from the call to the commit of its last job."""
    began_ms = redis_ms(farm.ledger.redis)
    batch = farm.submit([prompt_of(number) for number in range(_SMALL_ROWS)], batch=name, **_JOB)
    status = batch.wait(timeout_s=300)
    if status.done != _SMALL_ROWS:
        raise RuntimeError(f"{status}")
    return (farm.ledger.batch(name).last_ms - began_ms) / 1000


def run_on(large: Batch) -> None:
    """Let the large batch go on, and wait until it is well under way."""
    before = large.status().done
    large.resume()
    until(lambda: large.status().done >= before + 2 * _SMALL_ROWS, "pictures of the large batch")


def hold(large: Batch) -> None:
    """Pause the large batch, and wait until nothing of it runs."""
    large.pause()
    until(lambda: large.status().leased == 0, "the end of what runs")


def measure(settings: Settings, folder: Path, *, rows: int, rounds: int) -> list[Line]:
    """Run the small batch alone and beside the large one, in turn."""
    farm = Farm.open(settings)
    large = farm.submit(write_text(folder, rows), batch="large", rules=SubmitOptions(check_first=False), **_JOB)
    hold(large)
    small_batch_s(farm, "warm-up")
    alone, beside = [], []
    for turn in range(rounds):
        alone.append(small_batch_s(farm, f"alone-{turn}"))
        run_on(large)
        beside.append(small_batch_s(farm, f"beside-{turn}"))
        hold(large)
    print(alone, beside, flush=True)
    large.cancel()
    alone_s, beside_s = statistics.median(alone), statistics.median(beside)
    return [
        Line(f"{_SMALL_ROWS} rows on an idle farm, median of {rounds}", alone_s, "s"),
        Line(f"{_SMALL_ROWS} rows beside a running batch of {rows:,}, median of {rounds}", beside_s, "s"),
        Line("beside the large batch against idle", beside_s / alone_s, "times", 3),
    ]


def main() -> int:
    """Return 1 where a bar is missed."""
    arguments = parse_arguments(__doc__)
    with temporary_folder() as folder, farm_servers(folder / "farm") as settings:
        conditions = Conditions(Farm.open(settings).ledger.ping())
        with workers(settings, 1, folder / "logs"):
            rows, rounds = (10_000, 1) if arguments.quick else (1_000_000, 5)
            lines = measure(settings, folder, rows=rows, rounds=rounds)
    return report("fair-share", lines, conditions, write=arguments.write)


if __name__ == "__main__":
    raise SystemExit(main())
