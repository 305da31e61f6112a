"""The metrics of the exporter and of a worker, and the probes, over a real Redis and real HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.conftest import Command
from tests.support.leasing import draft_all
from tests.support.scraping import Samples, http_get, samples_of

from latentfarm import Farm, InputError, UnavailableError
from latentfarm.batch_kind import BatchKind
from latentfarm.job_state import JobState
from latentfarm.ledger import Ledger
from latentfarm.monitoring.exporter import make_registry
from latentfarm.monitoring.http_server import Check, MetricsServer
from latentfarm.settings import Settings
from latentfarm.submission.request import SubmitOptions
from latentfarm_worker.service.metrics import STAGES, Metrics

pytestmark = pytest.mark.integration


def jobs(samples: Samples, batch: str) -> dict[str, float]:
    return {key[3]: value for key, value in samples.items() if key[:2] == ("latentfarm_batch_jobs", batch)}


def scrape(farm: Farm, *models: str) -> Samples:
    return samples_of(make_registry(farm.ledger, models))


def test_a_scrape_returns_the_counts_of_the_ledger(farm: Farm) -> None:
    farm.submit([{"prompt": "a"}] * 10, batch="cats")
    paused = farm.submit([{"prompt": "a"}] * 5, batch="dogs")
    paused.pause()
    farm.submit([{"prompt": "a"}] * 2, batch="now", options=SubmitOptions(kind=BatchKind.INTERACTIVE, priority=900))
    assert len(farm.ledger.lease("mini", "w", 2, lease_s=30)) == 2
    leases = farm.ledger.lease("mini", "w", 4, lease_s=30)
    farm.ledger.fail(leases[0], {"code": "non_finite", "message": "not finite"})
    farm.ledger.commit([(leases[1], {"key": "k", "sha256": "s", "bytes": 1})])
    draft_all(farm.ledger, leases[2:3])
    farm.ledger.heartbeat("mini", "w", {"images": 1.0})

    samples = scrape(farm)
    assert samples["latentfarm_ledger_up",] == 1
    assert samples["latentfarm_ledger_memory_bytes",] > 100_000
    ends = {"done": 1, "failed": 1, "cancelled": 0}
    assert jobs(samples, "cats") == ends | {"pending": 6, "leased": 1, "drafted": 1}
    assert jobs(samples, "dogs") == {state.word: 5 if state is JobState.PENDING else 0 for state in JobState}
    assert samples["latentfarm_batch_failures", "cats", "non_finite", "mini"] == 1
    # the jobs of a paused batch cannot be leased, so no worker is needed for them
    # interactive batches are in the sums only
    assert jobs(samples, "now") == {}
    assert samples["latentfarm_model_jobs", "mini", "pending"] == 6
    assert samples["latentfarm_model_jobs", "mini", "leased"] == 3
    assert samples["latentfarm_model_images_total", "mini"] == 1
    assert samples["latentfarm_workers", "mini"] == 1
    assert samples["latentfarm_batches_omitted",] == 0


def test_a_named_model_has_metrics_before_its_first_batch(farm: Farm) -> None:
    assert ("latentfarm_model_jobs", "sd15", "pending") not in scrape(farm)
    samples = scrape(farm, "sd15")
    assert samples["latentfarm_model_jobs", "sd15", "pending"] == 0
    assert samples["latentfarm_workers", "sd15"] == 0


def test_a_deleted_batch_has_no_metrics(farm: Farm) -> None:
    batch = farm.submit([{"prompt": "a"}], batch="cats")
    batch.delete()
    assert jobs(scrape(farm), "cats") == {}


def test_an_unavailable_ledger_is_reported_as_the_only_metric(tmp_path_factory: pytest.TempPathFactory) -> None:
    nowhere = tmp_path_factory.mktemp("nowhere") / "redis.sock"
    samples = samples_of(make_registry(Ledger.connect(f"unix://{nowhere}")))
    assert {key: value for key, value in samples.items() if key[0].startswith("latentfarm")} == {
        ("latentfarm_ledger_up",): 0
    }


# -- over HTTP ---------------------------------------------------------------------------------------------------


@contextmanager
def serving(host: str = "127.0.0.1", *, live: Check = str, ready: Check = str) -> Iterator[str]:
    server = MetricsServer(f"{host}:0", Metrics("mini").registry, live=live, ready=ready)
    try:
        yield f"{host}:{server.port}"
    finally:
        server.close()


def test_a_failed_probe_returns_the_reason() -> None:
    with serving(live=lambda: "the engine has made no step for 130 s") as address:
        assert http_get(address, "/readyz") == (200, "ok\n")
        assert http_get(address, "/livez") == (503, "the engine has made no step for 130 s\n")
        assert http_get(address, "/else")[0] == 404


def test_ipv6_addresses_are_served() -> None:
    with serving("[::1]") as address:
        assert http_get(address, "/livez") == (200, "ok\n")


def test_an_address_in_use_is_an_error_that_names_it() -> None:
    with serving() as address, pytest.raises(UnavailableError, match=re.escape(address)):
        MetricsServer(address, CollectorRegistry(), live=str, ready=str)
    with pytest.raises(InputError, match="write HOST:PORT"):
        MetricsServer("9464", CollectorRegistry(), live=str, ready=str)


def test_the_metrics_of_a_worker_follow_the_conventions_of_prometheus() -> None:
    metrics = Metrics("mini")
    metrics.committed(size_bytes=1000, pixels=64, compute_cost=128.0, timings=dict.fromkeys(STAGES, 0.5))
    metrics.ended("failed")
    metrics.step(0.25)
    metrics.retry("put", UnavailableError("503", cause="store"))
    metrics.retry("put", ValueError("a bug"))
    metrics.retry("lease", UnavailableError("no", cause="a cause of its own"))
    metrics.leased("taken", 4)
    metrics.watch({"slots": ("Slots.", lambda: 8)}, {"worker": "host-1", "device": "cpu", "dtype": "float32"})
    metrics.watch_memory(lambda: {"total": 5})
    with serving() as address:
        assert http_get(address, "/metrics")[0] == 200
    families = list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))
    ours = [family for family in families if family.name.startswith("latentfarm_")]
    assert {family.name for family in ours} >= {"latentfarm_images", "latentfarm_stage_seconds", "latentfarm_slots"}
    for family in ours:
        assert family.documentation.endswith("."), family.name
        for sample in family.samples:
            assert sample.labels["model"] == "mini", sample
            # a label has a fixed set of values
            bounded = {"model", "outcome", "stage", "le", "event", "operation", "cause", "kind"}
            assert set(sample.labels) <= bounded or family.name == "latentfarm_worker_info"
    assert metrics.images() == {"done": 1, "drafted": 0, "failed": 1, "retried": 0, "lost": 0}
    samples = samples_of(metrics.registry)
    assert samples["latentfarm_device_busy_seconds_total", "mini"] == 0.25
    assert samples["latentfarm_stage_seconds_count", "mini", "decode"] == 1
    assert samples["latentfarm_store_retries_total", "store", "mini", "put"] == 1
    assert samples["latentfarm_store_retries_total", "other", "mini", "put"] == 1
    assert samples["latentfarm_store_retries_total", "other", "mini", "lease"] == 1
    assert samples["latentfarm_device_memory_bytes", "total", "mini"] == 5


def test_an_invalid_address_or_alias_is_exit_code_2(settings: Settings, latentfarm: Command) -> None:
    for arguments in (["--listen", "nowhere"], ["--model", "no/alias"]):
        ran = latentfarm("exporter", *arguments, settings=settings)
        assert ran.returncode == 2, ran.stderr
        assert "latentfarm: " in ran.stderr
