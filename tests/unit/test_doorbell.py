from __future__ import annotations

import pytest
import redis

from latentfarm.doorbell import broker_url, make_app
from latentfarm.doorbell_transport import DoorbellTransport
from latentfarm.errors import UnavailableError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("redis_url", "broker"),
    [
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
        ("unix:///run/redis.sock?db=3", "redis+socket:///run/redis.sock?virtual_host=3"),
        ("unix://user:secret@/run/redis.sock", "redis+socket://user:secret@/run/redis.sock?virtual_host=0"),
        ("redis://[::1]?socket_timeout=3&client_name=me", "redis://[::1]:6379/0"),
        ("sentinel://:secret@a,b:1/farm/2", "sentinel://:secret@a:26379/2;sentinel://:secret@b:1/2"),
        ("redis://:secret@host:6380/1", "redis://:secret@host:6380/1"),
        ("redis://host/1?username=me&password=a%2Fb", "redis://me:a%2Fb@host:6379/1"),
        ("unix:///run/redis.sock?password=secret", "redis+socket://:secret@/run/redis.sock?virtual_host=0"),
        ("rediss://:secret@host:6380/1", "rediss://:secret@host:6380/1?ssl_cert_reqs=required"),
        ("rediss://host/1?ssl_ca_certs=a.pem", "rediss://host:6379/1?ssl_cert_reqs=required&ssl_ca_certs=a.pem"),
        ("rediss://host?ssl_cert_reqs=none", "rediss://host:6379/0?ssl_cert_reqs=none"),
    ],
)
def test_a_redis_url_becomes_the_one_that_kombu_reads(redis_url: str, broker: str) -> None:
    assert broker_url(redis_url) == broker


def test_celery_accepts_json_only_and_keeps_no_results() -> None:
    conf = make_app("redis://localhost", model="mini").conf
    assert conf.accept_content == ["json"]
    assert conf.result_backend is None
    assert conf.worker_pool == "threads"
    assert conf.worker_enable_remote_control is False
    assert [queue.name for queue in conf.task_queues] == ["render.mini"]


def test_a_worker_of_several_models_hears_the_doorbells_of_each() -> None:
    conf = make_app("redis://localhost", model=["mini", "sd15"]).conf
    assert [queue.name for queue in conf.task_queues] == ["render.mini", "render.sd15"]


@pytest.mark.parametrize(
    "url", ["redis://localhost/1", "rediss://:secret@farm/0", "unix:///run/redis.sock", "sentinel://a,b/farm"]
)
def test_every_kind_of_url_uses_the_transport_that_outlasts_refusals(url: str) -> None:
    app = make_app(url, model="mini")
    with app.connection_or_acquire() as for_tools:
        assert not for_tools.connected
    for connection in (app.connection_for_read(), app.connection_for_write(), for_tools):
        assert connection.get_transport_cls() is DoorbellTransport
        assert {redis.ResponseError, redis.ConnectionError, UnavailableError} <= set(connection.connection_errors)


def test_doorbells_are_not_redelivered() -> None:
    assert not DoorbellTransport.Channel.ack_emulation
    assert not DoorbellTransport.Channel.do_restore
