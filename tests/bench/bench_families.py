"""Measure flow-matching transformers on the CPU: jobs of mixed steps and guidance, against diffusers' static batches.

    python -m tests.bench.bench_families            # print the table
    python -m tests.bench.bench_families --write    # also write it into docs/explanation/benchmarks.md

The models are mini-flow, which is trained, and two with random weights: of SD 3's kind and of FLUX.1 dev's, with some
50 million parameters each. Both sides render in memory, with one process of one thread for each core.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from tests.bench.comparison import CORES, DTYPE, cpu_of, rates_of, run_in_turn
from tests.bench.render_processes import ModelSource, RenderProcesses
from tests.bench.servers import temporary_folder
from tests.bench.table import Conditions, Line, parse_arguments, report
from tests.bench.workload import Row, mixed
from tests.support.full_size import SMALL_FLUX1, SMALL_SD3

from latentfarm_worker.mini import FLOW_DIR

#: those of few-step models and of others, in one queue
_STEPS = (4, 8, 12)
_BATCH_SIZE = 4
_LABELS = {
    "latentfarm": "latentfarm's engine",
    "arrival": "static batches in arrival order, as long as their longest job",
    "split": "static batches in arrival order, split by settings",
    "sorted": "static batches sorted by settings",
}


def measure_model(title: str, source: Path, rows: list[Row], folder: Path, rounds: int) -> list[Line]:
    """Render the rows with all renderers in turn."""
    print(f"-- {title}", flush=True)
    model = ModelSource(str(source), DTYPE)
    with ExitStack() as stack:
        engine, diffusers = (
            stack.enter_context(RenderProcesses(kind, model, processes=CORES, log=folder / f"{kind}.log"))
            for kind in ("engine", "diffusers")
        )
        for renderer in (engine, diffusers):
            renderer.run(rows[: 2 * CORES])
        static = {
            order: partial(diffusers.run, rows, size=_BATCH_SIZE, order=order)
            for order in ("arrival", "split", "sorted")
        }
        runs = run_in_turn({"latentfarm": partial(engine.run, rows), **static}, rounds)
    rate, cpu_s = rates_of(runs), cpu_of(runs)
    peer = max(rate["arrival"], rate["split"])
    return [
        *(Line(f"{title}: {label}, median of {rounds}", rate[name], "images/s") for name, label in _LABELS.items()),
        *(Line(f"{title}: {label}, CPU an image", cpu_s[name], "s") for name, label in _LABELS.items()),
        Line(f"{title}: against the faster in arrival order", rate["latentfarm"] / peer, "times", 1, at_least=True),
        Line(f"{title}: against sorted batches", rate["latentfarm"] / rate["sorted"], "times"),
    ]


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__)
    count, rounds = (4, 1) if arguments.quick else (16, 1)
    lines: list[Line] = []
    with temporary_folder() as folder:
        conditions = Conditions()
        sources = {"mini-flow": FLOW_DIR}
        for shape in (SMALL_SD3, SMALL_FLUX1):
            sources[shape.title] = shape.write(folder / shape.kind, dtype=torch.float32, device="cpu")
        for title, source in sources.items():
            # mini-flow's images are small
            side = 128 if source == FLOW_DIR else 256
            # diffusers' FluxPipeline has one native size for all models, so the size is explicit
            size = {"width": side, "height": side}
            jobs = [{**row, **size} for row in mixed(4 * count if source == FLOW_DIR else count, steps=_STEPS)]
            lines += measure_model(title, source, jobs, folder, rounds)
    note = (
        f"{', '.join(map(str, _STEPS))} steps at random, 25% of the jobs without guidance; mini-flow at 128 x 128 "
        f"pixels with {4 * count} jobs, the others at 256 x 256 with {count}; {DTYPE}; both sides have {CORES} "
        f"processes of 1 torch thread; static batches of {_BATCH_SIZE}."
    )
    return report("families", lines, conditions, write=arguments.write, note=note)


if __name__ == "__main__":
    raise SystemExit(main())
