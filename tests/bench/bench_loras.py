"""Measure jobs of 16 different LoRAs in one batch, against the same jobs without, and against one LoRA at a time.

    python -m tests.bench.bench_loras            # print the table
    python -m tests.bench.bench_loras --write    # also write it into docs/explanation/benchmarks.md

The engine of a worker renders in process, with the bundled model. The LoRAs have rank 16, and change the attention,
the feed-forward layers and the projections of the U-Net. A worker of one LoRA at a time has the same engine; it adds
each LoRA to the weights and takes it off again when the next job has another. Jobs come in turn: no two neighbours have
the same LoRA. The parts of a round run one after the other, so that each has the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tests.bench.comparison import CORES
from tests.bench.servers import temporary_folder
from tests.bench.table import Conditions, Line, parse_arguments, report
from tests.bench.worker_engine import load, make_engine
from tests.support.loras import LINEAR, catalogue_of, changes, write_peft

from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine, Rendered

LORAS, RANK, JOBS, STEPS, ROUNDS = 16, 16, 64, 20, 3
_LABELS = {
    "plain": "without LoRAs",
    "mixed": "16 LoRAs in one batch",
    "in turn": "one LoRA at a time, in the order of the jobs",
    "sorted": "one LoRA at a time, jobs sorted by LoRA",
}


def write_loras(family: Any, folder: Path) -> None:
    """Write the LoRAs, whose sums are as small as those of trained ones."""
    folder.mkdir()
    for number in range(LORAS):
        found = changes(family, rank=RANK, seed=number, ends=LINEAR, text=False, size=0.05)
        write_peft(folder / f"style{number}.safetensors", found)


def jobs(count: int, *, steps: int, loras: bool) -> list[Job]:
    """Return guided jobs; with ``loras``, each has the next of the 16."""
    return [
        Job(
            batch="bench",
            index=index,
            prompt=f"a red circle, number {index}",
            seed=index,
            num_inference_steps=steps,
            guidance_scale=4.0,
            loras=f"style{index % LORAS}:0.8" if loras else (),
        )
        for index in range(count)
    ]


def render(engine: Engine, wanted: Sequence[Job]) -> None:
    """Render jobs, never more at once than there are free slots.

    Raises:
        RuntimeError: a job failed.
    """
    waiting = list(reversed(wanted))
    while waiting or engine.busy:
        while waiting and engine.free:
            engine.admit(waiting.pop())
        for outcome in engine.step():
            if not isinstance(outcome, Rendered):
                raise RuntimeError(f"{outcome.job.name}: {outcome.error}")


@contextmanager
def added(family: Any, change: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Iterator[None]:
    """Add a LoRA to the weights, and take it off again."""
    model = family.denoising_model
    weights: dict[str, torch.Tensor] = {}
    for name, (down, up) in change.items():
        module = model.get_submodule(name.partition(".")[2])
        weights[name] = (0.8 * (up.flatten(1) @ down.flatten(1))).view_as(module.weight)
    try:
        _add(model, weights, 1.0)
        yield
    finally:
        _add(model, weights, -1.0)


def _add(model: Any, weights: dict[str, torch.Tensor], sign: float) -> None:
    for name, weight in weights.items():
        model.get_submodule(name.partition(".")[2]).weight.add_(weight, alpha=sign)
    for module in model.modules():
        # the fused projections are copies
        if hasattr(module, "to_qkv"):
            module.to_qkv.weight.copy_(torch.cat([module.to_q.weight, module.to_k.weight, module.to_v.weight]))
        elif hasattr(module, "to_kv"):
            module.to_kv.weight.copy_(torch.cat([module.to_k.weight, module.to_v.weight]))


def one_at_a_time(engine: Engine, wanted: Sequence[Job]) -> None:
    """Render jobs in their order, those with the same LoRA together, with its weights added to the model's."""
    for number, group in groupby(wanted, key=lambda job: job.index % LORAS):
        change = changes(engine.family, rank=RANK, seed=number, ends=LINEAR, text=False, size=0.05)
        with torch.no_grad(), added(engine.family, change):
            render(engine, [*group])


def seconds(work: Callable[[], object]) -> float:
    """Return how long some work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(folder: Path, *, count: int, steps: int, rounds: int) -> list[Line]:
    """Render the jobs in each way, in turn."""
    family: Any = load("", dtype="float32", device="cpu")
    write_loras(family, folder / "loras")
    family.use_catalogue(catalogue_of(folder / "loras", folder / "cache"))
    engine = make_engine(family)
    plain, styled = jobs(count, steps=steps, loras=False), jobs(count, steps=steps, loras=True)
    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: render(engine, plain),
        "mixed": lambda: render(engine, styled),
        "in turn": lambda: one_at_a_time(engine, plain),
        "sorted": lambda: one_at_a_time(engine, sorted(plain, key=lambda job: job.index % LORAS)),
    }
    # the LoRAs are read, and on the device
    render(engine, styled[:LORAS])
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            found[way].append(seconds(work))
    rate = {way: count / median(each) for way, each in found.items()}
    return [
        *(Line(f"{label}, median of {rounds}", rate[way], "images/s") for way, label in _LABELS.items()),
        Line("16 LoRAs in one batch against none", rate["mixed"] / rate["plain"], "times", 0.8, at_least=True),
        Line(
            "against one at a time, in the order of the jobs",
            rate["mixed"] / rate["in turn"],
            "times",
            3,
            at_least=True,
        ),
        Line("against one at a time, sorted", rate["mixed"] / rate["sorted"], "times"),
        Line("rows of a call", engine.micro_batch),
    ]


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__)
    count, steps, rounds = (16, 2, 1) if arguments.quick else (JOBS, STEPS, ROUNDS)
    conditions = Conditions()
    with temporary_folder() as folder:
        lines = measure(folder, count=count, steps=steps, rounds=rounds)
    note = f"{count} guided jobs of {steps} steps, mini in float32, {CORES} torch threads."
    return report("loras", lines, conditions, write=arguments.write, note=note)


if __name__ == "__main__":
    raise SystemExit(main())
