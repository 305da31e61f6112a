"""Draw the timeline of one round: where the cores of two workers stand still though jobs wait, and why.

    python -m tests.bench.timeline                       # 64 jobs, 2 workers of 1 thread
    python -m tests.bench.timeline --jobs 256 --trace round.json    # also a file for chrome://tracing or Perfetto

The round begins when the ledger has all jobs, and ends with the last commit. The time of each engine's thread in it is
split: steps, by what the thread did in them, and gaps, by what it waited for.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.end_to_end import LatentfarmWorkers
from tests.bench.servers import farm_servers, redis_ms, temporary_folder, until
from tests.bench.table import child_pids, own_cpu_s, process_cpu_s
from tests.bench.workload import uniform

from latentfarm.ledger import Ledger
from latentfarm.local.farm import stop_all, worker_command
from latentfarm.local.process import ManagedProcess
from latentfarm.settings import Settings

_NS_PER_MS, _NS_PER_S = 1e6, 1e9


class Span(NamedTuple):
    """What a thread did, in ns of the monotonic clock."""

    name: str
    thread: int
    began: int
    ended: int
    about: dict[str, Any]


@dataclass(frozen=True)
class Round:
    """A round: its times in ns of the monotonic clock, the spans of each worker, and CPU seconds by process and thread.

    The times are those of the command, of all jobs in the ledger, of the last commit, and of its notice.
    """

    jobs: int
    command: int
    began: int
    ended: int
    noticed: int
    spans: dict[str, list[Span]]
    cpu_s: dict[str, float]

    @property
    def last_step(self) -> int:
        return max(span.ended for own in self.spans.values() for span in own if span.name == "step")


@contextmanager
def traced_workers(settings: Settings, count: int, folder: Path) -> Iterator[list[ManagedProcess]]:
    """Run supervised workers that write their spans below ``folder`` when they end."""
    threads = str(max(1, (os.cpu_count() or 1) // count))
    command = [*worker_command(settings), "--", sys.executable, "-m", "tests.bench.traced_worker", str(folder)]
    children: list[ManagedProcess] = []
    try:
        for number in range(count):
            env = {**settings.environment(), "OMP_NUM_THREADS": threads}
            children.append(ManagedProcess(f"worker-{number}", command, log=folder / f"worker-{number}.log", env=env))
        ledger = Ledger.connect(settings.redis_url)
        until(lambda: len(ledger.workers(settings.model)) == count, "the workers")
        yield children
    finally:
        stop_all(children, 60)


def measure(folder: Path, *, jobs: int, count: int, dtype: str) -> Round:
    """Run one round of latentfarm's workers."""
    with farm_servers(folder / "farm") as servers:
        settings = servers.model_copy(update={"dtype": dtype})
        with traced_workers(settings, count, folder) as children:
            workers = LatentfarmWorkers(settings, [child.pid for child in children], folder)
            workers.warm_up()
            cpu_s, thread_s = _cpu_s(children), _thread_s(children)
            command = time.monotonic_ns()
            workers.run(uniform(jobs))
            noticed = time.monotonic_ns()
            cpu_s = {name: seconds - cpu_s.get(name, 0) for name, seconds in _cpu_s(children).items()}
            thread_s = {thread: seconds - thread_s.get(thread, 0) for thread, seconds in _thread_s(children).items()}
            record = workers.farm.ledger.batch(workers.last_batch)
            # Redis's clock in terms of ours
            offset = time.monotonic_ns() - redis_ms(workers.farm.ledger.redis) * _NS_PER_MS
            began, ended = (int(at * _NS_PER_MS + offset) for at in (workers.began_ms, record.last_ms))
    spans: dict[str, list[Span]] = {}
    for number, file in enumerate(sorted(folder.glob("*.json")), 1):
        written = json.loads(file.read_text())
        spans[f"worker {number}"] = [Span(*each) for each in written["spans"]]
        for thread, name in written["threads"].items():
            # the threads of a pool, and of all workers, together
            pool = f"  {name.partition('_')[0]}"
            cpu_s[pool] = cpu_s.get(pool, 0) + thread_s.get(int(thread), 0)
    return Round(jobs, command, began, ended, noticed, spans, cpu_s)


def _cpu_s(workers: list[ManagedProcess]) -> dict[str, float]:
    """Return the CPU seconds of the workers, of the servers, and of this process with its ended commands."""
    known = {worker.pid: worker.name for worker in workers}
    running = {known.get(pid) or Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in child_pids()}
    return {**{name: process_cpu_s(pid) for name, pid in running.items()}, "submission, this tool": own_cpu_s()}


def _thread_s(workers: list[ManagedProcess]) -> dict[int, float]:
    """Return the CPU seconds of each thread of the workers."""
    files = [file for child in workers for pid in child_pids(child.pid) for file in Path(f"/proc/{pid}/task").iterdir()]
    return {int(file.name): int((file / "schedstat").read_text().split()[0]) / _NS_PER_S for file in files}


