"""Measure images per second from queue to commit, against a plain Celery worker and against diffusers in memory.

    python -m tests.bench.bench_throughput            # print the table
    python -m tests.bench.bench_throughput --write    # also write it into docs/explanation/benchmarks.md

A short run first finds the best setup of each renderer: one process with all threads, or one process per core with one
thread each. Static batches also find their best size. Then all renderers render the same jobs in turn.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench.comparison import (
    BATCH_SIZES,
    CORES,
    PROCESS_COUNTS,
    describe,
    fastest_renderer,
    fastest_static_batches,
    largest_difference,
    run_comparison,
    start_processes,
)
from tests.bench.end_to_end import CeleryWorkers, LatentfarmWorkers, celery_workers, latentfarm_workers
from tests.bench.render_processes import Run
from tests.bench.servers import redis_server
from tests.bench.table import Line
from tests.bench.workload import GUIDANCE, STEPS, uniform

from latentfarm.settings import Settings

_LABELS = {
    "celery": "plain Celery worker, queue to object and state",
    "latentfarm": "latentfarm, queue to object and state",
    "diffusers": "diffusers `pipe(list)`, nothing encoded or stored",
    "engine": "latentfarm's engine alone, nothing encoded or stored",
}


@dataclass(frozen=True)
class Runs:
    """The runs of each renderer, taken in turn."""

    latentfarm: list[Run]
    celery: list[Run]
    diffusers: list[Run]
    engine: list[Run]


def lines_of(runs: Runs) -> list[Line]:
    rate = {name: median(run.images_per_s for run in each) for name, each in vars(runs).items()}
    cpu_s = {name: median(run.cpu_per_image_s for run in each) for name, each in vars(runs).items()}
    count, ours = len(runs.latentfarm), rate["latentfarm"]
    return [
        *(Line(f"{label}, median of {count}", rate[name], "images/s") for name, label in _LABELS.items()),
        *(Line(f"{label}: CPU an image", cpu_s[name], "s") for name, label in _LABELS.items()),
        Line("latentfarm against the plain Celery worker", ours / rate["celery"], "times", 2.5, at_least=True),
        Line("latentfarm, end to end, against `pipe(list)` alone", ours / rate["diffusers"], "times", 1, at_least=True),
        Line("latentfarm, end to end, against its engine alone", ours / rate["engine"], "", 0.93, at_least=True),
    ]


def measure(settings: Settings, folder: Path, *, quick: bool) -> tuple[list[Line], str]:
    """Find each renderer's best setup, compare one image, then render in turn. Return the lines and the note."""
    short, count, rounds, steps = (2, 4, 1, 2) if quick else (24, 64, 3, STEPS)
    sizes, process_counts = ((2,), (CORES,)) if quick else (BATCH_SIZES, PROCESS_COUNTS)
    rows, trial = (uniform(jobs, num_inference_steps=steps) for jobs in (count, short))
    with ExitStack() as stack:
        celery_redis = stack.enter_context(redis_server(folder / "celery-redis"))
        latentfarm: LatentfarmWorkers
        celery: CeleryWorkers
        latentfarm_setup, latentfarm = stack.enter_context(
            fastest_renderer(
                lambda n: latentfarm_workers(settings, n, folder / f"latentfarm-{n}"),
                trial,
                "latentfarm",
                process_counts,
            )
        )
        celery_setup, celery = stack.enter_context(
            fastest_renderer(
                lambda n: celery_workers(settings, celery_redis, n, folder / f"celery-{n}", device="cpu"),
                trial,
                "Celery",
                process_counts,
            )
        )
        static_setup = fastest_static_batches([*trial, *trial], folder, sizes, process_counts)
        diffusers = stack.enter_context(start_processes("diffusers", static_setup, folder))
        engine = stack.enter_context(start_processes("engine", latentfarm_setup, folder))
        files = [
            latentfarm.save(rows[0], folder / "latentfarm.png"),
            celery.save(rows[0], folder / "celery.png"),
            diffusers.save(rows[0], folder / "diffusers.png"),
        ]
        runs = Runs([], [], [], [])
        size = static_setup.batch_size
        diffusers.run(rows[: 2 * size], size=size)
        for _ in range(rounds):
            runs.celery.append(celery.run(rows))
            runs.latentfarm.append(latentfarm.run(rows))
            runs.diffusers.append(diffusers.run(rows, size=size))
            runs.engine.append(engine.run(rows))
            for name, each in vars(runs).items():
                print(f"  {name}: {each[-1].images_per_s:.2f} images/s, load {os.getloadavg()[0]:.1f}", flush=True)
        print("  stages:", {name: round(s, 4) for name, s in latentfarm.stage_seconds().items()}, flush=True)
        note = describe(
            each_round=f"{count} jobs of {steps} steps, guidance {GUIDANCE:g}",
            latentfarm=f"{latentfarm_setup}, {latentfarm.slots()} slots",
            Celery_worker=celery_setup,
            diffusers=static_setup,
        )
    difference = Line("one seed: largest difference between the renderers", largest_difference(*files), "of 255", 1)
    return [difference, *lines_of(runs)], note


def main() -> int:
    """Return 1 if a bar is missed."""
    return run_comparison("throughput", __doc__, measure)


if __name__ == "__main__":
    raise SystemExit(main())
