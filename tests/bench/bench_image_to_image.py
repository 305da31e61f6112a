"""Measure jobs on an image: what a strength costs, and how often inputs are read that many rows share.

    python -m tests.bench.bench_image_to_image            # print the table
    python -m tests.bench.bench_image_to_image --write    # also write it into docs/explanation/benchmarks.md

Strengths are measured with the bundled model in one engine, encoding and decoding included; the inputs are there. For
the shared inputs a worker's render loop renders a batch with the real servers, and 10^5 further rows are prepared from
them, since an engine that renders them would take hours.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from tests.bench.servers import farm_servers, temporary_folder
from tests.bench.table import Conditions, Line, parse_arguments, report
from tests.support.input_images import digest, png

from latentfarm import Farm
from latentfarm.job import Job
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import INPUTS_PREFIX, MAX_OBJECT_BYTES, input_key
from latentfarm_worker.build import load_model
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.input_images.reader import InputReader
from latentfarm_worker.service.render_loop import RenderLoop

_STEPS, _STRENGTHS, _SLOTS = 20, (1.0, 0.75, 0.5, 0.25), 8


class CountedBucket(Bucket):
    """The real bucket, which counts the reads of each input."""

    def __init__(self, real: Bucket) -> None:
        super().__init__(real.name, where=real.where, open_session=lambda: (real.client, real.credentials))
        self.gets: Counter[str] = Counter()

    def get(self, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        if key.startswith(INPUTS_PREFIX):
            self.gets[key] += 1
        return super().get(key, max_bytes=max_bytes)


def store_images(bucket: Bucket, count: int, width: int, height: int) -> list[str]:
    """Store images of soft random colours, and return their digests."""
    dice, found = np.random.default_rng(0), []
    for _ in range(count):
        small = Image.fromarray(dice.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        body = png(small.resize((width, height), Image.Resampling.BICUBIC))
        bucket.put(input_key(digest(body)), body)
        found.append(digest(body))
    return found


def job_on(image: str, index: int, strength: float, **fields: Any) -> Job:
    wanted = {"num_inference_steps": _STEPS, "scheduler": "euler", "guidance_scale": 3.0, **fields}
    return Job(batch="b", index=index, prompt=f"image {index}", seed=index, image=image, strength=strength, **wanted)


def measure_strengths(
    engine: Engine, reader: InputReader, images: Sequence[str], rows: int, rounds: int
) -> list[float]:
    """Return the fewest seconds of ``rows`` images at each strength, the strengths in turn."""
    best = [float("inf")] * len(_STRENGTHS)
    for _ in range(rounds):
        for at, strength in enumerate(_STRENGTHS):
            jobs = [job_on(images[row % len(images)], row, strength) for row in range(rows)]
            began = time.perf_counter()
            for job in jobs:
                engine.admit(engine.prepare(job, inputs=reader.read(job)))
            while engine.busy:
                engine.step()
            best[at] = min(best[at], time.perf_counter() - began)
            print(f"  strength {strength:g}: {best[at]:.2f} s", flush=True)
    return best


def render_batch(farm: Farm, bucket: Bucket, engine: Engine, images: Sequence[str], rows: int) -> None:
    """Render rows that share the images as a worker does."""
    shape = {"num_inference_steps": 2, "scheduler": "euler", "guidance_scale": 1.0, "strength": 0.5}
    batch = farm.submit(
        [{"prompt": f"p{row}", "image": images[row % len(images)], "seed": row, **shape} for row in range(rows)],
        batch="shared",
    )
    loop = RenderLoop(ledger=farm.ledger, bucket=bucket, engine=engine, model="mini", worker="worker-a", lease_ttl_s=30)
    while not batch.status().complete:
        loop.render_all()
        loop.wait_for_uploads(60)
    loop.close()
    assert batch.status().done == rows


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__)
    rows, rounds, shared, prepared = (8, 1, 200, 2_000) if arguments.quick else (64, 5, 2_000, 100_000)
    conditions = Conditions()
    with temporary_folder() as folder, farm_servers(folder) as settings:
        farm = Farm.open(settings)
        family = load_model(Settings(cache_dir=folder / "cache"))
        images = store_images(farm.bucket, 100, family.native_width, family.native_height)
        engine = Engine(family, slots=_SLOTS)
        engine.warm_up()
        seconds = measure_strengths(engine, InputReader(farm.bucket, family), images[:8], rows, rounds)
        counted = CountedBucket(farm.bucket)
        render_batch(farm, counted, engine, images, shared)
        reads = CountedBucket(farm.bucket)
        reader = InputReader(reads, family)
        began = time.perf_counter()
        for row in range(prepared):
            reader.read(job_on(images[row % len(images)], row, 0.5))
        per_row_us = (time.perf_counter() - began) / prepared * 1e6
    whole = seconds[0]
    lines = [
        Line(f"{rows} images of {_STEPS} steps, strength 1", whole, "s"),
        *(
            # the decoder's share does not fall with the steps
            Line(f"strength {strength:g}, against strength 1", taken / whole, "times", strength + 0.1)
            for strength, taken in zip(_STRENGTHS[1:], seconds[1:], strict=True)
        ),
        Line(f"{shared:,} rows of a worker that share 100 images: images read", sum(counted.gets.values()), "", 100),
        Line("the most reads of one image", max(counted.gets.values()), "", 1),
        Line(f"{prepared:,} rows that share 100 images: images read", sum(reads.gets.values()), "", 100),
        Line("their inputs, a row", per_row_us, "µs"),
    ]
    note = f"The model is mini, in float32, {_SLOTS} slots, guidance 3."
    return report("image_to_image", lines, conditions, write=arguments.write, note=note)


if __name__ == "__main__":
    raise SystemExit(main())
