"""The fair comparison of renderers: each has a process of one thread for every core, and the batch size that suits it.

A process with all threads was slower for each of them on two cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from tests.bench.render_processes import Kind, ModelSource, RenderProcesses, Run
from tests.bench.servers import farm_servers, temporary_folder
from tests.bench.table import Conditions, Line, parse_arguments, report
from tests.bench.workload import uniform

from latentfarm.farm import Farm

CORES = os.cpu_count() or 1
DTYPE = "float32"
#: static batch sizes that are tried, and the steps of those trials
BATCH_SIZES = (4, 8, 16, 32)
_TRIAL_STEPS = 10

#: runs of each renderer, taken in turn
Runs = dict[str, list[Run]]


def start_processes(kind: Kind, folder: Path) -> RenderProcesses:
    """Start a process for each core, which renders the bundled model in memory."""
    return RenderProcesses(kind, ModelSource(dtype=DTYPE), processes=CORES, log=folder / f"{kind}.log")


def fastest_batch_size(diffusers: RenderProcesses, sizes: Sequence[int]) -> int:
    """Return the batch size with which diffusers' ``pipe(list)`` renders fastest."""
    rates: dict[int, float] = {}
    for size in sizes:
        rows = uniform(max(24, size * CORES), num_inference_steps=_TRIAL_STEPS)
        diffusers.run(uniform(size * CORES, num_inference_steps=2), size=size)
        rates[size] = diffusers.run(rows, size=size).images_per_s
        print(f"  pipe(list) of {size}: {rates[size]:.2f} images/s of {_TRIAL_STEPS} steps", flush=True)
    return max(rates, key=rates.__getitem__)


def run_in_turn(renderers: Mapping[str, Callable[[], Run]], rounds: int) -> Runs:
    """Call each renderer once a round, and print its rate."""
    runs: Runs = {name: [] for name in renderers}
    for _ in range(rounds):
        for name, render in renderers.items():
            run = render()
            runs[name].append(run)
            print(f"  {name}: {run.images_per_s:.2f} images/s, load {os.getloadavg()[0]:.1f}", flush=True)
    return runs


def rates_of(runs: Runs) -> dict[str, float]:
    """Return the median images per second of each renderer."""
    return {name: median(run.images_per_s for run in each) for name, each in runs.items()}


def cpu_of(runs: Runs) -> dict[str, float]:
    """Return the median CPU seconds of an image of each renderer."""
    return {name: median(run.cpu_per_image_s for run in each) for name, each in runs.items()}


def largest_difference(*files: Path) -> int:
    """Return the largest difference of a pixel value, of 255, between the first image and the others."""
    first, *others = (np.asarray(Image.open(file).convert("RGB"), dtype=int) for file in files)
    return max(int(np.abs(first - other).max()) for other in others)


def describe(**parts: Any) -> str:
    """Return the note under a table: the model, the versions, and ``parts`` by name."""
    text = "; ".join(f"{name.replace('_', ' ')}: {part}" for name, part in parts.items())
    return (
        f"The bundled model, 128 x 128 pixels, its own scheduler (DPM-Solver++ 2M), {DTYPE}, seeds from 0 on; torch "
        f"{version('torch')}, diffusers {version('diffusers')}. {text}."
    )


def run_comparison(name: str, description: str | None, measure: Callable[..., tuple[list[Line], str]]) -> int:
    """Run a benchmark against a farm of its own and report its table; return 1 if a bar is missed."""
    arguments = parse_arguments(description)
    with temporary_folder() as folder, farm_servers(folder / "farm") as servers:
        settings = servers.model_copy(update={"dtype": DTYPE})
        conditions = Conditions(Farm.open(settings).ledger.ping())
        lines, note = measure(settings, folder, quick=arguments.quick)
    return report(name, lines, conditions, write=arguments.write, note=note)
