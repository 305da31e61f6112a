"""One run of the GPU benchmark: its options, its renderers, and its results so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tests.bench.comparison import CORES
from tests.bench.end_to_end import celery_workers, latentfarm_workers
from tests.bench.render_processes import Kind, ModelSource, RenderProcesses
from tests.bench.servers import redis_server
from tests.bench.table import Conditions, Line
from tests.bench.workload import GUIDANCE, MIXED_STEPS, uniform
from tests.support.full_size import FLUX1, SD15, SD35, SDXL, FullSize

from latentfarm.errors import LatentfarmError
from latentfarm.settings import Settings

#: what a measurement may fail with; the others go on
FAILURES = (LatentfarmError, RuntimeError, ImportError, OSError)


@dataclass(frozen=True)
class Workload:
    """A model, and how much of it fits into ten minutes of a data-centre GPU.

    Attributes:
        jobs: of the comparison from queue to object.
        few: of those that a plain Celery worker renders.
        batch_sizes: static batch sizes that are tried.
        batch_size: the one that is used if none was tried in this run.
        share: the goal for the share of the measured matrix product's rate, None without a goal.
        images_per_s: the goals by quantization.
    """

    model: FullSize
    jobs: int
    few: int
    batch_sizes: tuple[int, ...]
    batch_size: int
    share: float | None = None
    images_per_s: dict[str, float] = field(default_factory=dict)


WORKLOADS = {
    "sd15": Workload(SD15, jobs=128, few=16, batch_sizes=(8, 16, 32), batch_size=16, share=0.45),
    "sdxl": Workload(
        SDXL, jobs=48, few=6, batch_sizes=(4, 8, 16), batch_size=8, images_per_s={"none": 1.2, "fp8": 1.47}
    ),
    "flux1": Workload(FLUX1, jobs=24, few=3, batch_sizes=(2, 4, 8), batch_size=4),
    "sd35": Workload(SD35, jobs=24, few=3, batch_sizes=(2, 4, 8), batch_size=4),
}
#: rows of the micro-batches that are tried
MICRO_BATCHES = (8, 16, 32)
#: arriving jobs take this share of the rate that waiting jobs reached
ARRIVAL_SHARE = 0.7


@dataclass
class GpuRun:
    """The options of a run, and its results so far."""

    source: ModelSource
    work: Workload
    folder: Path
    ends: float
    tiny: bool
    rounds: int
    #: the static batch size of the comparison
    batch_size: int = 0
    #: TFLOP/s of a large matrix product
    matmul: float = 0.0
    #: images per second from queue to object
    rate: float = 0.0
    lines: list[Line] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    settings: Settings | None = None

    def count(self, jobs: int) -> int:
        """Return the number of jobs to render: ``jobs``, or 4 of the tiny model."""
        return 4 if self.tiny else jobs

    @property
    def job_settings(self) -> dict[str, int]:
        """Return settings that override those of the jobs."""
        return {"num_inference_steps": 2 if self.tiny else self.work.model.steps}

    @property
    def processes(self) -> int:
        """Return the number of workers: one on a GPU, one for each core on a CPU, so that threads do not contend."""
        return CORES if self.source.device == "cpu" else 1

    @property
    def backend(self) -> str:
        """Return torch.compile's backend. The one for the tiny model only traces."""
        return "aot_eager" if self.tiny else "inductor"

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return (2,) if self.tiny else self.work.batch_sizes

    @property
    def micro_batches(self) -> tuple[int, ...]:
        return (2, 4) if self.tiny else MICRO_BATCHES

    @property
    def mixed_steps(self) -> tuple[int, ...]:
        return (1, 2, 3) if self.tiny else MIXED_STEPS

    def add(self, *lines: Line) -> None:
        """Add lines to the table and print them at once, so that an interrupted run has shown its results."""
        self.lines.extend(lines)
        for line in lines:
            print(line.markdown(), flush=True)

    def has_time(self, needs_s: float) -> bool:
        return self.ends - time.monotonic() >= needs_s

    def attempt(self, needs_s: float, measurement: Callable[..., None], *arguments: Any) -> None:
        """Take a measurement if there is time. If it fails, record why and continue."""
        name = measurement.__name__.replace("_", " ")
        print(f"-- {name}", flush=True)
        if not self.has_time(needs_s):
            self.left_out.append(f"{name}: no time")
            return
        try:
            measurement(self, *arguments)
        except FAILURES as error:
            self.left_out.append(f"{name}: {error}")

    def renderer(self, kind: Kind, **options: Any) -> RenderProcesses:
        """Start a process that renders in memory. ``options`` override fields of the model's source."""
        threads = max(1, CORES // self.processes)
        return RenderProcesses(kind, replace(self.source, **options), threads=threads, log=self.folder / f"{kind}.log")

    @contextmanager
    def all_renderers(self) -> Iterator[dict[str, Any]]:
        """Start all renderers, warm them up and yield them by name."""
        assert self.settings is not None
        settings, count, folder, device = self.settings, self.processes, self.folder, self.source.device
        with ExitStack() as stack:
            start: Callable[[Any], Any] = stack.enter_context
            celery_redis = start(redis_server(folder / "celery-redis"))
            renderers = {
                "latentfarm": start(latentfarm_workers(settings, count, folder / "latentfarm")),
                "celery": start(celery_workers(settings, celery_redis, count, folder / "celery", device=device)),
                "diffusers": start(self.renderer("diffusers", backend=self.backend)),
                "engine": start(self.renderer("engine")),
            }
            for name, renderer in renderers.items():
                options = {"size": self.batch_size} if name == "diffusers" else {}
                renderer.run(uniform(2, num_inference_steps=2), **options)
            yield renderers


class DeviceConditions(Conditions):
    """The conditions of a measurement of a device."""

    def __init__(self, run: GpuRun) -> None:
        super().__init__()
        self._run = run

    def markdown(self) -> str:
        """Return a sentence about the device, and the measurements that were left out."""
        source, model = self._run.source, self._run.work.model
        name = "the CPU, a tiny model: a check of the script only"
        if source.device == "cuda":
            memory = torch.cuda.get_device_properties(0).total_memory / 2**30
            cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
            name = f"{torch.cuda.get_device_name(0)} ({memory:.0f} GiB), CUDA {torch.version.cuda}, cuDNN {cudnn}"
        versions = ", ".join(f"{each} {version(each)}" for each in ("torch", "diffusers", "transformers"))
        quantized = "" if source.quantization == "none" else f" with {source.quantization}"
        text = (
            f"{datetime.now(UTC):%Y-%m-%d}, {name}; {versions}; {model.title}'s shapes, {source.dtype}{quantized}; "
            f"Euler, guidance {GUIDANCE:g}, {model.steps} steps if not stated otherwise, {model.side} x "
            f"{model.side} pixels, seeds from 0 on."
        )
        return "\n".join([text, *(f"\nLeft out: {each}" for each in self._run.left_out)])
