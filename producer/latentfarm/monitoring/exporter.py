"""What the ledger tells Prometheus, and KEDA: jobs by batch and by model. Asked anew at each scrape.

The series are bounded: ``MAX_BATCHES`` batches are told of, those that have not ended first, then the latest.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from latentfarm.errors import InputError, UnavailableError
from latentfarm.ledger import BatchRecord, BatchSummary, Ledger

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = logging.getLogger(__name__)

DEFAULT_ADDRESS = "127.0.0.1:9465"
MAX_BATCHES = 100
_STATES = ("pending", "leased", "done", "failed", "cancelled")


class LedgerCollector(Collector):
    """Asks the ledger at each scrape; ``models`` are told of even while they have neither batches nor workers."""

    def __init__(self, ledger: Ledger, models: Sequence[str] = ()) -> None:
        self._ledger = ledger
        self._models = models
        self._answers = True

    def describe(self) -> Iterable[Metric]:
        """Tell nothing beforehand: a registry must not need a ledger."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return what there is to tell; of an unreachable ledger only that it is."""
        up = GaugeMetricFamily("latentfarm_ledger_up", "1 if Redis answered this scrape.")
        try:
            families = [*self._ledger_itself(), *self._batches_and_models()]
        except UnavailableError as error:
            if self._answers:
                log.warning("nothing is told until the ledger answers: %s", error)
            self._answers, families = False, []
        else:
            self._answers = True
        up.add_metric([], float(self._answers))
        return [up, *families]

    def _ledger_itself(self) -> list[Metric]:
        memory = GaugeMetricFamily("latentfarm_ledger_memory_bytes", "Memory that Redis says it uses.")
        memory.add_metric([], self._ledger.memory_bytes())
        return [memory]

    def _batches_and_models(self) -> list[Metric]:
        heads = self._ledger.batch_summaries()
        told = chosen(heads)
        untold = GaugeMetricFamily("latentfarm_batches_untold", f"Batches beyond the {MAX_BATCHES} that are told of.")
        untold.add_metric([], len(heads) - len(told))
        return [untold, *self._batches(told), *self._of_models(heads)]

    def _batches(self, heads: Iterable[BatchSummary]) -> list[Metric]:
        jobs = GaugeMetricFamily("latentfarm_batch_jobs", "Jobs by state.", labels=["batch", "model", "state"])
        failures = GaugeMetricFamily(
            "latentfarm_batch_failures", "Failed jobs by code.", labels=["batch", "model", "code"]
        )
        for record in self._records(heads):
            for state in _STATES:
                jobs.add_metric([record.name, record.model, state], getattr(record, state))
            for code, count in record.errors.items():
                failures.add_metric([record.name, record.model, code], count)
        return [jobs, failures]

    def _records(self, heads: Iterable[BatchSummary]) -> Iterable[BatchRecord]:
        for head in heads:
            try:
                yield self._ledger.batch(head.name)
            except InputError:
                # deleted at this moment
                continue

    def _of_models(self, heads: Sequence[BatchSummary]) -> list[Metric]:
        jobs = GaugeMetricFamily(
            "latentfarm_model_jobs", "Jobs that may be leased now, and leased ones.", labels=["model", "state"]
        )
        images = CounterMetricFamily("latentfarm_model_images", "Pictures that workers committed.", labels=["model"])
        workers = GaugeMetricFamily(
            "latentfarm_workers", "Workers that were seen in the last 15 seconds.", labels=["model"]
        )
        leased: Counter[str] = Counter()
        for head in heads:
            leased[head.model] += head.leased
        alive = Counter(worker.model for worker in self._ledger.worker_records())
        for model in sorted({*self._models, *leased, *alive}):
            jobs.add_metric([model, "pending"], self._ledger.count_pending(model))
            jobs.add_metric([model, "leased"], leased[model])
            speed = self._ledger.throughput(model)
            images.add_metric([model], speed.images if speed else 0)
            workers.add_metric([model], alive[model])
        return [jobs, images, workers]


def chosen(heads: Sequence[BatchSummary]) -> list[BatchSummary]:
    """Return the batches that are told of: those that have not ended, then the latest, at most ``MAX_BATCHES``."""
    latest = list(reversed(heads))
    return sorted(latest, key=lambda head: head.ended)[:MAX_BATCHES]


def make_registry(ledger: Ledger, models: Sequence[str] = ()) -> CollectorRegistry:
    """Return the registry of ``latentfarm exporter``."""
    registry = CollectorRegistry()
    registry.register(LedgerCollector(ledger, models))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry
