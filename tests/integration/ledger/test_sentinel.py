"""Sentinels: the primary is found, also after a failover, and each way not to find it has a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from tests.conftest import until
from tests.support.sentinel_redis import SERVICE, SentinelRedis, sentinel_redis

from latentfarm import doorbell
from latentfarm.errors import UnavailableError
from latentfarm.ledger import Ledger
from latentfarm.ledger.server_check import check_server

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelRedis]:
    with sentinel_redis(tmp_path_factory.mktemp("sentinel")) as found:
        yield found


def test_the_primary_is_found_though_a_sentinel_is_down(servers: SentinelRedis) -> None:
    ledger = Ledger.connect(servers.url)
    assert "writes work" in check_server(ledger, queue_keys=["render.mini:probe"])
    app = doorbell.make_app(servers.url, model="mini")
    assert doorbell.ring(ledger.redis, app, "mini", 5) == 2
    assert servers.client(servers.primary).llen("render.mini") == 2
    assert app.connection_for_read().as_uri() == ledger.where


def problems(servers: SentinelRedis) -> Iterator[tuple[str, str]]:
    here, primary = f"127.0.0.1:{servers.port}", f"127.0.0.1:{servers.primary}"
    yield servers.url_of(f"127.0.0.1:{servers.closed_port}"), "does not answer; start it, or correct"
    yield servers.url_of("no-such-host.invalid"), "does not answer; start it, or correct"
    yield servers.url_of(here, service="other"), f"knows no service 'other', but '{SERVICE}'; correct the name"
    yield servers.url_of(here, query=""), "refuses the user or the password; correct sentinel_username and"
    yield servers.url_of(here, query="sentinel_password=no"), "refuses the user or the password; correct"
    yield servers.url_of(primary, query="sentinel_password=p%40ss%2Fword"), "is no Sentinel but a Redis; write redis://"
    yield servers.url.replace("p%40ss", "no"), "refuses the user or the password; correct the user and the password in"


def test_each_way_not_to_find_the_primary_has_a_sentence(servers: SentinelRedis) -> None:
    for url, sentence in problems(servers):
        with pytest.raises(UnavailableError) as caught:
            Ledger.connect(url).now_us()
        assert sentence in str(caught.value)
        assert "hush" not in str(caught.value)


def test_ledger_and_doorbells_follow_a_failover(servers: SentinelRedis) -> None:
    ledger, app = Ledger.connect(servers.url), doorbell.make_app(servers.url, model="mini")
    servers.client(servers.primary).delete("render.mini")
    heard: list[str] = []
    with app.connection_for_read() as connection:
        listen(app, connection, heard)
        with pytest.raises(TimeoutError):
            # idle, as a worker without jobs
            connection.drain_events(timeout=0.1)
        servers.kill_primary()
        assert ledger.now_us() > 0
        with pytest.raises(connection.connection_errors):
            connection.drain_events(timeout=5)
        connection.collect()
        connection.ensure_connection(max_retries=3)
        listen(app, connection, heard)
        assert doorbell.ring(ledger.redis, app, "mini", 1) == 1
        connection.drain_events(timeout=5)
    assert heard == [doorbell.TASK_NAME]
    # the last server of the two
    servers.servers[servers.primary].wait_or_kill(0)
    until(lambda: "is down; wait for the failover to end" in problem_of(ledger), timeout_s=20)


def listen(app: Celery, connection: Any, heard: list[str]) -> None:
    """Consume the doorbells of a model, as a worker does after each connection."""
    consumer = app.amqp.TaskConsumer(connection.default_channel, no_ack=True)
    consumer.on_message = lambda message: heard.append(message.headers["task"])
    consumer.consume()


def problem_of(ledger: Ledger) -> str:
    with pytest.raises(UnavailableError) as caught:
        ledger.now_us()
    return str(caught.value)
