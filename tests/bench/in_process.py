"""Sides that render in memory, nothing encoded or stored: processes that load a model once and render on command.

They sit idle while the other side has its turn. One line of JSON is asked on standard input, one answered.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from tests.bench.table import process_cpu_s
from tests.bench.workload import Row

Kind = Literal["pipe", "engine"]


@dataclass(frozen=True)
class Run:
    """One turn of a side: seconds on the wall and of its CPUs, and the time of each job, in no order.

    A job's time, in ``ready_s``, is from its arrival, or else from the start of the run, to its picture.
    """

    wall_s: float
    cpu_s: float
    ready_s: tuple[float, ...]

    @property
    def images_per_s(self) -> float:
        """Pictures a second."""
        return len(self.ready_s) / self.wall_s

    @property
    def p99_s(self) -> float:
        """The time that 99 of 100 jobs take at most."""
        ready = sorted(self.ready_s)
        return ready[min(len(ready) - 1, -(-99 * len(ready) // 100) - 1)]


@dataclass(frozen=True)
class Load:
    """What a side's processes load, and on what.

    ``backend``: torch.compile's, for a pipe; empty: it is not compiled. ``slots`` 0: as many as a worker takes.
    """

    source: str = ""
    dtype: str = "float32"
    device: str = "cpu"
    backend: str = ""
    slots: int = 0


class InProcess:
    """A side: ``processes`` with ``threads`` torch threads each, among which the rows are dealt; a context manager."""

    def __init__(self, kind: Kind, load: Load, *, processes: int = 1, threads: int = 1, log: Path) -> None:
        self.threads = threads
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self._children = [
                subprocess.Popen(
                    [sys.executable, "-m", __name__, kind, json.dumps(asdict(load))],
                    env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
                for _ in range(processes)
            ]
        self._log = log
        for child in self._children:
            self._answer(child)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.terminate()
        for child in self._children:
            # closes its pipes too
            child.communicate()

    def run(self, rows: Sequence[Row], **how: Any) -> Run:
        """Render the rows; ``how``: ``size`` and ``order`` of a pipe's static batches, ``slots`` of an engine.

        Raises:
            RuntimeError: the process failed; its log says why.
        """
        return self._run(rows, [time.monotonic()] * len(rows), arriving=False, **how)

    def run_arriving(self, rows: Sequence[Row], arrive_s: Sequence[float], **how: Any) -> Run:
        """Have a pipe render rows that arrive one by one, each after its seconds; otherwise as ``run``."""
        began = time.monotonic()
        return self._run(rows, [began + after for after in arrive_s], arriving=True, **how)

    def _run(self, rows: Sequence[Row], since: list[float], *, arriving: bool, **how: Any) -> Run:
        """Render rows whose times count from ``since``; ``arriving``: they are not there before."""
        count, began, cpu_s = len(self._children), time.monotonic(), self._cpu_s()
        for number, child in enumerate(self._children):
            when = {"arrive": since[number::count]} if arriving else {}
            self._ask(child, rows=list(rows[number::count]), **when, **how)
        ready: list[float] = []
        for number, child in enumerate(self._children):
            done = self._answer(child)["ready"]
            ready += [at - come for at, come in zip(done, since[number::count], strict=True)]
        return Run(time.monotonic() - began, self._cpu_s() - cpu_s, tuple(ready))

    def digests(self, rows: Sequence[Row], **how: Any) -> list[str]:
        """Return the SHA-256 of the pixels of each row, all rendered together by the first process."""
        self._ask(self._children[0], rows=list(rows), digests=True, **how)
        return list(self._answer(self._children[0])["digests"])

    def save(self, row: Row, file: Path) -> Path:
        """Have one picture drawn into a file."""
        self._ask(self._children[0], rows=[row], save=str(file))
        self._answer(self._children[0])
        return file

    def _ask(self, child: subprocess.Popen[str], **asked: Any) -> None:
        assert child.stdin is not None
        child.stdin.write(json.dumps(asked) + "\n")
        child.stdin.flush()

    def _answer(self, child: subprocess.Popen[str]) -> dict[str, Any]:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise RuntimeError(f"the side failed:\n{self._log.read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _cpu_s(self) -> float:
        return sum(process_cpu_s(child.pid) for child in self._children)


# -- in the process ------------------------------------------------------------------------------------------

#: renders rows: their pixels, each with the time at which they were ready
Render = Callable[..., list[tuple[Any, float]]]


def _make_pipe(load: Load) -> Render:
    import numpy as np
    from tests.bench import pipes

    pipe = pipes.load_pipe(load.source, dtype=load.dtype, device=load.device, backend=load.backend)

    def render(
        rows: list[Row], *, size: int = 1, order: pipes.Order = "arrival", arrive: Sequence[float] = ()
    ) -> list[tuple[Any, float]]:
        done: list[Any] = [None] * len(rows)
        there = pipes.arriving(rows, size, order, arrive) if arrive else pipes.batches(rows, size, order)
        for numbers, steps, guidance in there:
            batch = [rows[number] for number in numbers]
            # a compiled graph is for one size: what is missing is filled up
            filled = [*batch, *([batch[0]] * (size - len(batch) if load.backend else 0))]
            images = pipes.draw(pipe, filled, steps=steps, guidance=guidance)
            now = time.monotonic()
            for number, image in zip(numbers, images, strict=False):
                done[number] = (np.asarray(image), now)
        return done

    return render


def _make_engine(load: Load) -> Render:
    from tests.bench import ours

    family = ours.load(load.source, dtype=load.dtype, device=load.device)
    made = {load.slots: ours.make_engine(family, slots=load.slots)}

    def render(rows: list[Row], *, slots: int = load.slots) -> list[tuple[Any, float]]:
        if slots not in made:
            # one at a time: a device holds no two
            made.clear()
            made[slots] = ours.make_engine(family, slots=slots)
        done: list[Any] = [None] * len(rows)
        for number, pixels in ours.render(made[slots], rows):
            done[number] = (pixels, time.monotonic())
        return done

    return render


def serve(kind: Kind, load: Load) -> None:
    """Load, then answer until standard input ends."""
    import torch
    from PIL import Image

    # 0 leaves it to torch
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]) or torch.get_num_threads())
    render = (_make_pipe if kind == "pipe" else _make_engine)(load)
    print("{}", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        digests, save = asked.pop("digests", False), asked.pop("save", None)
        done = render(asked.pop("rows"), **asked)
        if save is not None:
            Image.fromarray(done[0][0]).save(save)
        sums = [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels, _ in done] if digests else []
        print(json.dumps({"ready": [at for _, at in done], "digests": sums}), flush=True)


if __name__ == "__main__":
    serve("engine" if sys.argv[1] == "engine" else "pipe", Load(**json.loads(sys.argv[2])))
