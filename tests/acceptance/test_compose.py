"""The services of compose.yaml with the profiles `cpu` and `server` and three workers, as processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import until
from tests.support.deploy.compose_runner import ComposeRunner
from tests.support.scraping import http_get, scraped

pytestmark = pytest.mark.acceptance

PROMPTS = "".join(f"prompt {n}\n" for n in range(24))
SMALL = ["--num-inference-steps", "4", "--width", "64", "--height", "64"]


@pytest.mark.slow
def test_the_services_of_compose_render_a_batch_with_three_workers_and_stop_in_order(tmp_path: Path) -> None:
    with ComposeRunner(tmp_path) as compose:
        servers = [compose.start("redis"), compose.start("s3")]
        workers = [compose.start("worker") for _ in range(3)]
        exporter = compose.start("exporter")
        made = compose.run("producer", "key", "new", "alice")
        (tmp_path / "secrets").mkdir()
        (tmp_path / "secrets" / "api-keys").write_text(made.stdout)
        server = compose.start("server")
        submitted = compose.run("producer", "submit", "-", "--format", "txt", "--batch", "b", *SMALL, stdin=PROMPTS)
        assert (submitted.returncode, submitted.stdout) == (0, "b\n"), submitted.stderr
        waited = compose.run("producer", "wait", "b", "--timeout", "180")
        assert waited.returncode == 0, waited.stderr
        status = json.loads(compose.run("producer", "status", "b", "--json").stdout)
        assert (status["done"], status["failed"]) == (24, 0)

        until(lambda: all(each.ready() for each in workers))
        until(server.ready)
        assert [each.healthy() for each in (*workers, exporter, server)] == [True] * 5
        assert http_get(server.metrics_address, "/v1/files")[0] == 401
        samples = scraped(exporter.metrics_address)
        assert samples["latentfarm_batch_jobs", "b", "mini", "done"] == 24
        # a worker sends a heartbeat every few seconds
        until(lambda: scraped(exporter.metrics_address)["latentfarm_workers", "mini"] == 3, timeout_s=20)
        rendered = [
            scraped(each.metrics_address).get(("latentfarm_images_total", "mini", "done"), 0) for each in workers
        ]
        assert sum(rendered) == 24
        # the images are plain files of the volume
        assert len(list((tmp_path / "data" / "latentfarm" / "batches" / "b" / "images").rglob("*.png"))) == 24

        assert [compose.stop(each) for each in (exporter, server, *workers)] == [0] * 5
        for each in servers:
            compose.stop(each)


def test_redis_and_the_store_require_the_passwords_of_the_env_file(tmp_path: Path) -> None:
    with ComposeRunner(tmp_path) as compose:
        for server in (compose.start("redis"), compose.start("s3")):
            until(server.healthy, timeout_s=60)

        def exit_code(*command: str, **passwords: str) -> int:
            return compose.run("producer", *command, stdin="a cat\n", **passwords).returncode

        submit = ("submit", "-", "--format", "txt", "--batch")
        assert exit_code("status") == 0
        assert exit_code("status", REDIS_PASSWORD="latentfarm") == 3
        assert exit_code(*submit, "first") == 0
        assert exit_code(*submit, "second", S3_SECRET_KEY="latentfarm") == 3
