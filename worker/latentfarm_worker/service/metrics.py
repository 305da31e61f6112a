"""The Prometheus metrics of a worker, and the only place where it counts.

Every series has the model's alias as a label, and none has a batch, a job or a worker, so their number is bounded. The
worker's name is a label of ``latentfarm_worker_info`` only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

import latentfarm
from latentfarm.errors import UnavailableError
from latentfarm.ledger.redis_errors import CAUSES

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

Outcome = Literal["done", "drafted", "failed", "retried", "lost"]
LeaseEvent = Literal["taken", "lost", "returned"]
Operation = Literal["lease", "renew", "put", "commit", "delete", "fail", "flush", "release", "heartbeat", "park"]
CheckpointEvent = Literal["drafted", "parked", "resumed", "missing", "damaged", "mismatched"]
EvaluationsFate = Literal["saved", "lost", "shared"]

T = TypeVar("T")

STAGES = ("queue", "wait", "text", "denoise", "decode", "encode", "upload")
_OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
_LEASE_EVENTS: tuple[LeaseEvent, ...] = get_args(LeaseEvent)
_OPERATIONS: tuple[Operation, ...] = get_args(Operation)
_CHECKPOINT_EVENTS: tuple[CheckpointEvent, ...] = get_args(CheckpointEvent)
_FATES: tuple[EvaluationsFate, ...] = get_args(EvaluationsFate)
#: what a retry's label ``cause`` may be, so that the number of series is bounded
_CAUSES = frozenset({*CAUSES, "store"})
_OTHER_CAUSE = "other"
#: operations on the bucket; the others are on Redis
_STORE_OPERATIONS: frozenset[Operation] = frozenset({"put", "delete", "flush"})
#: bucket limits in seconds: from the encoding of a small image to a day in the queue
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1_000, 10_000, 100_000)


class Metrics:
    """The counters of one model of a worker. Thread-safe.

    Args:
        model: its alias, a label of each series.
        instruments: those of another model of the worker, in whose registry these counters are [default: new ones].
    """

    def __init__(self, model: str, *, instruments: Instruments | None = None) -> None:
        self.model = model
        self.instruments = instruments = instruments or Instruments()
        self.registry = instruments.registry
        self._started = time.monotonic()
        self._reported: dict[str, float] = {}
        # all start at 0, so that the first event is visible as an increase
        self._images = {outcome: instruments.images.labels(model, outcome) for outcome in _OUTCOMES}
        self._leases = {event: instruments.leases.labels(model, event) for event in _LEASE_EVENTS}
        self._checkpoints = {event: instruments.checkpoints.labels(model, event) for event in _CHECKPOINT_EVENTS}
        self._evaluations = {fate: instruments.evaluations.labels(model, fate) for fate in _FATES}
        self._retries = instruments.retries
        for operation in _OPERATIONS:
            # the usual causes start at 0, too; all pairs would be too many series
            self._retries.labels(model, operation, "store" if operation in _STORE_OPERATIONS else "connection")
        self._stages = instruments.stages
        for stage in STAGES:
            self._stages.labels(model, stage)
        self._thread_errors = instruments.thread_errors
        self._busy_s = instruments.busy_s.labels(model)
        self._steps = instruments.steps.labels(model)
        self._bytes = instruments.bytes.labels(model)
        self._pixels = instruments.pixels.labels(model)
        self._compute_cost = instruments.compute_cost.labels(model)

    def ended(self, outcome: Outcome) -> None:
        """Count a job that ended without an image."""
        self._images[outcome].inc()

    def committed(
        self, *, size_bytes: int, pixels: int, compute_cost: float, timings: Mapping[str, float], drafted: bool = False
    ) -> None:
        """Count a committed image or draft; ``timings`` are seconds by stage."""
        self._images["drafted" if drafted else "done"].inc()
        if drafted:
            self.checkpoint("drafted")
        self._bytes.inc(size_bytes)
        self._pixels.inc(pixels)
        self._compute_cost.inc(compute_cost)
        for stage in STAGES:
            if stage in timings:
                self._stages.labels(self.model, stage).observe(timings[stage])

    def checkpoint(self, event: CheckpointEvent, count: int = 1) -> None:
        """Count what became of ``count`` checkpoints."""
        self._checkpoints[event].inc(count)

    def evaluations(self, fate: EvaluationsFate, count: int) -> None:
        """Count evaluations of the model that a checkpoint or another image saved, or that are to be made again."""
        self._evaluations[fate].inc(count)

    def step(self, seconds: float) -> None:
        """Count a step of the engine and its duration."""
        self._steps.inc()
        self._busy_s.inc(seconds)

    def leased(self, event: LeaseEvent, count: int) -> None:
        """Count ``count`` leases."""
        self._leases[event].inc(count)

    def retry(self, operation: Operation, error: BaseException) -> None:
        """Count a retry after ``error``."""
        cause = error.cause if isinstance(error, UnavailableError) else ""
        self._retries.labels(self.model, operation, cause if cause in _CAUSES else _OTHER_CAUSE).inc()

    def thread_starts(self, thread: str) -> None:
        """Count the exceptions of this thread from 0, so that the first one is visible as an increase."""
        self._thread_errors.labels(self.model, thread)

    def thread_error(self, thread: str) -> None:
        """Count an unexpected exception of a thread."""
        self._thread_errors.labels(self.model, thread).inc()

    def images(self) -> dict[Outcome, int]:
        """Return the number of ended jobs by outcome."""
        return {outcome: int(_value(counter)) for outcome, counter in self._images.items()}

    def report(self, send: Callable[[dict[str, float]], T]) -> T:
        """Call ``send`` with the increases since the last report that did not raise; return its result.

        The names are those of ``latentfarm.ledger.Throughput``, and ``wall_s``. Not thread-safe.
        """
        totals = self._totals()
        increases = {name: total - self._reported.get(name, 0.0) for name, total in totals.items()}
        result = send({name: increase for name, increase in increases.items() if increase})
        self._reported = totals
        return result

    def _totals(self) -> dict[str, float]:
        return {
            "images": _value(self._images["done"]) + _value(self._images["drafted"]),
            "work": _value(self._compute_cost),
            "busy_s": _value(self._busy_s),
            "size_bytes": _value(self._bytes),
            "pixels": _value(self._pixels),
            "wall_s": time.monotonic() - self._started,
        }

    def watch(self, gauges: Mapping[str, tuple[str, Callable[[], float]]], info: Mapping[str, str]) -> None:
        """Register gauges, by name their help and a function that is called at each scrape, and the info labels."""
        for name, (text, read) in gauges.items():
            self.instruments.gauge(name, text, ["model"]).labels(self.model).set_function(read)
        labels = {**info, "model": self.model, "version": latentfarm.__version__}
        text = "1, with facts about the worker as labels."
        self.instruments.gauge("worker_info", text, list(labels)).labels(**labels).set(1)

    def watch_memory(self, bytes_by_kind: Callable[[], Mapping[str, int]]) -> None:
        """Report a device's memory at each scrape."""
        self.registry.register(_DeviceMemory(self.model, bytes_by_kind))


class Instruments:
    """What the models of a worker count with, in one registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.images = self._counter("images", "Jobs that ended on this worker, by outcome.", "outcome")
        self.leases = self._counter("leases", "Leases, by event.", "event")
        texts = "Image checkpoints, by what became of them.", "Evaluations that images did not make, or make again."
        self.checkpoints = self._counter("checkpoints", texts[0], "event")
        self.evaluations = self._counter("evaluations", texts[1], "outcome")
        retries = "Retries because Redis or the bucket was unavailable, by cause."
        self.retries = self._counter("store_retries", retries, "operation", "cause")
        self.stages = Histogram(
            "latentfarm_stage_seconds",
            "Seconds that a committed image spent in each stage.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        errors = "Unexpected exceptions, by the thread that went on after them."
        self.thread_errors = self._counter("thread_errors", errors, "thread")
        self.busy_s = self._counter("device_busy_seconds", "Seconds in which the engine worked.")
        self.steps = self._counter("steps", "Denoising steps of the engine's batch.")
        self.bytes = self._counter("uploaded_bytes", "Bytes of the committed images.")
        self.pixels = self._counter("pixels", "Pixels of the committed images.")
        self.compute_cost = self._counter("compute_cost", "Pixels x steps x U-Net rows of the committed images.")
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._gauges: dict[str, Gauge] = {}

    def gauge(self, name: str, text: str, labels: list[str]) -> Gauge:
        """Return a gauge, a new one for a new name."""
        if name not in self._gauges:
            self._gauges[name] = Gauge(f"latentfarm_{name}", text, labels, registry=self.registry)
        return self._gauges[name]

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"latentfarm_{name}", text, ["model", *labels], registry=self.registry)


def _value(counter: Counter) -> float:
    """Return the value of a counter with its labels set."""
    [metric] = counter.collect()
    return next(sample.value for sample in metric.samples if sample.name.endswith("_total"))


class _DeviceMemory(Collector):
    def __init__(self, model: str, bytes_by_kind: Callable[[], Mapping[str, int]]) -> None:
        self._model = model
        self._bytes_by_kind = bytes_by_kind

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            "latentfarm_device_memory_bytes",
            "Memory of the worker's device: allocated by tensors, reserved by the allocator, total.",
            labels=["model", "kind"],
        )
        for kind, size in self._bytes_by_kind().items():
            family.add_metric([self._model, kind], size)
        yield family
