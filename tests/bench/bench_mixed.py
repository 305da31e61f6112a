"""Measure jobs of mixed steps, some without guidance, against diffusers' static batches of the same jobs.

    python -m tests.bench.bench_mixed            # print the table
    python -m tests.bench.bench_mixed --write    # also write it into docs/explanation/benchmarks.md

latentfarm runs end to end, from queue to object and state. The static batches render in memory only. First all jobs
wait from the start, which measures the throughput. Then jobs arrive one by one, which measures the time of a job.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.bench.comparison import (
    BATCH_SIZES,
    CORES,
    Runs,
    cpu_of,
    describe,
    fastest_batch_size,
    rates_of,
    run_comparison,
    run_in_turn,
    start_processes,
)
from tests.bench.end_to_end import LatentfarmWorkers, latentfarm_workers
from tests.bench.render_processes import RenderProcesses, p99
from tests.bench.table import Line
from tests.bench.workload import GUIDANCE, MIXED_STEPS, UNGUIDED_SHARE, Row, arrivals, mixed, unet_rows

from latentfarm.settings import Settings

#: the arrival rate, as a share of the throughput of static batches
_UTILISATION = 0.75
_LABELS = {
    "latentfarm": "latentfarm, queue to object and state",
    "arrival": "static batches in arrival order, as long as their longest job",
    "split": "static batches in arrival order, split by settings",
    "sorted": "static batches sorted by settings",
}


def lines_of(waiting: Runs, arriving: Runs) -> list[Line]:
    """Return the table. The peer is the faster of the two ways to batch in arrival order.

    ``waiting``: runs whose jobs all wait from the start. ``arriving``: runs whose jobs arrive one by one.
    """
    rate, cpu_s, waiting_s, arriving_s = rates_of(waiting), cpu_of(waiting), _p99_of(waiting), _p99_of(arriving)
    rounds, ours, peer = len(waiting["latentfarm"]), rate["latentfarm"], _faster_in_arrival_order(rate)
    arriving_ratio = arriving_s["latentfarm"] / arriving_s["split"]
    return [
        *(Line(f"{label}, median of {rounds}", rate[name], "images/s") for name, label in _LABELS.items()),
        *(Line(f"{label}: CPU an image", cpu_s[name], "s") for name, label in _LABELS.items()),
        *(Line(f"{_LABELS[name]}: p99 time of a job", p99_s, "s") for name, p99_s in waiting_s.items()),
        *(Line(f"{_LABELS[name]}: p99 time of an arriving job", p99_s, "s") for name, p99_s in arriving_s.items()),
        Line("latentfarm against the faster in arrival order", ours / rate[peer], "times", 1.25, at_least=True),
        Line("latentfarm against sorted batches", ours / rate["sorted"], "times", 1, at_least=True),
        Line("p99 time of a job, all waiting from the start", waiting_s["latentfarm"] / waiting_s[peer], ""),
        Line("p99 time of an arriving job, against split batches", arriving_ratio, "", 0.6),
    ]


def _p99_of(runs: Runs) -> dict[str, float]:
    """Return the 99th percentile of the times of each renderer's jobs, those of all rounds together."""
    return {name: p99([seconds for run in each for seconds in run.job_s]) for name, each in runs.items()}


def _faster_in_arrival_order(rate: dict[str, float]) -> str:
    return max(("arrival", "split"), key=rate.__getitem__)


def measure_arriving(
    latentfarm: LatentfarmWorkers, diffusers: RenderProcesses, rows: list[Row], size: int, rounds: int, per_s: float
) -> Runs:
    """Let the jobs arrive one by one, at other times in each round."""
    runs: Runs = {"latentfarm": [], "split": []}
    for number in range(rounds):
        arrive_s = arrivals(len(rows), per_s, seed=number)
        runs["latentfarm"].append(latentfarm.run_arriving(rows, arrive_s))
        runs["split"].append(diffusers.run_arriving(rows, arrive_s, size=size, order="split"))
        for name, each in runs.items():
            print(f"  {name}: p99 {each[-1].p99_s:.2f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    return runs


def measure(settings: Settings, folder: Path, *, quick: bool) -> tuple[list[Line], str]:
    """Render with all renderers in turn, first jobs that wait, then jobs that arrive. Return the lines and the note."""
    # a process has 32 of the jobs: with batches of 32, arrival order would be sorted order
    count, rounds, sizes = (4, 1, (2,)) if quick else (64, 2, BATCH_SIZES[:-1])
    rows = mixed(count)
    with ExitStack() as stack:
        latentfarm = stack.enter_context(latentfarm_workers(settings, CORES, folder / "latentfarm"))
        diffusers = stack.enter_context(start_processes("diffusers", folder))
        latentfarm.warm_up()
        size = fastest_batch_size(diffusers, sizes)
        static = {order: partial(diffusers.run, rows, size=size, order=order) for order in ("split", "sorted")}
        waiting = run_in_turn({"latentfarm": partial(latentfarm.run, rows), **static}, rounds)
        # it takes longest, and it is seldom the faster one
        waiting |= run_in_turn({"arrival": partial(diffusers.run, rows, size=size, order="arrival")}, rounds=1)
        rate = rates_of(waiting)
        per_s = _UTILISATION * rate[_faster_in_arrival_order(rate)]
        arriving = measure_arriving(latentfarm, diffusers, rows, size, rounds, per_s)
        note = describe(
            each_round=f"{count} jobs with {', '.join(map(str, MIXED_STEPS))} steps at random, {UNGUIDED_SHARE:.0%} "
            f"without guidance, the others with {GUIDANCE:g}: {unet_rows(rows):,} rows of the U-Net",
            arriving_jobs=f"{per_s:.2f} a second, {_UTILISATION:.0%} of the rate of the faster in arrival order; p99 "
            "is that of the jobs of all rounds together",
            each_renderer=f"{CORES} processes of 1 torch thread",
            latentfarm=f"{latentfarm.slots()} slots",
            diffusers=f"batches of {size}",
        )
    return lines_of(waiting, arriving), note


def main() -> int:
    """Return 1 if a bar is missed."""
    return run_comparison("mixed", __doc__, measure)


if __name__ == "__main__":
    raise SystemExit(main())
