"""Measures pictures a second from queue to object and state, against a plain Celery worker and against diffusers alone.

    python -m tests.bench.bench_throughput            # prints the table
    python -m tests.bench.bench_throughput --write    # and puts it into docs/explanation/benchmarks.md

Each side first says, in a short round of its own, how it likes the cores best: one process with all threads, or a
process a core with one each; a static batch also, how large it should be. Then the sides render the same jobs in turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image
from tests.bench.end_to_end import Ours, Stock, our_workers, stock_workers
from tests.bench.in_process import InProcess, Kind, Load, Run
from tests.bench.servers import farm_servers, redis_server, temporary_folder
from tests.bench.table import Conditions, Line, parse_arguments, report
from tests.bench.workload import GUIDANCE, STEPS, Row, uniform

from latentfarm.farm import Farm
from latentfarm.settings import Settings

CORES = os.cpu_count() or 1
DTYPE = "float32"
#: how many processes share the cores, and how many pictures a static batch has
WAYS = sorted({1, CORES})
SIZES = (4, 8, 16, 32)

Side = TypeVar("Side", bound="Renders")


class Renders(Protocol):
    """A side of a comparison."""

    def run(self, rows: Sequence[Row]) -> Run:
        """Render the rows."""


@dataclass(frozen=True)
class Best:
    """What a side does best: processes, and pictures in a static batch (0: it makes none)."""

    processes: int
    size: int = 0

    @property
    def threads(self) -> int:
        """torch threads of a process."""
        return max(1, CORES // self.processes)

    def __str__(self) -> str:
        batch = f", batches of {self.size}" if self.size else ""
        return f"{self.processes} process{'es' * (self.processes > 1)} of {self.threads} torch threads{batch}"


def quickest(measured: Mapping[Best, Run]) -> Best:
    """Return the way that took the least time, and say what all took."""
    for way, run in measured.items():
        print(
            f"  {way}: {run.images_per_s:.2f} images/s, {run.cpu_s / len(run.ready_s):.2f} CPU s an image", flush=True
        )
    return min(measured, key=lambda way: measured[way].wall_s)


@contextmanager
def best_of(
    make: Callable[[int], Any], rows: Sequence[Row], name: str, counts: Sequence[int]
) -> Iterator[tuple[Best, Any]]:
    """Give the quickest of the same side with so many processes; the others are ended."""
    print(f"{name}:", flush=True)
    with ExitStack() as stack:
        made: dict[Best, tuple[ExitStack, Any]] = {}
        measured: dict[Best, Run] = {}
        for processes in counts:
            own = stack.enter_context(ExitStack())
            way = Best(processes)
            made[way] = (own, own.enter_context(make(processes)))
            made[way][1].run(rows[: 2 * processes])
            measured[way] = made[way][1].run(rows)
        best = quickest(measured)
        for way, (own, _) in made.items():
            if way != best:
                own.close()
        yield best, made[best][1]


def in_process(kind: Kind, best: Best, folder: Path) -> InProcess:
    """Return a side that renders in memory with the bundled model."""
    load = Load(dtype=DTYPE)
    return InProcess(kind, load, processes=best.processes, threads=best.threads, log=folder / f"{kind}.log")


def best_pipe(rows: Sequence[Row], folder: Path, sizes: Sequence[int], counts: Sequence[int]) -> Best:
    """Return the processes and the batch size with which ``pipe(list)`` renders most."""
    print("pipe(list):", flush=True)
    measured = {}
    for processes in counts:
        with in_process("pipe", Best(processes), folder) as side:
            for size in sizes:
                side.run(rows[: size * processes], size=size)
                measured[Best(processes, size)] = side.run(rows, size=size)
    return quickest(measured)


def furthest_apart(*files: Path) -> int:
    """Return by how much, of 255, the pictures differ where they differ most."""
    first, *others = (np.asarray(Image.open(file).convert("RGB"), dtype=int) for file in files)
    return max(int(np.abs(first - other).max()) for other in others)


def note(**ways: Any) -> str:
    """Return the sentence under the table that says what was rendered, with what and how."""
    told = "; ".join(f"{name.replace('_', ' ')}: {way}" for name, way in ways.items())
    return (
        f"The bundled model, 128 x 128 pixels, its own scheduler (DPM-Solver++ 2M), {DTYPE}, seeds from 0 on; torch "
        f"{version('torch')}, diffusers {version('diffusers')}. {told}."
    )


@dataclass(frozen=True)
class Rounds:
    """What each side took, in turn."""

    ours: list[Run]
    stock: list[Run]
    pipe: list[Run]
    engine: list[Run]


def lines_of(rounds: Rounds) -> list[Line]:
    """Return the table."""
    rate = {name: median(run.images_per_s for run in runs) for name, runs in vars(rounds).items()}
    cpu_s = {name: median(run.cpu_s / len(run.ready_s) for run in runs) for name, runs in vars(rounds).items()}
    count = len(rounds.ours)
    what = {
        "stock": "plain Celery worker, queue to object and state",
        "ours": "latentfarm, queue to object and state",
        "pipe": "diffusers `pipe(list)`, nothing encoded or stored",
        "engine": "latentfarm's engine alone, nothing encoded or stored",
    }
    return [
        *(Line(f"{text}, median of {count}", rate[name], "images/s") for name, text in what.items()),
        *(Line(f"{text}: CPU an image", cpu_s[name], "s") for name, text in what.items()),
        Line("latentfarm against the plain Celery worker", rate["ours"] / rate["stock"], "times", 2.5, at_least=True),
        Line(
            "latentfarm, all of it, against `pipe(list)` alone", rate["ours"] / rate["pipe"], "times", 1, at_least=True
        ),
        Line("latentfarm, all of it, against its engine alone", rate["ours"] / rate["engine"], "", 0.93, at_least=True),
    ]


def measure(settings: Settings, folder: Path, *, quick: bool) -> tuple[list[Line], str]:
    """Find each side's best way, compare a picture, then render in turn."""
    short, count, turns, steps = (2, 4, 1, 2) if quick else (24, 64, 3, STEPS)
    sizes, counts = ((2,), (CORES,)) if quick else (SIZES, WAYS)
    rows, trial = (uniform(jobs, num_inference_steps=steps) for jobs in (count, short))
    with ExitStack() as stack:
        peer_redis = stack.enter_context(redis_server(folder / "peer"))
        ours: Ours
        stock: Stock
        our_way, ours = stack.enter_context(
            best_of(lambda n: our_workers(settings, n, folder / f"ours-{n}"), trial, "latentfarm", counts)
        )
        stock_way, stock = stack.enter_context(
            best_of(
                lambda n: stock_workers(settings, peer_redis, n, folder / f"stock-{n}", device="cpu"),
                trial,
                "Celery",
                counts,
            )
        )
        pipe_way = best_pipe([*trial, *trial], folder, sizes, counts)
        pipe = stack.enter_context(in_process("pipe", pipe_way, folder))
        engine = stack.enter_context(in_process("engine", our_way, folder))
        apart = furthest_apart(
            ours.save(rows[0], folder / "ours.png"),
            stock.save(rows[0], folder / "stock.png"),
            pipe.save(rows[0], folder / "pipe.png"),
        )
        rounds = Rounds([], [], [], [])
        pipe.run(rows[: 2 * pipe_way.size], size=pipe_way.size)
        for _ in range(turns):
            rounds.stock.append(stock.run(rows))
            rounds.ours.append(ours.run(rows))
            rounds.pipe.append(pipe.run(rows, size=pipe_way.size))
            rounds.engine.append(engine.run(rows))
            for name, runs in vars(rounds).items():
                print(f"  {name}: {runs[-1].images_per_s:.2f} images/s, load {os.getloadavg()[0]:.1f}", flush=True)
        print("  stages of ours:", {name: round(s, 4) for name, s in ours.stage_seconds().items()}, flush=True)
        said = note(
            each_round=f"{count} jobs of {steps} steps, guidance {GUIDANCE:g}",
            latentfarm=f"{our_way}, {ours.slots()} slots",
            Celery_worker=stock_way,
            diffusers=pipe_way,
        )
    same = Line("an image of one seed: how far the sides are apart", apart, "of 255", 1)
    return [same, *lines_of(rounds)], said


def main() -> int:
    """Return 1 where a bar is missed."""
    arguments = parse_arguments(__doc__)
    with temporary_folder() as folder, farm_servers(folder / "farm") as found:
        settings = found.model_copy(update={"dtype": DTYPE})
        conditions = Conditions(Farm.open(settings).ledger.ping())
        lines, said = measure(settings, folder, quick=arguments.quick)
    return report("throughput", lines, conditions, write=arguments.write, note=said)


if __name__ == "__main__":
    raise SystemExit(main())
