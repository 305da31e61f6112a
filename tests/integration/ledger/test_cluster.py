"""A Redis in cluster mode: one node that has every slot serves the farm, several nodes are refused with the cure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from tests.conftest import until
from tests.integration.ledger.test_moves import LedgerMoves
from tests.support.leasing import expire, fail, opened
from tests.support.machines import free_ports
from tests.support.redis_process import running_redis

from latentfarm.doorbell import make_app, queue_name, ring
from latentfarm.errors import UnavailableError
from latentfarm.ledger import Ledger, WorkerSignal
from latentfarm.ledger.server_check import check_reading, check_server
from latentfarm.ledger.webhook_outbox import WebhookOutbox

pytestmark = pytest.mark.integration

SLOTS = 16_384


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """URLs of a node that has every slot, and of one that has half of them."""
    folder = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        ports = []
        for number, bus in enumerate(free_ports(3)):
            options = ("--cluster-enabled", "yes", "--cluster-port", str(bus))
            ports.append(stack.enter_context(running_redis(folder / str(number), *options)))
        one, half, other = clients = [stack.enter_context(redis.Redis(port=port)) for port in ports]
        for client, first, last in ((one, 0, SLOTS), (half, 0, SLOTS // 2), (other, SLOTS // 2, SLOTS)):
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last - 1)
        bus_port = other.config_get("cluster-port")["cluster-port"]
        half.execute_command("CLUSTER MEET", "127.0.0.1", ports[2], bus_port)
        until(lambda: all(info(client)["cluster_state"] == "ok" for client in clients), timeout_s=20)
        until(lambda: info(half)["cluster_size"] == "2", timeout_s=20)
        yield [f"redis://127.0.0.1:{port}" for port in ports]


def info(client: Any) -> dict[str, str]:
    return dict(client.execute_command("CLUSTER INFO"))


@contextmanager
def connected(url: str) -> Iterator[Ledger]:
    ledger = Ledger.connect(url)
    with ledger.redis:
        yield ledger


@pytest.fixture
def clustered(nodes: list[str]) -> Iterator[Ledger]:
    with connected(nodes[0]) as ledger:
        ledger.redis.flushall()
        yield ledger


def test_every_history_of_a_batch_is_the_same_on_one_node(clustered: Ledger) -> None:
    LedgerMoves.ledger = clustered
    LedgerMoves.TestCase.settings = settings(
        max_examples=8, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
    LedgerMoves.TestCase("runTest").runTest()


def test_a_batch_lives_and_ends_on_one_node(clustered: Ledger) -> None:
    ledger = clustered
    opened(ledger, total=4, webhook="http://example.invalid/")
    assert ledger.heartbeat("mini", "worker-a", {"images": 1.0}, about={"slots": 2}).pending == 4
    done, lost, bad, last = ledger.lease("mini", "worker-a", 4, lease_s=30, request="one")
    assert ledger.commit([(done, {"sha256": "x"})]) == ["done"]
    fail(ledger, [bad])
    assert ledger.record_crash([last]) == ["requeued"]
    assert expire(ledger) == 1
    assert ledger.renew([lost], lease_s=30) == {lost.name}
    assert ledger.pending_jobs() == {"mini": 2}
    with ledger.signals() as signals:
        assert signals.wait(0.1) is None
        ledger.cancel("cats")
        until(lambda: signals.wait(0.1) == WorkerSignal("cancelled", "cats"))
    assert ledger.claim_full_part() == ("cats", 0)
    assert ledger.postpone_flush("cats", 0, damaged=True) > 0
    assert ledger.snapshot("cats", range(4)).jobs[0].receipt
    assert ledger.drop_flushed("cats", 0, retries=0)
    assert ledger.claim_orphans(delay_s=0)
    assert len(WebhookOutbox(ledger).claim(1, hold_s=9)) == 1
    ledger.mark_deleting("cats")
    ledger.delete_batch("cats")
    assert ledger.batches() == []
    ledger.sign_off("mini", "worker-a")


def test_a_doorbell_rings_on_one_node(clustered: Ledger, nodes: list[str]) -> None:
    app = make_app(nodes[0], model="mini")
    assert ring(clustered.redis, app, "mini", 4) == 1
    heard: list[Any] = []
    with app.connection_for_read() as connection, app.amqp.TaskConsumer(connection, on_message=heard.append):
        connection.drain_events(timeout=10)
        heard[0].ack()
    assert clustered.redis.llen(queue_name("mini")) == 0


def test_the_doorbells_of_several_models_ring_although_a_node_refuses_to_read_two_queues_at_once(
    clustered: Ledger, nodes: list[str]
) -> None:
    app = make_app(nodes[0], model=("mini", "sd15"))
    heard: list[Any] = []
    with (
        app.connection_for_read() as connection,
        app.amqp.TaskConsumer(connection, on_message=heard.append) as consumer,
    ):
        consumer.qos(prefetch_count=0)
        for model in ("sd15", "mini", "sd15"):
            assert ring(clustered.redis, app, model, 4) == 1
            while clustered.redis.llen(queue_name(model)):
                with suppress(TimeoutError):
                    connection.drain_events(timeout=10)
    assert [message.delivery_info["routing_key"] for message in heard] == ["render.sd15", "render.mini", "render.sd15"]


def test_the_check_passes_one_node_and_names_the_cure_for_several(clustered: Ledger, nodes: list[str]) -> None:
    assert "writes work" in check_server(clustered, queue_keys=["render.mini:probe", "_kombu.binding.probe"])
    assert "nothing was written" in check_reading(clustered)
    with connected(nodes[1]) as half, connected(nodes[2]) as other:
        for check in (check_server, check_reading):
            with pytest.raises(UnavailableError, match="a cluster of 2 nodes, and the farm can use only one"):
                check(half)
        with pytest.raises(UnavailableError, match="a cluster of several nodes, which the farm cannot use; use a"):
            # one of them does not have the keys
            _ = half.batches(), other.batches()
    with connected(f"{nodes[0]}/99") as wrong, pytest.raises(UnavailableError, match="leave it out for database 0"):
        wrong.batches()
