"""Renderers in memory, with nothing encoded or stored: processes that load a model once and render on request.

They are idle while another renderer has its turn. Each request is a line of JSON on standard input, and each reply a
line of JSON on standard output.
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
from statistics import median
from typing import Any, Literal, Self

from tests.bench.table import process_cpu_s
from tests.bench.workload import Row

Kind = Literal["diffusers", "engine"]


@dataclass(frozen=True)
class Run:
    """One timed run: wall seconds, CPU seconds, and the seconds of each job in no particular order.

    A job's time ends with its image. It starts with its arrival, or with the run if all jobs wait from the start.
    """

    wall_s: float
    cpu_s: float
    job_s: tuple[float, ...]

    @property
    def images_per_s(self) -> float:
        return len(self.job_s) / self.wall_s

    @property
    def cpu_per_image_s(self) -> float:
        return self.cpu_s / len(self.job_s)

    @property
    def p50_s(self) -> float:
        """Return the median of the jobs' times."""
        return median(self.job_s)

    @property
    def p99_s(self) -> float:
        """Return the 99th percentile of the jobs' times."""
        return p99(self.job_s)


def p99(seconds: Sequence[float]) -> float:
    """Return the 99th percentile."""
    times = sorted(seconds)
    return times[min(len(times) - 1, -(-99 * len(times) // 100) - 1)]


@dataclass(frozen=True)
class ModelSource:
    """The model that a process loads, and its device.

    ``source``: a diffusers folder [default: the bundled model]. ``backend``: torch.compile's backend for diffusers
    [default: not compiled]. Of an engine: ``micro_batch`` [default: chosen as a worker does] and ``quantization``.
    """

    source: str = ""
    dtype: str = "float32"
    device: str = "cpu"
    backend: str = ""
    micro_batch: int = 0
    quantization: str = "none"


class RenderProcesses:
    """Processes with some torch threads each, which share the rows evenly. A context manager."""

    def __init__(self, kind: Kind, model: ModelSource, *, processes: int = 1, threads: int = 1, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self._children = [
                subprocess.Popen(
                    [sys.executable, "-m", __name__, kind, json.dumps(asdict(model))],
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
            self._receive(child)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.terminate()
        for child in self._children:
            # closes its pipes too
            child.communicate()

    def run(self, rows: Sequence[Row], **options: Any) -> Run:
        """Render the rows.

        ``options``: ``size`` and ``order`` of diffusers' batches, or ``micro_batch`` and ``cuda_graphs`` of an engine.

        Raises:
            RuntimeError: The process failed. The message has the end of its log.
        """
        return self._run(rows, [time.monotonic()] * len(rows), arriving=False, **options)

    def run_arriving(self, rows: Sequence[Row], arrive_s: Sequence[float], **options: Any) -> Run:
        """Render rows with diffusers as they arrive, at these seconds from now."""
        began = time.monotonic()
        return self._run(rows, [began + after for after in arrive_s], arriving=True, **options)

    def _run(self, rows: Sequence[Row], since: list[float], *, arriving: bool, **options: Any) -> Run:
        count, began, cpu_s = len(self._children), time.monotonic(), self._cpu_s()
        for number, child in enumerate(self._children):
            arrive = {"arrive": since[number::count]} if arriving else {}
            self._send(child, rows=list(rows[number::count]), **arrive, **options)
        job_s: list[float] = []
        for number, child in enumerate(self._children):
            finished = self._receive(child)["finished"]
            job_s += [at - start for at, start in zip(finished, since[number::count], strict=True)]
        return Run(time.monotonic() - began, self._cpu_s() - cpu_s, tuple(job_s))

    def digests(self, rows: Sequence[Row], **options: Any) -> list[str]:
        """Render all rows together in the first process. Return the SHA-256 of the pixels of each."""
        self._send(self._children[0], rows=list(rows), digests=True, **options)
        return list(self._receive(self._children[0])["digests"])

    def save(self, row: Row, file: Path) -> Path:
        """Render one image into a file."""
        self._send(self._children[0], rows=[row], save=str(file))
        self._receive(self._children[0])
        return file

    def _send(self, child: subprocess.Popen[str], **request: Any) -> None:
        assert child.stdin is not None
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.flush()

    def _receive(self, child: subprocess.Popen[str]) -> dict[str, Any]:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise RuntimeError(f"a renderer failed:\n{self._log.read_text()[-2000:]}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _cpu_s(self) -> float:
        return sum(process_cpu_s(child.pid) for child in self._children)


# -- in the child process ------------------------------------------------------------------------------------

#: renders rows: their pixels, each with the time at which they were ready
Render = Callable[..., list[tuple[Any, float]]]


def _load_diffusers(model: ModelSource) -> Render:
    import numpy as np
    from tests.bench import diffusers_pipeline

    pipe = diffusers_pipeline.load_pipe(model.source, dtype=model.dtype, device=model.device, backend=model.backend)

    def render(
        rows: list[Row], *, size: int = 1, order: diffusers_pipeline.Order = "arrival", arrive: Sequence[float] = ()
    ) -> list[tuple[Any, float]]:
        done: list[Any] = [None] * len(rows)
        if arrive:
            calls = diffusers_pipeline.arriving_batches(rows, size, order, arrive)
        else:
            calls = diffusers_pipeline.batches(rows, size, order)
        for numbers, steps, guidance in calls:
            batch = [rows[number] for number in numbers]
            # a compiled graph has one batch size: smaller batches are padded
            padded = [*batch, *([batch[0]] * (size - len(batch) if model.backend else 0))]
            images = diffusers_pipeline.render(pipe, padded, steps=steps, guidance=guidance)
            now = time.monotonic()
            for number, image in zip(numbers, images, strict=False):
                done[number] = (np.asarray(image), now)
        return done

    return render


def _load_engine(model: ModelSource) -> Render:
    from tests.bench import worker_engine

    family = worker_engine.load(model.source, dtype=model.dtype, device=model.device, quantization=model.quantization)
    engines: dict[tuple[int, bool | None], Any] = {}
    engines[model.micro_batch, None] = worker_engine.make_engine(family, micro_batch=model.micro_batch)

    def render(
        rows: list[Row], *, micro_batch: int = model.micro_batch, cuda_graphs: bool | None = None
    ) -> list[tuple[Any, float]]:
        wanted = (micro_batch, cuda_graphs)
        if wanted not in engines:
            # free the old one first: a device may not hold two
            engines.clear()
            engines[wanted] = worker_engine.make_engine(family, micro_batch=micro_batch, cuda_graphs=cuda_graphs)
        done: list[Any] = [None] * len(rows)
        for number, pixels in worker_engine.render(engines[wanted], rows):
            done[number] = (pixels, time.monotonic())
        return done

    return render


def serve(kind: Kind, model: ModelSource) -> None:
    """Load the model, then reply to requests until standard input ends."""
    import torch
    from PIL import Image

    # 0 leaves it to torch
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]) or torch.get_num_threads())
    render = (_load_diffusers if kind == "diffusers" else _load_engine)(model)
    print("{}", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        digests, save = request.pop("digests", False), request.pop("save", None)
        done = render(request.pop("rows"), **request)
        if save is not None:
            Image.fromarray(done[0][0]).save(save)
        sums = [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels, _ in done] if digests else []
        print(json.dumps({"finished": [at for _, at in done], "digests": sums}), flush=True)


if __name__ == "__main__":
    serve("engine" if sys.argv[1] == "engine" else "diffusers", ModelSource(**json.loads(sys.argv[2])))
