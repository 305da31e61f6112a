"""A farm of several machines, on one machine: each has its own folder and Redis user, and they share no file.

The commands are those of the container images, configured by their environment alone.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.conftest import until
from tests.support.deploy.dockerfiles import DEPLOY, Image
from tests.support.leasing import holders
from tests.support.locked_redis import locked_redis
from tests.support.machines import LATENTFARM, Machine, free_ports
from tests.support.scraping import scraped

from latentfarm.farm import Farm
from latentfarm.ledger import Ledger
from latentfarm.settings import Settings

pytestmark = pytest.mark.acceptance

JOBS = 300
ROW = {"num_inference_steps": 4, "width": 64, "height": 64}


def command_of(image: str, *arguments: str) -> list[str]:
    """Return what `docker run IMAGE ARGUMENTS` starts, without the program itself."""
    read = Image.built_by(DEPLOY / f"{image}.Dockerfile")
    program, *command = [*read.entrypoint, *(list(arguments) or read.command)]
    assert program == LATENTFARM.name
    return command


@contextmanager
def machines(folder: Path, settings: Settings) -> Iterator[tuple[Machine, list[Machine]]]:
    """Yield an exporter and an empty list of workers. At the end, stop every machine."""
    exporter = Machine.start(folder / "exporter", settings, free_ports(1)[0], *command_of("producer", "exporter"))
    workers: list[Machine] = []
    try:
        yield exporter, workers
    finally:
        for machine in (*workers, exporter):
            machine.child.terminate()
        for machine in (*workers, exporter):
            machine.child.wait_or_kill(40)


@pytest.mark.slow
def test_workers_come_and_go_and_no_image_and_no_count_is_lost(servers: Settings, tmp_path: Path) -> None:
    passwords = {user: secrets.token_urlsafe(16) for user in ("admin", "producer", "worker")}
    (tmp_path / "redis").mkdir()
    with locked_redis(tmp_path / "redis", passwords) as port:
        role = {
            user: servers.model_copy(
                update={"redis_url": f"redis://{user}:{passwords[user]}@127.0.0.1:{port}/0", "slots": 4}
            )
            for user in ("producer", "worker")
        }
        farm = Farm.open(role["producer"])
        with machines(tmp_path, role["producer"]) as (exporter, workers):
            ports = free_ports(3)

            def start(number: int) -> None:
                folder = tmp_path / f"worker-{number}"
                workers.append(Machine.start(folder, role["worker"], ports[number], *command_of("worker")))

            start(0)
            batch = farm.submit([{"prompt": f"image {n}", **ROW} for n in range(JOBS)], batch="shape")
            until(lambda: workers[0].ready and batch.status().done >= 20)
            # paused while the other workers load, which takes as long as the whole batch
            batch.pause()
            start(1)
            start(2)
            until(lambda: all(worker.ready for worker in workers))
            batch.resume()
            until(lambda: all(worker.done > 0 for worker in workers))
            assert scraped(exporter.address)["latentfarm_workers", "mini"] == 3
            before = batch.status()
            assert before.done < JOBS, "the batch completed before the scale-down"
            for worker in workers[1:]:
                worker.child.terminate()
            assert [worker.child.wait_or_kill(40) for worker in workers[1:]] == [0, 0]
            left = workers[1].final_counts() | workers[2].final_counts()
            admin = Ledger.connect(f"redis://admin:{passwords['admin']}@127.0.0.1:{port}/0")
            assert not holders(admin) & left.keys(), "a stopped worker still holds jobs"
            # images that are stored but not yet committed are leased too, for a moment
            until(lambda: batch.status().leased <= 2 * 4)
            assert batch.wait(timeout_s=240).done == JOBS

            by_worker = Counter(str(line["worker"]) for line in batch.results())
            assert by_worker.total() == JOBS
            assert {line["attempts"] for line in batch.results()} == {1}
            metrics = scraped(exporter.address)
            states = {key[3]: value for key, value in metrics.items() if key[:2] == ("latentfarm_batch_jobs", "shape")}
            assert states == {"pending": 0, "leased": 0, "done": JOBS, "failed": 0, "cancelled": 0, "drafted": 0}
            until(lambda: scraped(exporter.address)["latentfarm_model_images_total", "mini"] == JOBS)
            assert {name: ended["done"] for name, ended in left.items()} == {name: by_worker[name] for name in left}
            [stayed] = by_worker.keys() - left.keys()
            assert workers[0].done == by_worker[stayed]


@pytest.mark.slow
def test_each_device_of_a_host_has_a_worker_that_serves_its_own_metrics(settings: Settings, tmp_path: Path) -> None:
    ports = free_ports(2)
    host = Machine.start(tmp_path / "host", settings, ports[0], "worker", "--devices", "cpu:2")
    try:
        farm = Farm.open(settings)
        until(lambda: len(farm.ledger.workers("mini")) == 2)
        names = set()
        for port in ports:
            metrics = scraped(f"127.0.0.1:{port}")
            assert metrics["latentfarm_ready", "mini"] == 1
            names |= {key[-1] for key in metrics if key[0] == "latentfarm_worker_info"}
        assert names == set(farm.ledger.workers("mini"))
        assert farm.submit([{"prompt": "a", **ROW}] * 8, batch="both").wait(timeout_s=60).done == 8
    finally:
        host.child.terminate()
        assert host.child.wait_or_kill(40) == 0
    assert {line["worker"] for line in host.lines() if line["message"].startswith("the worker ends")} == names
