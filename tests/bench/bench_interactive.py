"""Measure how soon a worker begins an image for which a client waits, alone and beside a batch of a million rows.

    python -m tests.bench.bench_interactive            # print the table
    python -m tests.bench.bench_interactive --write    # also write it into docs/explanation/benchmarks.md

One worker has loaded the bundled model. The start is the time from the creation of the image's batch in the ledger to
its first step, so the manifest's way into the bucket and out of it is included.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from tests.bench.servers import farm_servers, temporary_folder, until, workers
from tests.bench.table import Conditions, Line, parse_arguments, report
from tests.bench.workload import GUIDANCE, STEPS, uniform, write_jsonl

from latentfarm.batch_kind import BatchKind
from latentfarm.farm import Farm
from latentfarm.ledger import INTERACTIVE_PRIORITY
from latentfarm.settings import Settings
from latentfarm.submission.prompts import SourceLike
from latentfarm.submission.request import SubmitOptions

#: guided images of the bundled model that one micro-batch has room for
_SLOTS, _MICRO_BATCH = 4, 8
_OPTIONS = SubmitOptions(kind=BatchKind.INTERACTIVE, priority=INTERACTIVE_PRIORITY, keep_s=3600)


@dataclass(frozen=True)
class Image:
    """Seconds to the first step of an image, of its denoising, and of the whole but the engine's part."""

    start_s: float
    denoise_s: float
    overhead_s: float

    @property
    def step_s(self) -> float:
        return self.denoise_s / STEPS


def request_image(farm: Farm, number: int) -> Image:
    """Submit one image and wait for its commit."""
    [row] = uniform(1)
    began = time.perf_counter()
    batch = farm.submit([row], batch=f"interactive-{number:016x}", options=_OPTIONS)
    while not farm.ledger.batch(batch.name).complete:
        time.sleep(0.001)
    took_s = time.perf_counter() - began
    timings = batch.job(0).timings or {}
    engine_s = sum(timings[stage] for stage in ("text", "denoise", "decode"))
    batch.delete()
    return Image(timings["queue"] + timings["wait"], timings["denoise"], took_s - engine_s)


def request_images(farm: Farm, count: int, first: int) -> list[Image]:
    """Request one image after the other, at times that do not depend on the steps of others."""
    found = []
    for number in range(first, first + count):
        time.sleep(0.05 + 0.037 * (number % 7))
        found.append(request_image(farm, number))
    return found


@contextmanager
def beside(farm: Farm, source: SourceLike, name: str, **defaults: Any) -> Iterator[None]:
    """Let a batch run meanwhile."""
    batch = farm.submit(source, batch=name, **defaults)
    until(lambda: batch.status().leased > 0, "the first lease")
    # the images that began together have made some steps
    time.sleep(1)
    yield
    batch.cancel()
    until(lambda: batch.status().leased == 0, "the end of the batch")


def measure(settings: Settings, *, rows: int, count: int) -> list[Line]:
    """Return the lines of the table."""
    with temporary_folder() as folder:
        farm, file = Farm.open(settings), write_jsonl(folder, rows)
        # the first image builds the sampling plan and opens connections
        request_images(farm, 1, 0)
        alone = request_images(farm, count, 100)
        long = uniform(_SLOTS - 1, num_inference_steps=500)
        with beside(farm, long, "three"):
            free = request_images(farm, min(count, 8), 200)
        with beside(farm, str(file), "million", guidance_scale=GUIDANCE):
            full = request_images(farm, count, 300)
    steps = median(image.start_s / image.step_s for image in free)
    share = mean(image.start_s / image.denoise_s for image in full)
    return [
        Line(f"idle worker: overhead over the engine's time, median of {count}",
             1000 * median(image.overhead_s for image in alone), "ms", 60),
        Line(f"idle worker: first step after, median of {count}",
             1000 * median(image.start_s for image in alone), "ms"),
        Line(f"a slot is free, {_SLOTS - 1} images run: first step after, median", steps, "steps", 1.5),
        Line(f"beside {rows:,} rows in {_SLOTS} slots: first step after, mean of {count}", share,
             "of an image's time", 1 / _SLOTS),
    ]  # fmt: skip


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__)
    with temporary_folder() as folder, farm_servers(folder / "farm") as settings:
        chosen = settings.model_copy(update={"slots": _SLOTS, "micro_batch": _MICRO_BATCH})
        conditions = Conditions(Farm.open(settings).ledger.ping())
        with workers(chosen, 1, folder / "logs"):
            rows, count = (2_000, 3) if arguments.quick else (1_000_000, 30)
            lines = measure(chosen, rows=rows, count=count)
    return report("interactive", lines, conditions, write=arguments.write)


if __name__ == "__main__":
    raise SystemExit(main())
