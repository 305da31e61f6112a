"""Export the ledger's jobs by batch and by model, for Prometheus and KEDA. Each scrape reads the ledger.

The number of series is bounded: at most ``MAX_BATCHES`` batches are exported, first those that have not ended, then
the latest. Interactive ones are counted by model only.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from latentfarm.batch_kind import BatchKind
from latentfarm.errors import InputError, UnavailableError
from latentfarm.job_state import JobState
from latentfarm.ledger import BatchRecord, BatchSummary, Ledger

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = logging.getLogger(__name__)

DEFAULT_ADDRESS = "127.0.0.1:9465"
MAX_BATCHES = 100
_STATES = tuple(state.word for state in JobState)


class LedgerCollector(Collector):
    """Reads the ledger at each scrape. ``models`` are exported even without batches and workers."""

    def __init__(self, ledger: Ledger, models: Sequence[str] = ()) -> None:
        self._ledger = ledger
        self._models = models
        self._available = True

    def describe(self) -> Iterable[Metric]:
        """Return nothing: registering must not need Redis."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return all metrics. If Redis does not answer, return only ``latentfarm_ledger_up`` = 0."""
        up = GaugeMetricFamily("latentfarm_ledger_up", "1 if Redis answered this scrape.")
        try:
            families = [self._memory(), *self._batches_and_models()]
        except UnavailableError as error:
            if self._available:
                log.warning("the ledger is unavailable, and its metrics are missing: %s", error)
            self._available, families = False, []
        else:
            self._available = True
        up.add_metric([], float(self._available))
        return [up, *families]

    def _memory(self) -> Metric:
        memory = GaugeMetricFamily("latentfarm_ledger_memory_bytes", "Memory that Redis reports as used.")
        memory.add_metric([], self._ledger.memory_bytes())
        return memory

    def _batches_and_models(self) -> list[Metric]:
        summaries = self._ledger.batch_summaries()
        exported = select_batches(summaries)
        omitted = GaugeMetricFamily("latentfarm_batches_omitted", f"Batches without series, beyond {MAX_BATCHES}.")
        omitted.add_metric([], len(summaries) - len(exported))
        return [omitted, *self._batches(exported), *self._by_model(summaries)]

    def _batches(self, summaries: Iterable[BatchSummary]) -> list[Metric]:
        jobs = GaugeMetricFamily("latentfarm_batch_jobs", "Jobs by state.", labels=["batch", "model", "state"])
        failures = GaugeMetricFamily(
            "latentfarm_batch_failures", "Failed jobs by code.", labels=["batch", "model", "code"]
        )
        for record in self._records(summaries):
            for state in _STATES:
                jobs.add_metric([record.name, record.model, state], getattr(record, state))
            for code, count in record.errors.items():
                failures.add_metric([record.name, record.model, code], count)
        return [jobs, failures]

    def _records(self, summaries: Iterable[BatchSummary]) -> Iterable[BatchRecord]:
        for summary in summaries:
            # a batch may be deleted meanwhile
            with suppress(InputError):
                yield self._ledger.batch(summary.name)

    def _by_model(self, summaries: Sequence[BatchSummary]) -> list[Metric]:
        jobs = GaugeMetricFamily(
            "latentfarm_model_jobs",
            "Jobs that can be leased now (pending), and leased jobs.",
            labels=["model", "state"],
        )
        images = CounterMetricFamily("latentfarm_model_images", "Images that workers committed.", labels=["model"])
        workers = GaugeMetricFamily(
            "latentfarm_workers", "Workers with a heartbeat in the last 15 seconds.", labels=["model"]
        )
        pending = self._ledger.pending_jobs()
        alive = Counter(worker.model for worker in self._ledger.worker_records())
        models = {*self._models, *pending, *alive, *(summary.model for summary in summaries)}
        leased: Counter[str] = Counter()
        for summary in [*summaries, *self._running_interactive(models)]:
            leased[summary.model] += summary.leased
        for model in sorted(models):
            jobs.add_metric([model, "pending"], pending.get(model, 0))
            jobs.add_metric([model, "leased"], leased[model])
            throughput = self._ledger.throughput(model)
            images.add_metric([model], throughput.images if throughput else 0)
            workers.add_metric([model], alive[model])
        return [jobs, images, workers]

    def _running_interactive(self, models: Iterable[str]) -> list[BatchSummary]:
        """Return the interactive batches that run. They have no series of their own: there are thousands a day."""
        active = [name for model in models for name in self._ledger.active_batches(model)]
        return [each for each in self._ledger.batch_summaries(active) if each.kind is BatchKind.INTERACTIVE]


def select_batches(summaries: Sequence[BatchSummary]) -> list[BatchSummary]:
    """Return at most ``MAX_BATCHES`` batches: first those that have not ended, then the latest."""
    latest_first = summaries[::-1]
    return sorted(latest_first, key=lambda summary: summary.ended)[:MAX_BATCHES]


def make_registry(ledger: Ledger, models: Sequence[str] = ()) -> CollectorRegistry:
    """Return the registry of ``latentfarm exporter``."""
    registry = CollectorRegistry()
    registry.register(LedgerCollector(ledger, models))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry
