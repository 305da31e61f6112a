"""The series of workers, the exporter and the server, with labels. An acceptance test compares them with a real run."""

from __future__ import annotations

import re

WORKER = {
    "latentfarm_images_total": {"model", "outcome"},
    "latentfarm_stage_seconds_bucket": {"model", "stage", "le"},
    "latentfarm_stage_seconds_sum": {"model", "stage"},
    "latentfarm_stage_seconds_count": {"model", "stage"},
    "latentfarm_slots": {"model"},
    "latentfarm_slots_busy": {"model"},
    "latentfarm_device_busy_seconds_total": {"model"},
    "latentfarm_steps_total": {"model"},
    "latentfarm_leases_total": {"model", "event"},
    "latentfarm_leases_held": {"model"},
    "latentfarm_store_retries_total": {"model", "operation", "cause"},
    "latentfarm_thread_errors_total": {"model", "thread"},
    "latentfarm_upload_backlog": {"model"},
    "latentfarm_uploaded_bytes_total": {"model"},
    "latentfarm_pixels_total": {"model"},
    "latentfarm_compute_cost_total": {"model"},
    "latentfarm_checkpoints_total": {"model", "event"},
    "latentfarm_evaluations_total": {"model", "outcome"},
    "latentfarm_ready": {"model"},
    "latentfarm_worker_info": {"model", "worker", "device", "dtype", "version"},
}
#: served by workers on such a device only
CUDA = {"latentfarm_device_memory_bytes": {"model", "kind"}}
EXPORTER = {
    "latentfarm_ledger_up": set[str](),
    "latentfarm_ledger_memory_bytes": set[str](),
    "latentfarm_batch_jobs": {"batch", "model", "state"},
    "latentfarm_batches_omitted": set[str](),
    "latentfarm_batch_failures": {"batch", "model", "code"},
    "latentfarm_model_jobs": {"model", "state"},
    "latentfarm_model_images_total": {"model"},
    "latentfarm_workers": {"model"},
}
SERVER = {
    "latentfarm_server_requests_total": {"method", "operation", "status"},
    "latentfarm_server_request_duration_seconds_bucket": {"method", "operation", "le"},
    "latentfarm_server_request_duration_seconds_sum": {"method", "operation"},
    "latentfarm_server_request_duration_seconds_count": {"method", "operation"},
    "latentfarm_server_requests_running": set[str](),
    "latentfarm_server_streams": set[str](),
    "latentfarm_server_images_total": {"model"},
}
ALL = WORKER | CUDA | EXPORTER | SERVER
#: series that prometheus_client adds for each process, and labels that Prometheus adds to each series
OF_PROCESSES = {"process_resident_memory_bytes": set[str]()}
TARGET = {"instance", "job"}

_METRIC = re.compile(r"\b((?:latentfarm|process)_[a-z_]+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r"([a-z_]+) *(?:=~|!~|!=|=)")
_GROUPING = re.compile(r"\b(?:by|on|group_left) *\(([^)]*)\)")


def metrics_of(query: str) -> dict[str, set[str]]:
    """Return the metrics of a query, each with the labels of its matchers."""
    found: dict[str, set[str]] = {}
    for name, matchers in _METRIC.findall(query):
        found.setdefault(name, set()).update(_MATCHER.findall(matchers))
    return found


def groupings_of(query: str) -> set[str]:
    """Return the labels by which a query aggregates or joins."""
    return {label.strip() for labels in _GROUPING.findall(query) for label in labels.split(",")}


def unknown_in(query: str) -> set[str]:
    """Return the metrics and labels of a query that no process serves."""
    known = ALL | OF_PROCESSES
    named = metrics_of(query)
    metrics = set(named) - set(known)
    matched = {f"{name}{{{label}}}" for name in named for label in named[name] - known.get(name, set()) - TARGET}
    grouped = groupings_of(query) - TARGET - {label for name in named for label in known.get(name, set())}
    return metrics | matched | grouped
