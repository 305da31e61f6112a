"""Measures jobs of mixed steps, some without guidance, against diffusers' static batches of the same jobs.

    python -m tests.bench.bench_mixed            # prints the table
    python -m tests.bench.bench_mixed --write    # and puts it into docs/explanation/benchmarks.md

Ours is the whole way, from queue to object and state; the static batches are drawn in memory and thrown away. First
all jobs wait from the start, which tells how many are drawn a second; then they arrive one by one, which tells how long
one takes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from tests.bench.bench_throughput import CORES, DTYPE, SIZES, WAYS, best_of, best_pipe, in_process, note
from tests.bench.end_to_end import Ours, our_workers
from tests.bench.in_process import Run
from tests.bench.servers import farm_servers, temporary_folder
from tests.bench.table import Conditions, Line, parse_arguments, report
from tests.bench.workload import GUIDANCE, MIXED_STEPS, UNGUIDED_SHARE, arrivals, mixed, unet_rows, uniform

from latentfarm.farm import Farm
from latentfarm.settings import Settings

#: static batches in arrival order
_IN_ARRIVAL_ORDER = ("arrival", "split")
_ORDERS = (*_IN_ARRIVAL_ORDER, "sorted")
#: how many of the jobs that static batches can draw arrive
_BUSY = 0.75
_WHAT = {
    "ours": "latentfarm, queue to object and state",
    "arrival": "static batches in arrival order, as long as their longest job",
    "split": "static batches in arrival order, split by settings",
    "sorted": "static batches sorted by settings",
}


def lines_of(runs: dict[str, list[Run]], arrived: dict[str, list[Run]]) -> list[Line]:
    """Return the table; of the two ways to batch in arrival order, the better one is the peer.

    ``runs``: of jobs that all wait from the start; ``arrived``: of jobs that come one by one.
    """
    rate = {name: median(run.images_per_s for run in each) for name, each in runs.items()}
    cpu_s = {name: median(run.cpu_s / len(run.ready_s) for run in each) for name, each in runs.items()}
    p99_s = {name: median(run.p99_s for run in each) for name, each in runs.items()}
    arriving_s = {name: median(run.p99_s for run in each) for name, each in arrived.items()}
    count, peer = len(runs["ours"]), max(_IN_ARRIVAL_ORDER, key=rate.__getitem__)
    return [
        *(Line(f"{text}, median of {count}", rate[name], "images/s") for name, text in _WHAT.items()),
        *(Line(f"{text}: CPU an image", cpu_s[name], "s") for name, text in _WHAT.items()),
        *(Line(f"{text}: p99 time of a job", p99_s[name], "s") for name, text in _WHAT.items()),
        *(Line(f"{_WHAT[name]}: p99 time of a job that arrives", each_s, "s") for name, each_s in arriving_s.items()),
        Line("latentfarm against the quicker in arrival order", rate["ours"] / rate[peer], "times", 1.4, at_least=True),
        Line("latentfarm against sorted batches", rate["ours"] / rate["sorted"], "times", 1, at_least=True),
        Line("p99 time of a job, all waiting from the start", p99_s["ours"] / p99_s[peer], "", 0.5),
        Line(
            "p99 time of a job that arrives",
            arriving_s["ours"] / min(arriving_s[order] for order in _IN_ARRIVAL_ORDER),
            "",
            0.5,
        ),
    ]


def measure(settings: Settings, folder: Path, *, quick: bool) -> tuple[list[Line], str]:
    """Find each side's best way, then render in turn."""
    short, count, turns = (2, 4, 1) if quick else (16, 96, 3)
    sizes: Sequence[int] = (2,) if quick else SIZES
    ways: Sequence[int] = (CORES,) if quick else WAYS
    rows, trial = mixed(count), mixed(short)
    with ExitStack() as stack:
        ours: Ours
        our_way, ours = stack.enter_context(
            best_of(lambda n: our_workers(settings, n, folder / f"ours-{n}"), trial, "latentfarm", ways)
        )
        pipe_way = best_pipe(uniform(2 * short), folder, sizes, ways)
        pipe = stack.enter_context(in_process("pipe", pipe_way, folder))
        pipe.run(uniform(pipe_way.size * pipe_way.processes, num_inference_steps=2), size=pipe_way.size)
        runs: dict[str, list[Run]] = {name: [] for name in _WHAT}
        for _ in range(turns):
            runs["ours"].append(ours.run(rows))
            for order in _ORDERS:
                runs[order].append(pipe.run(rows, size=pipe_way.size, order=order))
            for name, each in runs.items():
                print(f"  {name}: {each[-1].images_per_s:.2f} images/s, load {os.getloadavg()[0]:.1f}", flush=True)
        busy = _BUSY * max(median(run.images_per_s for run in runs[name]) for name in _IN_ARRIVAL_ORDER)
        come = arrivals(count, busy)
        arrived: dict[str, list[Run]] = {name: [] for name in ("ours", *_IN_ARRIVAL_ORDER)}
        for _ in range(turns):
            arrived["ours"].append(ours.run_arriving(rows, come))
            for order in _IN_ARRIVAL_ORDER:
                arrived[order].append(pipe.run_arriving(rows, come, size=pipe_way.size, order=order))
            for name, each in arrived.items():
                print(f"  {name}: p99 {each[-1].p99_s:.2f} s, load {os.getloadavg()[0]:.1f}", flush=True)
        said = note(
            each_round=f"{count} jobs with {', '.join(map(str, MIXED_STEPS))} steps at random, {UNGUIDED_SHARE:.0%} "
            f"without guidance, the others with {GUIDANCE:g}: {unet_rows(rows):,} rows of the U-Net",
            those_that_arrive=f"{busy:.2f} a second, {_BUSY:.0%} of what the quicker in arrival order draw",
            latentfarm=f"{our_way}, {ours.slots()} slots",
            diffusers=pipe_way,
        )
    return lines_of(runs, arrived), said


def main() -> int:
    """Return 1 where a bar is missed."""
    arguments = parse_arguments(__doc__)
    with temporary_folder() as folder, farm_servers(folder / "farm") as found:
        settings = found.model_copy(update={"dtype": DTYPE})
        conditions = Conditions(Farm.open(settings).ledger.ping())
        lines, said = measure(settings, folder, quick=arguments.quick)
    return report("mixed", lines, conditions, write=arguments.write, note=said)


if __name__ == "__main__":
    raise SystemExit(main())
