"""Measure jobs of mixed steps, some without guidance, against diffusers' static batches of the same jobs.

    python -m tests.bench.bench_mixed            # print the table
    python -m tests.bench.bench_mixed --write    # also write it into docs/explanation/benchmarks.md

latentfarm runs end to end, from queue to object and state. The static batches render in memory only. First all jobs
wait from the start, which measures the throughput. Then jobs arrive one by one, which measures the time of a job.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from tests.bench.comparison import (
    BATCH_SIZES,
    CORES,
    PROCESS_COUNTS,
    describe,
    fastest_renderer,
    fastest_static_batches,
    run_comparison,
    start_processes,
)
from tests.bench.end_to_end import LatentfarmWorkers, latentfarm_workers
from tests.bench.render_processes import RenderProcesses, Run
from tests.bench.table import Line
from tests.bench.workload import GUIDANCE, MIXED_STEPS, UNGUIDED_SHARE, Row, arrivals, mixed, unet_rows, uniform

from latentfarm.settings import Settings

#: static batches in arrival order
_IN_ARRIVAL_ORDER = ("arrival", "split")
_ORDERS = (*_IN_ARRIVAL_ORDER, "sorted")
#: the arrival rate, as a share of the throughput of static batches
_UTILISATION = 0.75
_LABELS = {
    "latentfarm": "latentfarm, queue to object and state",
    "arrival": "static batches in arrival order, as long as their longest job",
    "split": "static batches in arrival order, split by settings",
    "sorted": "static batches sorted by settings",
}

#: runs by the keys of ``_LABELS``
Runs = dict[str, list[Run]]


def lines_of(waiting: Runs, arriving: Runs) -> list[Line]:
    """Return the table. The peer is the faster of the two ways to batch in arrival order.

    ``waiting``: runs whose jobs all wait from the start. ``arriving``: runs whose jobs arrive one by one.
    """
    rate = {name: median(run.images_per_s for run in each) for name, each in waiting.items()}
    cpu_s = {name: median(run.cpu_per_image_s for run in each) for name, each in waiting.items()}
    p99_s = {name: median(run.p99_s for run in each) for name, each in waiting.items()}
    arriving_s = {name: median(run.p99_s for run in each) for name, each in arriving.items()}
    count, peer, ours = len(waiting["latentfarm"]), max(_IN_ARRIVAL_ORDER, key=rate.__getitem__), rate["latentfarm"]
    arriving_ratio = arriving_s["latentfarm"] / min(arriving_s[order] for order in _IN_ARRIVAL_ORDER)
    return [
        *(Line(f"{label}, median of {count}", rate[name], "images/s") for name, label in _LABELS.items()),
        *(Line(f"{label}: CPU an image", cpu_s[name], "s") for name, label in _LABELS.items()),
        *(Line(f"{label}: p99 time of a job", p99_s[name], "s") for name, label in _LABELS.items()),
        *(Line(f"{_LABELS[name]}: p99 time of an arriving job", p99, "s") for name, p99 in arriving_s.items()),
        Line("latentfarm against the faster in arrival order", ours / rate[peer], "times", 1.4, at_least=True),
        Line("latentfarm against sorted batches", ours / rate["sorted"], "times", 1, at_least=True),
        Line("p99 time of a job, all waiting from the start", p99_s["latentfarm"] / p99_s[peer], "", 0.5),
        Line("p99 time of an arriving job", arriving_ratio, "", 0.5),
    ]


def measure_waiting(
    latentfarm: LatentfarmWorkers, diffusers: RenderProcesses, rows: list[Row], size: int, rounds: int
) -> Runs:
    runs: Runs = {name: [] for name in _LABELS}
    for _ in range(rounds):
        runs["latentfarm"].append(latentfarm.run(rows))
        for order in _ORDERS:
            runs[order].append(diffusers.run(rows, size=size, order=order))
        for name, each in runs.items():
            print(f"  {name}: {each[-1].images_per_s:.2f} images/s, load {os.getloadavg()[0]:.1f}", flush=True)
    return runs


def measure_arriving(
    latentfarm: LatentfarmWorkers, diffusers: RenderProcesses, rows: list[Row], size: int, rounds: int, per_s: float
) -> Runs:
    arrive_s = arrivals(len(rows), per_s)
    runs: Runs = {name: [] for name in ("latentfarm", *_IN_ARRIVAL_ORDER)}
    for _ in range(rounds):
        runs["latentfarm"].append(latentfarm.run_arriving(rows, arrive_s))
        for order in _IN_ARRIVAL_ORDER:
            runs[order].append(diffusers.run_arriving(rows, arrive_s, size=size, order=order))
        for name, each in runs.items():
            print(f"  {name}: p99 {each[-1].p99_s:.2f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    return runs


def measure(settings: Settings, folder: Path, *, quick: bool) -> tuple[list[Line], str]:
    """Find each renderer's best setup, then render in turn. Return the lines and the note."""
    short, count, rounds = (2, 4, 1) if quick else (16, 96, 3)
    sizes, process_counts = ((2,), (CORES,)) if quick else (BATCH_SIZES, PROCESS_COUNTS)
    rows, trial = mixed(count), mixed(short)
    with ExitStack() as stack:
        latentfarm: LatentfarmWorkers
        latentfarm_setup, latentfarm = stack.enter_context(
            fastest_renderer(
                lambda n: latentfarm_workers(settings, n, folder / f"latentfarm-{n}"),
                trial,
                "latentfarm",
                process_counts,
            )
        )
        static_setup = fastest_static_batches(uniform(2 * short), folder, sizes, process_counts)
        size = static_setup.batch_size
        diffusers = stack.enter_context(start_processes("diffusers", static_setup, folder))
        diffusers.run(uniform(size * static_setup.processes, num_inference_steps=2), size=size)
        waiting = measure_waiting(latentfarm, diffusers, rows, size, rounds)
        peer_rate = max(median(run.images_per_s for run in waiting[name]) for name in _IN_ARRIVAL_ORDER)
        per_s = _UTILISATION * peer_rate
        arriving = measure_arriving(latentfarm, diffusers, rows, size, rounds, per_s)
        note = describe(
            each_round=f"{count} jobs with {', '.join(map(str, MIXED_STEPS))} steps at random, {UNGUIDED_SHARE:.0%} "
            f"without guidance, the others with {GUIDANCE:g}: {unet_rows(rows):,} rows of the U-Net",
            arriving_jobs=f"{per_s:.2f} a second, {_UTILISATION:.0%} of the rate of the faster in arrival order",
            latentfarm=f"{latentfarm_setup}, {latentfarm.slots()} slots",
            diffusers=static_setup,
        )
    return lines_of(waiting, arriving), note


def main() -> int:
    """Return 1 if a bar is missed."""
    return run_comparison("mixed", __doc__, measure)


if __name__ == "__main__":
    raise SystemExit(main())