def gaps(spans: list[Span], around: Round) -> dict[str, float]:
    """Return the ms of the engine's thread in a round by what it did or waited for."""
    of_round = [span for span in spans if span.ended > around.began and span.began < around.ended]
    steps = sorted((span for span in of_round if span.name == "step"), key=lambda span: span.began)
    found: dict[str, float] = defaultdict(float)
    for step in steps:
        wall, cpu, queue = step.ended - step.began, step.about["cpu"], step.about["queue"]
        found["step: computing"] += cpu
        found["step: another thread or process has the core"] += queue
        found["step: blocked, such as by the interpreter's lock"] += wall - cpu - queue
        found["(slots without an image, share of the computing)"] += cpu * (
            1 - min(1, step.about["images"] / step.about["slots"])
        )
    at = around.began
    last = steps[-1].ended if steps else around.began
    for step in steps:
        if step.began > at:
            for name, ns in _causes(of_round, at, step.began).items():
                found[name] += ns
        at = step.ended
    found["tail: other workers have the last jobs"] += around.last_step - last
    found["tail: encode, put and commit of the last image"] += around.ended - around.last_step
    return {name: ns / _NS_PER_MS for name, ns in found.items()}


def _causes(spans: list[Span], began: int, ended: int) -> dict[str, int]:
    """Split a gap between two steps by the calls in it, the first that applies at each moment."""
    names = ("lease", "manifest", "prepare", "render_all")
    inside = [span for span in spans if span.name in names and span.ended > began and span.began < ended]
    cuts = sorted({began, ended, *(t for span in inside for t in (span.began, span.ended) if began < t < ended)})
    found: dict[str, int] = defaultdict(int)
    short = ended - began < 5 * _NS_PER_MS
    for start, end in pairwise(cuts):
        running = {span.name for span in inside if span.began <= start and span.ended >= end}
        cause = next((name for name in names if name in running), "no doorbell")
        if cause == "render_all":
            cause = "between steps" if short else "in render_all, without a call"
        found[f"gap: {cause}"] += end - start
    return found


def report(around: Round) -> str:
    """Return the timeline as tables."""

    def at_ms(at: int) -> str:
        return f"{(at - around.began) / _NS_PER_MS:>9,.0f}"

    moments = [("the command starts", around.command), ("the last commit", around.ended), ("noticed", around.noticed)]
    for worker, own in around.spans.items():
        moments += [(f"{worker}: {text}", at) for text, at in _moments(own, around)]
    lines = ["ms from the moment at which the ledger has all jobs"]
    lines += [f"{at_ms(at)}  {text}" for text, at in sorted(moments, key=itemgetter(1))]
    wall = (around.ended - around.began) / _NS_PER_MS
    columns = [gaps(own, around) for own in around.spans.values()]
    names = sorted({name for column in columns for name in column}, key=lambda name: (name[:3], name))
    lines += [
        "",
        f"{'ms of the engine threads':<55}" + "".join(f"{worker:>12}" for worker in around.spans) + "   share",
    ]
    for name in names:
        figures = [column.get(name, 0.0) for column in columns]
        share = sum(figures) / wall / len(columns)
        lines.append(f"{name:<55}" + "".join(f"{figure:>12,.0f}" for figure in figures) + f"{share:>8.1%}")
    lines += ["", f"{around.jobs / wall * 1000:.2f} images/s; CPU ms an image, by process and by the workers' threads:"]
    lines += [f"  {name:<30}{1000 * s / around.jobs:>8.1f}" for name, s in around.cpu_s.items() if s > 0]
    return "\n".join([*lines, "", *_calls(around)])


def _moments(spans: list[Span], around: Round) -> Iterator[tuple[str, int]]:
    """Yield the first and the last moments of a worker in a round."""
    for name, text in (("render_all", "a doorbell is heard"), ("lease", "lease"), ("step", "step")):
        if began := [span.began for span in spans if span.name == name and around.command < span.began < around.ended]:
            yield f"{text}, the first", min(began)
    for name in ("step", "put", "commit"):
        if ended := [span.ended for span in spans if span.name == name and around.command < span.began < around.ended]:
            yield f"{name}, the last of {len(ended)}", max(ended)


def _calls(around: Round) -> Iterator[str]:
    """Yield the number and the wall time of the calls in the round."""
    total: dict[str, list[float]] = defaultdict(list)
    for span in chain.from_iterable(around.spans.values()):
        if around.command < span.began < around.ended:
            total[span.name].append((span.ended - span.began) / _NS_PER_MS)
    for name, each in sorted(total.items()):
        yield f"  {name:<12}{len(each):>6} calls,{sum(each):>8,.0f} ms, the longest{max(each):>8,.1f} ms"


def write_trace(file: Path, around: Round) -> None:
    """Write the spans as a Chrome trace."""
    events: list[dict[str, Any]] = []
    for number, (worker, own) in enumerate(around.spans.items(), 1):
        events.append({"name": "process_name", "ph": "M", "pid": number, "args": {"name": worker}})
        for span in own:
            times = {"ts": (span.began - around.began) / 1000, "dur": (span.ended - span.began) / 1000}
            place = {"pid": number, "tid": span.thread, "args": span.about}
            events.append({"name": span.name, "ph": "X", **times, **place})
    file.write_text(json.dumps({"traceEvents": events}))


def main() -> int:
    """Print the timeline of a round."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--trace", type=Path, help="write a Chrome trace to this file")
    arguments = parser.parse_args()
    with temporary_folder() as folder:
        around = measure(folder, jobs=arguments.jobs, count=arguments.workers, dtype=arguments.dtype)
    print(report(around))
    if arguments.trace:
        write_trace(arguments.trace, around)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
