"""The fair comparison of renderers: each runs with the process count and batch size that suit it best."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tests.bench.render_processes import Kind, ModelSource, RenderProcesses, Run
from tests.bench.servers import farm_servers, temporary_folder
from tests.bench.table import Conditions, Line, parse_arguments, report
from tests.bench.workload import Row

from latentfarm.farm import Farm

CORES = os.cpu_count() or 1
DTYPE = "float32"
#: the process counts and static batch sizes that are tried
PROCESS_COUNTS = sorted({1, CORES})
BATCH_SIZES = (4, 8, 16, 32)


@dataclass(frozen=True)
class Setup:
    """The setup of a renderer: processes, and images in a static batch (0: it uses none)."""

    processes: int
    batch_size: int = 0

    @property
    def threads(self) -> int:
        """Return the torch threads of a process."""
        return max(1, CORES // self.processes)

    def __str__(self) -> str:
        batch = f", batches of {self.batch_size}" if self.batch_size else ""
        return f"{self.processes} process{'es' * (self.processes > 1)} of {self.threads} torch threads{batch}"


def fastest(runs: Mapping[Setup, Run]) -> Setup:
    """Print all runs and return the setup that took the least time."""
    for setup, run in runs.items():
        print(f"  {setup}: {run.images_per_s:.2f} images/s, {run.cpu_per_image_s:.2f} CPU s an image", flush=True)
    return min(runs, key=lambda setup: runs[setup].wall_s)


@contextmanager
def fastest_renderer(
    start: Callable[[int], Any], rows: Sequence[Row], name: str, process_counts: Sequence[int]
) -> Iterator[tuple[Setup, Any]]:
    """Start a renderer with each process count, yield the fastest, and stop the others."""
    print(f"{name}:", flush=True)
    with ExitStack() as stack:
        started: dict[Setup, tuple[ExitStack, Any]] = {}
        runs: dict[Setup, Run] = {}
        for processes in process_counts:
            own, setup = stack.enter_context(ExitStack()), Setup(processes)
            renderer = own.enter_context(start(processes))
            started[setup] = (own, renderer)
            renderer.run(rows[: 2 * processes])
            runs[setup] = renderer.run(rows)
        best = fastest(runs)
        for setup, (own, _) in started.items():
            if setup != best:
                own.close()
        yield best, started[best][1]


def start_processes(kind: Kind, setup: Setup, folder: Path) -> RenderProcesses:
    """Start processes that render the bundled model in memory."""
    source = ModelSource(dtype=DTYPE)
    return RenderProcesses(kind, source, processes=setup.processes, threads=setup.threads, log=folder / f"{kind}.log")


def fastest_static_batches(
    rows: Sequence[Row], folder: Path, batch_sizes: Sequence[int], process_counts: Sequence[int]
) -> Setup:
    """Return the process count and batch size with which diffusers' ``pipe(list)`` renders fastest."""
    print("pipe(list):", flush=True)
    runs = {}
    for processes in process_counts:
        with start_processes("diffusers", Setup(processes), folder) as diffusers:
            for size in batch_sizes:
                diffusers.run(rows[: size * processes], size=size)
                runs[Setup(processes, size)] = diffusers.run(rows, size=size)
    return fastest(runs)


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


def run_comparison(name: str, description: str, measure: Callable[..., tuple[list[Line], str]]) -> int:
    """Run a benchmark against a farm of its own and report its table; return 1 if a bar is missed."""
    arguments = parse_arguments(description)
    with temporary_folder() as folder, farm_servers(folder / "farm") as servers:
        settings = servers.model_copy(update={"dtype": DTYPE})
        conditions = Conditions(Farm.open(settings).ledger.ping())
        lines, note = measure(settings, folder, quick=arguments.quick)
    return report(name, lines, conditions, write=arguments.write, note=note)
