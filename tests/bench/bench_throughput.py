"""Measure images per second from queue to commit, against a plain Celery worker and against diffusers in memory.

    python -m tests.bench.bench_throughput            # print the table
    python -m tests.bench.bench_throughput --write    # also write it into docs/explanation/benchmarks.md

Every renderer has one process of one thread for each core. Static batches first find their best size. Then all
renderers render the same jobs in turn. On a CPU with instructions for bfloat16, latentfarm and the Celery worker do so
once more in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.comparison import (
    BATCH_SIZES,
    CORES,
    Runs,
    cpu_of,
    describe,
    fastest_batch_size,
    largest_difference,
    rates_of,
    run_comparison,
    run_in_turn,
    start_processes,
)
from tests.bench.end_to_end import CeleryWorkers, LatentfarmWorkers, celery_workers, latentfarm_workers
from tests.bench.servers import redis_server
from tests.bench.table import Line
from tests.bench.workload import GUIDANCE, STEPS, Row, uniform

from latentfarm.settings import Settings
from latentfarm_worker.tools.bfloat16 import bfloat16_instructions

_LABELS = {
    "celery": "plain Celery worker, queue to object and state",
    "latentfarm": "latentfarm, queue to object and state",
    "diffusers": "diffusers `pipe(list)`, nothing encoded or stored",
    "engine": "latentfarm's engine alone, nothing encoded or stored",
}


@contextmanager
def farm_and_celery(settings: Settings, folder: Path) -> Iterator[tuple[LatentfarmWorkers, CeleryWorkers]]:
    """Run both kinds of workers in the settings' dtype, each with a process for every core."""
    with (
        redis_server(folder / "redis") as redis_url,
        latentfarm_workers(settings, CORES, folder / "latentfarm") as latentfarm,
        celery_workers(settings, redis_url, CORES, folder, device="cpu") as celery,
    ):
        latentfarm.warm_up()
        yield latentfarm, celery


def lines_of(runs: Runs, many: Runs, count: int) -> list[Line]:
    """Return the lines in float32; ``many`` are the runs with more than ``count`` jobs."""
    rate, cpu_s, many_rate = rates_of(runs), cpu_of(runs), rates_of(many)
    ours, rounds = rate["latentfarm"], len(runs["latentfarm"])
    many_jobs = len(many["latentfarm"][0].job_s)
    whole = "latentfarm, end to end, against its engine alone"
    many_share = many_rate["latentfarm"] / many_rate["engine"]
    return [
        *(Line(f"{label}, median of {rounds}", rate[name], "images/s") for name, label in _LABELS.items()),
        *(Line(f"{label}: CPU an image", cpu_s[name], "s") for name, label in _LABELS.items()),
        Line("latentfarm against the plain Celery worker", ours / rate["celery"], "times", 1.5, at_least=True),
        Line("latentfarm, end to end, against `pipe(list)` alone", ours / rate["diffusers"], "times", 1, at_least=True),
        Line(f"{whole}, {count} jobs", ours / rate["engine"], "", 0.9, at_least=True),
        Line(f"{whole}, {many_jobs} jobs", many_share, "", 0.95, at_least=True),
    ]


def bfloat16_lines(
    settings: Settings, folder: Path, rows: Sequence[Row], few: Sequence[Row], rounds: int
) -> list[Line]:
    """Compare latentfarm and the Celery worker in bfloat16, which none of the others needs."""
    with farm_and_celery(settings.model_copy(update={"dtype": "bfloat16"}), folder) as (latentfarm, celery):
        runs = run_in_turn({"latentfarm": lambda: latentfarm.run(rows), "celery": lambda: celery.run(few)}, rounds)
    rate = rates_of(runs)
    ratio = rate["latentfarm"] / rate["celery"]
    return [
        *(Line(f"{_LABELS[name]}, bfloat16, median of {rounds}", each, "images/s") for name, each in rate.items()),
        Line("latentfarm against the plain Celery worker, bfloat16", ratio, "times", 1.9, at_least=True),
    ]


def measure(settings: Settings, folder: Path, *, quick: bool) -> tuple[list[Line], str]:
    """Render with all renderers in turn, and compare one image. Return the lines and the note."""
    count, many_count, rounds, steps = (4, 8, 1, 2) if quick else (64, 256, 3, STEPS)
    sizes = (2,) if quick else BATCH_SIZES
    rows, many_rows = (uniform(jobs, num_inference_steps=steps) for jobs in (count, many_count))
    # a task of Celery's renders one job, so fewer of them measure the same
    few = rows[: count // 2]
    with ExitStack() as stack:
        latentfarm, celery = stack.enter_context(farm_and_celery(settings, folder / "float32"))
        diffusers = stack.enter_context(start_processes("diffusers", folder))
        engine = stack.enter_context(start_processes("engine", folder))
        size = fastest_batch_size(diffusers, sizes)
        savers = (latentfarm.save, celery.save, diffusers.save)
        files = [save(rows[0], folder / f"{at}.png") for at, save in enumerate(savers)]
        engine.run(rows[: 4 * CORES])
        ours = {"latentfarm": lambda: latentfarm.run(rows), "engine": lambda: engine.run(rows)}
        peers = {"diffusers": lambda: diffusers.run(rows, size=size), "celery": lambda: celery.run(few)}
        runs = run_in_turn({**ours, **peers}, rounds)
        print("  stages:", {name: round(s, 4) for name, s in latentfarm.stage_seconds().items()}, flush=True)
        slots = latentfarm.slots()
        many = run_in_turn(
            {"latentfarm": lambda: latentfarm.run(many_rows), "engine": lambda: engine.run(many_rows)}, rounds=1
        )
    lines = [Line("one seed: largest difference between the renderers", largest_difference(*files), "of 255", 1)]
    lines += lines_of(runs, many, count)
    instructions = bfloat16_instructions()
    if instructions:
        lines += bfloat16_lines(settings, folder / "bfloat16", rows, few, max(1, rounds - 1))
    note = describe(
        each_round=f"{count} jobs of {steps} steps, guidance {GUIDANCE:g}",
        each_renderer=f"{CORES} processes of 1 torch thread",
        latentfarm=f"{slots} slots",
        diffusers=f"batches of {size}",
        bfloat16=instructions or "left out, this CPU has no instructions for it",
    )
    return lines, note


def main() -> int:
    """Return 1 if a bar is missed."""
    return run_comparison("throughput", __doc__, measure)


if __name__ == "__main__":
    raise SystemExit(main())
