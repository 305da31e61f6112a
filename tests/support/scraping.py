"""Query a process for its metrics and health, as Prometheus and an orchestrator do."""

from __future__ import annotations

from http.client import HTTPConnection

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

#: each sample's value by its name and the values of its labels, in the labels' order
Samples = dict[tuple[str, ...], float]


def http_get(address: str, path: str) -> tuple[int, str]:
    """Return the status and the body of the answer to a GET."""
    connection = HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def samples_in(text: str) -> Samples:
    """Return the samples of an answer of /metrics."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(address: str) -> Samples:
    """Return the samples that are served at an address."""
    status, text = http_get(address, "/metrics")
    assert status == 200, text
    return samples_in(text)


def samples_of(registry: CollectorRegistry) -> Samples:
    """Return the samples of a registry of this process."""
    return samples_in(generate_latest(registry).decode())
