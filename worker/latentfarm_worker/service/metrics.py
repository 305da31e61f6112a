"""What a worker tells Prometheus. Names and units by Prometheus' conventions.

Every series has the model's alias as a label, and none a batch, a job or a worker: their number is bounded by what is
written here. The worker's name stands in ``latentfarm_worker_info`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

import latentfarm

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

Outcome = Literal["done", "failed", "retried", "lost"]
LeaseEvent = Literal["taken", "lost", "returned"]
Operation = Literal["lease", "put", "commit", "note", "discard", "fail", "flush", "release", "beat"]

Value = TypeVar("Value", Outcome, LeaseEvent, Operation)

STAGES = ("queue", "wait", "text", "denoise", "decode", "encode", "upload")
_OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
_LEASE_EVENTS: tuple[LeaseEvent, ...] = get_args(LeaseEvent)
_OPERATIONS: tuple[Operation, ...] = get_args(Operation)
#: from a small picture's encoding to a day in the queue
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1_000, 10_000, 100_000)


class Metrics:
    """The counters of one worker, in a registry of its own; safe to use from any thread."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.registry = CollectorRegistry()
        self._images = self._counter("images", "Jobs that ended here, by what became of them.", "outcome", _OUTCOMES)
        self._leases = self._counter("leases", "Leases by what happened to them.", "event", _LEASE_EVENTS)
        self._retries = self._counter(
            "store_retries", "Tries that the store or the queue did not answer, made again.", "operation", _OPERATIONS
        )
        self._stages = Histogram(
            "latentfarm_stage_seconds",
            "Seconds that a committed picture spent in each stage.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        for stage in STAGES:
            self._stages.labels(model, stage)
        self._busy_s = self._plain("device_busy_seconds", "Seconds in which the engine worked; its rate is the share.")
        self._steps = self._plain("steps", "Denoising steps of the engine's batch.")
        self._bytes = self._plain("uploaded_bytes", "Bytes of the pictures that were stored.")
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def image(self, outcome: Outcome) -> None:
        """Count a job that ended here."""
        self._images[outcome].inc()

    def stored(self, size_bytes: int, timings: Mapping[str, float]) -> None:
        """Take down what a committed picture took."""
        self._bytes.inc(size_bytes)
        for stage in STAGES:
            if stage in timings:
                self._stages.labels(self.model, stage).observe(timings[stage])

    def step(self, seconds: float) -> None:
        """Count a step of the engine, which took so long."""
        self._steps.inc()
        self._busy_s.inc(seconds)

    def leased(self, event: LeaseEvent, count: int) -> None:
        """Count leases."""
        self._leases[event].inc(count)

    def retry(self, operation: Operation) -> None:
        """Count a try that was not answered."""
        self._retries[operation].inc()

    def images(self) -> dict[str, int]:
        """Return the jobs that ended here, by what became of them."""
        told = self.registry.get_sample_value
        labels = [{"model": self.model, "outcome": outcome} for outcome in _OUTCOMES]
        return {each["outcome"]: int(told("latentfarm_images_total", each) or 0) for each in labels}

    def watch(self, gauges: Mapping[str, tuple[str, Callable[[], float]]], about: Mapping[str, str]) -> None:
        """Tell what is asked for at each scrape: gauges by name (what they mean, and how to get them), and the info."""
        for name, (meaning, value) in gauges.items():
            gauge = Gauge(f"latentfarm_{name}", meaning, ["model"], registry=self.registry)
            gauge.labels(self.model).set_function(value)
        labels = {**about, "model": self.model, "version": latentfarm.__version__}
        Gauge(
            "latentfarm_worker_info", "1, with what the worker is as labels.", list(labels), registry=self.registry
        ).labels(**labels).set(1)

    def watch_memory(self, bytes_by_kind: Callable[[], Mapping[str, int]]) -> None:
        """Tell a device's memory at each scrape."""
        self.registry.register(_DeviceMemory(self.model, bytes_by_kind))

    def _counter(self, name: str, meaning: str, label: str, values: Iterable[Value]) -> dict[Value, Counter]:
        made = Counter(f"latentfarm_{name}", meaning, ["model", label], registry=self.registry)
        # from the start, so that the first of a kind is an increase
        return {value: made.labels(self.model, value) for value in values}

    def _plain(self, name: str, meaning: str) -> Counter:
        return Counter(f"latentfarm_{name}", meaning, ["model"], registry=self.registry).labels(self.model)


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
