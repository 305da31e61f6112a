"""Measures a worker's memory: its peak, and whether it grows with the number of pictures it has made.

    python -m tests.bench.bench_memory            # prints the table
    python -m tests.bench.bench_memory --write    # and puts it into docs/explanation/benchmarks.md

One real worker with the bundled model renders 64 pictures of its native size, then 10,000 of 64 x 64 pixels in two
steps: what grows with the number of jobs grows as much with small ones.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median

from tests.bench.bench_throughput import CORES, DTYPE, note
from tests.bench.end_to_end import Ours, our_workers
from tests.bench.servers import farm_servers, temporary_folder, until
from tests.bench.table import Conditions, Line, parse_arguments, report
from tests.bench.workload import uniform, write_rows
from tests.support.processes import children_of

from latentfarm.farm import Farm
from latentfarm.settings import Settings

_SMALL = {"width": 64, "height": 64, "num_inference_steps": 2}


def memory_bytes(pid: int, name: str = "VmRSS") -> int:
    """Return the resident memory of a process, or with ``VmHWM`` the most that it ever was."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no {name}")


def settled_bytes(pid: int) -> float:
    """Return the median of a second's looks: a step's own tensors come and go."""
    looks = []
    for _ in range(20):
        looks.append(memory_bytes(pid))
        time.sleep(0.05)
    return median(looks)


def measure(ours: Ours, folder: Path, *, early: int, late: int) -> list[Line]:
    """Render, and look at the worker's process after ``early`` and after ``late`` jobs."""
    [pid] = children_of(ours.supervisors[0])
    ours.run(uniform(min(64, early)))
    batch = "many"
    command = ours.submit(write_rows(folder / "many.jsonl", uniform(late, **_SMALL)), batch)
    until(lambda: batch in ours.farm.ledger.batches(), "the batch")
    record = ours.farm.ledger.batch
    until(lambda: record(batch).done >= early, f"{early} pictures", timeout_s=3600)
    after_early = settled_bytes(pid)
    until(lambda: record(batch).done + record(batch).failed >= late, f"{late} pictures", timeout_s=4 * 3600)
    command.wait()
    if record(batch).done != late:
        raise RuntimeError(f"{record(batch)}")
    after_late, peak = settled_bytes(pid), memory_bytes(pid, "VmHWM")
    print(f"  {after_early / 1e6:.1f} MB, {after_late / 1e6:.1f} MB, load {os.getloadavg()[0]:.1f}", flush=True)
    return [
        Line(f"a worker with mini after {early:,} jobs", after_early / 1e6, "MB"),
        Line(f"after {late:,} jobs", after_late / 1e6, "MB"),
        Line("the most it ever had", peak / 1e6, "MB", 1500),
        Line("growth", 100 * (after_late / after_early - 1), "%", 5),
    ]


def main() -> int:
    """Return 1 where a bar is missed."""
    arguments = parse_arguments(__doc__)
    early, late = (20, 100) if arguments.quick else (500, 10_000)
    with temporary_folder() as folder, farm_servers(folder / "farm") as found:
        settings: Settings = found.model_copy(update={"dtype": DTYPE})
        conditions = Conditions(Farm.open(settings).ledger.ping())
        with our_workers(settings, 1, folder / "ours") as ours:
            lines = measure(ours, folder, early=early, late=late)
    said = note(the_worker=f"1 process of {CORES} torch threads, its supervisor's 20 MB not counted")
    return report("memory", lines, conditions, write=arguments.write, note=said)


if __name__ == "__main__":
    raise SystemExit(main())
