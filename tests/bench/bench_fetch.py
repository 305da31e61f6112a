"""Measure ``latentfarm fetch`` against a plain loop over boto3's ``get_object`` with one client.

    python -m tests.bench.bench_fetch            # print the table
    python -m tests.bench.bench_fetch --write    # also write it into docs/explanation/benchmarks.md

Both store 2,000 objects of 30,000 bytes, the size of mini's images, in a new folder of the same disk. The loop gets a
list of keys. The fetch also reads receipts and manifest, checks each sha256 and writes results.jsonl and
metadata.jsonl. Rounds alternate, so that other load affects both alike.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import boto3
from tests.bench.servers import farm_servers, temporary_folder
from tests.bench.table import Conditions, Line, parse_arguments, report

from latentfarm.batch import Batch
from latentfarm.farm import Farm
from latentfarm.settings import Settings
from latentfarm.storage.results import flush_due

_IMAGE_BYTES = 30_000
_BAR = 3.0


@dataclass(frozen=True)
class Round:
    """Wall and CPU seconds of this process for fetching all images once."""

    wall_s: float
    cpu_s: float


def key_of(index: int) -> str:
    return f"images/{index:08d}.png"


def rendered_batch(farm: Farm, count: int) -> Batch:
    """Return a complete batch of ``count`` images of random bytes."""
    batch = farm.submit([f"a red circle on a blue background, number {n}" for n in range(count)], batch="bench")
    noise = random.Random(0)  # noqa: S311
    while leases := farm.ledger.lease("mini", "bench", 100, lease_s=60):
        for lease in leases:
            body, key = noise.randbytes(_IMAGE_BYTES), key_of(lease.index)
            farm.bucket.put(key, body)
            sha256 = hashlib.sha256(body).hexdigest()
            farm.ledger.commit([(lease, {"key": key, "sha256": sha256, "bytes": len(body), "worker": "bench"})])
    flush_due(farm.ledger, farm.bucket)
    return batch


def boto3_loop(settings: Settings, keys: list[str], folder: Path) -> None:
    """Fetch all keys as a user would without latentfarm."""
    client = boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=settings.s3_secret_key.get_secret_value(),
    )
    folder.mkdir()
    for key in keys:
        body = client.get_object(Bucket=settings.bucket, Key=key)["Body"].read()
        (folder / key.rpartition("/")[2]).write_bytes(body)


def timed(fetch: Callable[[Path], object], folder: Path, count: int) -> Round:
    """Fetch into a new folder and check that it has all images.

    The folder is kept until the end: ext4 skips recently freed inodes one by one, so a file created just after
    thousands were deleted takes 0.5 ms of CPU instead of 0.03.
    """
    # dirty pages of earlier rounds must not be written during this one
    os.sync()
    began, cpu = time.perf_counter(), time.process_time()
    fetch(folder)
    taken = Round(time.perf_counter() - began, time.process_time() - cpu)
    found = sum(file.stat().st_size == _IMAGE_BYTES for file in folder.glob("*.png"))
    if found != count:
        raise RuntimeError(f"{found} of {count} images in {folder}")
    return taken


def measure(settings: Settings, folder: Path, *, count: int, rounds: int) -> list[Line]:
    """Return the table's lines."""
    batch = rendered_batch(Farm.open(settings), count)
    keys = [key_of(index) for index in range(count)]
    loops, fetches = [], []
    for number in range(rounds):
        loops.append(timed(lambda out: boto3_loop(settings, keys, out), folder / f"loop-{number}", count))
        fetches.append(timed(batch.fetch, folder / f"fetch-{number}", count))
    ratios = [loop.wall_s / fetch.wall_s for loop, fetch in zip(loops, fetches, strict=True)]
    return [
        Line(f"`get_object` loop, {count:,} images", median([each.wall_s for each in loops]), "s"),
        Line(f"fetch, {count:,} images", median([each.wall_s for each in fetches]), "s"),
        Line("the loop's CPU for an image", median([each.cpu_s for each in loops]) / count * 1000, "ms"),
        Line("fetch's CPU for an image", median([each.cpu_s for each in fetches]) / count * 1000, "ms"),
        Line("fetch is faster, worst round", min(ratios), "times"),
        Line(f"fetch is faster, median of {rounds} rounds", median(ratios), "times", _BAR, at_least=True),
    ]


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__)
    with temporary_folder() as folder, farm_servers(folder / "farm") as settings:
        conditions = Conditions(Farm.open(settings).ledger.ping())
        count, rounds = (100, 1) if arguments.quick else (2_000, 5)
        lines = measure(settings, folder, count=count, rounds=rounds)
    return report("fetch", lines, conditions, write=arguments.write)


if __name__ == "__main__":
    raise SystemExit(main())
