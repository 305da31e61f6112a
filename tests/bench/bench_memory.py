"""Measure a worker's memory: its peak, and its growth with the number of rendered images.

    python -m tests.bench.bench_memory            # print the table
    python -m tests.bench.bench_memory --write    # also write it into docs/explanation/benchmarks.md

One worker with the bundled model renders 64 images of its native size, then 10,000 of 64 x 64 pixels in two steps. A
leak for each job shows as well with small ones. The first figure is taken after 2,500 prompts, when the cache of
encoded prompts is full.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median

from tests.bench.comparison import CORES, DTYPE, describe
from tests.bench.end_to_end import LatentfarmWorkers, latentfarm_workers
from tests.bench.servers import farm_servers, temporary_folder, until
from tests.bench.table import Conditions, Line, parse_arguments, report
from tests.bench.workload import uniform, write_rows
from tests.support.processes import children_of

from latentfarm.farm import Farm
from latentfarm.settings import Settings

_SMALL = {"width": 64, "height": 64, "num_inference_steps": 2}


def memory_bytes(pid: int, name: str = "VmRSS") -> int:
    """Return the resident memory of a process, or its peak with ``VmHWM``."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no {name}")


def settled_bytes(pid: int) -> float:
    """Return the median of a second of samples, because a step allocates and frees tensors."""
    samples = []
    for _ in range(20):
        samples.append(memory_bytes(pid))
        time.sleep(0.05)
    return median(samples)


def measure(workers: LatentfarmWorkers, folder: Path, *, early: int, late: int) -> list[Line]:
    """Render, and measure the worker's process after ``early`` and after ``late`` jobs."""
    [pid] = children_of(workers.supervisors[0])
    workers.run(uniform(min(64, early)))
    batch = "many"
    command = workers.submit(write_rows(folder / "many.jsonl", uniform(late, **_SMALL)), batch)
    until(lambda: batch in workers.farm.ledger.batches(), "the batch")
    record = workers.farm.ledger.batch
    until(lambda: record(batch).done >= early, f"{early} images", timeout_s=3600)
    after_early = settled_bytes(pid)
    until(lambda: record(batch).done + record(batch).failed >= late, f"{late} images", timeout_s=4 * 3600)
    command.wait()
    if record(batch).done != late:
        raise RuntimeError(f"{record(batch)}")
    after_late, peak = settled_bytes(pid), memory_bytes(pid, "VmHWM")
    print(f"  {after_early / 1e6:.1f} MB, {after_late / 1e6:.1f} MB, load {os.getloadavg()[0]:.1f}", flush=True)
    return [
        Line(f"a worker with mini after {early:,} jobs", after_early / 1e6, "MB"),
        Line(f"after {late:,} jobs", after_late / 1e6, "MB"),
        Line("peak", peak / 1e6, "MB", 1500),
        Line("growth", 100 * (after_late / after_early - 1), "%", 5),
    ]


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__)
    early, late = (20, 100) if arguments.quick else (2_500, 10_000)
    with temporary_folder() as folder, farm_servers(folder / "farm") as servers:
        settings: Settings = servers.model_copy(update={"dtype": DTYPE})
        conditions = Conditions(Farm.open(settings).ledger.ping())
        with latentfarm_workers(settings, 1, folder / "workers") as workers:
            lines = measure(workers, folder, early=early, late=late)
    note = describe(the_worker=f"1 process of {CORES} torch threads, its supervisor's 20 MB not counted")
    return report("memory", lines, conditions, write=arguments.write, note=note)


if __name__ == "__main__":
    raise SystemExit(main())
