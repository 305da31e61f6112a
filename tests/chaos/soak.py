"""``python -m tests.chaos.soak``: one real worker renders no-op jobs, while its memory and that of Redis are sampled.

A batch is submitted when another ends, and an ended one is deleted. Images are rendered and encoded, but not stored;
manifests and results are.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests.bench.servers import farm_servers, used_memory_bytes
from tests.bench.table import cpu_name, write_between
from tests.chaos.fake_worker import ALIAS, write_model
from tests.chaos.farm_run import CHAOS_PRELOAD
from tests.chaos.report import PAGE
from tests.support.fork_server import ForkServer

from latentfarm.batch import Batch
from latentfarm.farm import Farm

BATCH_JOBS = 5_000
_UNFINISHED = 2
_SLOTS = 64
_POLL_S = 2.0
#: growth from the warm-up to the end that counts as no leak
_FLAT = 0.05
#: shares of the run: the warm-up; and the windows at its beginning and end whose medians are compared
_WARM, _WINDOW = 0.25, 0.15


@dataclass(frozen=True)
class Sample:
    """One sample: resident memory of the worker, Redis' ``used_memory``, jobs done so far."""

    at_s: float
    worker_bytes: int
    redis_bytes: int
    done: int


class Soak:
    """The batches of a soak."""

    def __init__(self, farm: Farm, file: Path, jobs: int) -> None:
        self.farm = farm
        self.file = file
        self.left = jobs
        self.open: list[Batch] = []
        self.ended = 0
        self.failed = 0
        self._number = 0

    def tick(self) -> int:
        """Submit and delete what is due; return how many jobs are done."""
        done = 0
        for batch in self.open[:]:
            status = batch.status()
            done += status.done
            if status.complete and not self.farm.ledger.full_parts():
                self.ended, self.failed = self.ended + status.done, self.failed + status.failed
                done -= status.done
                batch.delete()
                self.open.remove(batch)
        while self.left > 0 and len(self.open) < _UNFINISHED:
            self.open.append(self.farm.submit(self.file, batch=f"soak-{self._number}", model=ALIAS))
            self._number += 1
            self.left -= BATCH_JOBS
        return self.ended + done


def run(jobs: int, limit_s: float) -> tuple[list[Sample], int]:
    """Run until all jobs are done or the time is up; return the samples and how many jobs failed."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="latentfarm-soak-")))
        settings = stack.enter_context(farm_servers(folder))
        fork_server = stack.enter_context(ForkServer(CHAOS_PRELOAD, log=folder / "fork_server.log"))
        source = str(write_model(folder / "model"))
        mine = settings.model_copy(update={"model": ALIAS, "model_source": source, "slots": _SLOTS})
        log = folder / "worker.log"
        worker = fork_server.start("soak", "tests.chaos.fake_worker:run_no_op", {}, env=mine.environment(), log=log)
        file = folder / "prompts.jsonl"
        file.write_text('{"prompt": "a red circle", "num_inference_steps": 1, "guidance_scale": 1.0}\n' * BATCH_JOBS)
        soak, samples, began = Soak(Farm.open(settings), file, jobs), list[Sample](), time.monotonic()
        while (soak.left > 0 or soak.open) and time.monotonic() - began < limit_s:
            done = soak.tick()
            if worker.exit_code() is not None:
                raise RuntimeError(f"the worker ended with {worker.exit_code()}:\n{log.read_text()[-2000:]}")
            at_s = time.monotonic() - began
            samples.append(Sample(at_s, resident_bytes(worker.pid), used_memory_bytes(soak.farm.ledger.redis), done))
            time.sleep(_POLL_S)
        worker.send(signal.SIGKILL)
    return samples, soak.failed


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _windows(figures: Sequence[int]) -> tuple[float, float]:
    """Return the medians of the windows after the warm-up and at the end."""
    first, length = int(_WARM * len(figures)), max(1, int(_WINDOW * len(figures)))
    return median(figures[first : first + length]), median(figures[-length:])


def main() -> int:
    """Run; return 1 where memory is not flat or a job failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000, help="number of no-op jobs [default: 1000000]")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after this time [default: 60]")
    parser.add_argument("--write", action="store_true", help="write the table into docs/explanation/reliability.md")
    args = parser.parse_args()
    samples, failed = run(args.jobs, 60 * args.minutes)
    done, took_s = samples[-1].done, samples[-1].at_s
    flat, lines = failed == 0, ["| minute | jobs done | worker, MB | Redis, MB |", "| --- | --- | --- | --- |"]
    step = max(1, len(samples) // 10)
    for sample in [*samples[::step], samples[-1]]:
        memory = f"{sample.worker_bytes / 1e6:.1f} | {sample.redis_bytes / 1e6:.2f}"
        lines.append(f"| {sample.at_s / 60:.1f} | {sample.done:,} | {memory} |")
    lines.append("")
    for name, figures in (("worker", [s.worker_bytes for s in samples]), ("Redis", [s.redis_bytes for s in samples])):
        before, after = _windows(figures)
        change = after / before - 1
        flat = flat and change <= _FLAT
        lines.append(
            f"- {name}: {before / 1e6:.2f} MB after the warm-up, {after / 1e6:.2f} MB at the end: {change:+.1%}."
        )
    lines.append(
        f"- {done:,} jobs in {took_s / 60:.1f} minutes, {done / took_s:.0f} a second, {failed} failed; "
        f"{datetime.now(UTC):%Y-%m-%d}, {cpu_name()}, cores shared with other work."
    )
    print("\n".join(lines), flush=True)
    if args.write:
        write_between("soak", "\n".join(lines), PAGE)
    return int(not flat)


if __name__ == "__main__":
    sys.exit(main())
