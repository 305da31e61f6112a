"""The metrics of one server, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

#: seconds; an image takes some, a stream of events hours
_DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class ServerMetrics:
    """Counters of requests, streams and images. An operation is a path's pattern, so the series are bounded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "latentfarm_server_requests",
            "Requests by operation and status; 499: the client hung up.",
            ["method", "operation", "status"],
            registry=self.registry,
        )
        self.duration = Histogram(
            "latentfarm_server_request_duration_seconds",
            "Seconds from a request's header to the end of its answer.",
            ["method", "operation"],
            buckets=_DURATIONS,
            registry=self.registry,
        )
        self.running = Gauge("latentfarm_server_requests_running", "Requests without an end.", registry=self.registry)
        self.streams = Gauge("latentfarm_server_streams", "Open streams of events.", registry=self.registry)
        self.images = Counter(
            "latentfarm_server_images", "Images that clients waited for.", ["model"], registry=self.registry
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
