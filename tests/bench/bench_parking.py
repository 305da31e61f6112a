"""Measure how fast a worker that ends puts its images down, and how fast another one goes on with them.

    python -m tests.bench.bench_parking            # print the table
    python -m tests.bench.bench_parking --write    # also write it into docs/explanation/benchmarks.md

A full batch of 64 images has the latents of Stable Diffusion 1.5 at 512 x 512, and a scheduler with a history. The
model is a function that takes no time, so that only what is put down and taken up is measured. Redis and the S3 server
are the embedded ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any, cast

from tests.bench.servers import farm_servers, temporary_folder, until
from tests.bench.table import Conditions, Line, parse_arguments, report
from tests.support.exact import ExactFamily
from tests.support.rendering import render_loop

from latentfarm import Batch, Farm
from latentfarm_worker.models import Family

IMAGES, ROUNDS, STEPS, SIDE = 64, 3, 10, 512
#: evaluations after which the worker ends
_STOPPED_AT = 4
#: seconds in which they are put down, at most
_BAR_S = 2.0


class Stopped(ExactFamily):
    """A family of 512 x 512 pixels that counts evaluations of images, and waits once in the middle."""

    def __init__(self, images: int, stop_at: int | None) -> None:
        super().__init__()
        self.native_width = self.native_height = SIDE
        self.made = 0
        self.reached, self.go = Event(), Event()
        self._stop_at = None if stop_at is None else stop_at * images
        self.before_predict = self._count

    def _count(self, marks: Sequence[int]) -> None:
        if self._stop_at is not None and self.made >= self._stop_at:
            self.reached.set()
            self.go.wait()
        # a call is filled up with rows of its own
        self.made += len({mark for mark in marks if mark})


def submit(farm: Farm, images: int, name: str) -> Batch:
    rows: list[dict[str, Any]] = [
        {"prompt": f"{n}", "width": SIDE, "height": SIDE, "num_inference_steps": STEPS, "scheduler": "dpm++2m"}
        for n in range(images)
    ]
    return farm.submit(rows, batch=name)


def measure(farm: Farm, images: int, name: str) -> dict[str, float]:
    """Put images down midway and go on with them; return what that took, and the evaluations that were made twice."""
    batch = submit(farm, images, name)
    first, second = Stopped(images, _STOPPED_AT), Stopped(images, None)
    found: dict[str, float] = {}
    with render_loop(farm, cast("Family", first), slots=images, lease_ttl_s=300) as loop:
        thread = Thread(target=loop.render_all)
        thread.start()
        until(lambda: first.reached.wait(0.1), "the middle")
        running = len(loop._engine._running)
        began = time.perf_counter()
        first.go.set()
        loop.drain(time.monotonic() + 60)
        thread.join()
        found["out of the engine"] = time.perf_counter() - began
        until(lambda: batch.status().leased == 0, "parked")
        found["parked"] = time.perf_counter() - began
    keys = [key for key in farm.bucket.keys(f"batches/{name}/drafts/") if key.endswith(".safetensors")]
    found["images"], found["bytes"] = min(running, len(keys)), median(len(farm.bucket.get(key)) for key in keys)
    began = time.perf_counter()
    with render_loop(farm, cast("Family", second), slots=images, lease_ttl_s=300) as loop:
        thread = Thread(target=loop.render_all)
        thread.start()
        until(lambda: loop.metrics.instruments.checkpoints.labels("mini", "resumed")._value.get() == len(keys), "read")
        found["read"] = time.perf_counter() - began
        thread.join()
        done = batch.wait(timeout_s=600).done
    found["lost"] = first.made + second.made - images * STEPS
    found["failed"] = images - done
    return found


def run(folder: Path, *, images: int, rounds: int) -> list[Line]:
    with farm_servers(folder) as settings:
        farm = Farm.open(settings)
        found = [measure(farm, images, f"round-{number}") for number in range(rounds)]
    middle = {name: median(each[name] for each in found) for name in found[0]}
    longest = max(each["parked"] for each in found)
    return [
        Line("images that run when the worker begins to drain", middle["images"]),
        Line("a checkpoint", middle["bytes"] / 1000, "kB"),
        Line("to the end of the engine's last step", middle["out of the engine"], "s"),
        Line("until all are stored and can be leased again", middle["parked"], "s", bar=_BAR_S),
        Line("the longest of the rounds", longest, "s"),
        Line("until another worker has leased and read them all", middle["read"], "s"),
        Line("evaluations that are made twice", sum(each["lost"] for each in found), bar=0),
        Line("jobs that are not done", sum(each["failed"] for each in found), bar=0),
    ]


def main() -> int:
    args = parse_arguments(__doc__)
    images, rounds = (8, 1) if args.quick else (IMAGES, ROUNDS)
    conditions = Conditions()
    with temporary_folder() as folder:
        lines = run(folder, images=images, rounds=rounds)
    note = f"{images} images of {STEPS} steps, put down after {_STOPPED_AT}; the median of {rounds} rounds."
    return report("parking", lines, conditions, write=args.write, note=note)


if __name__ == "__main__":
    raise SystemExit(main())
