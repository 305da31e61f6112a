"""Redis URLs: used, used with a warning, or refused. Passwords are not shown, and messages are JSON."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.doorbell import make_app
from latentfarm.errors import InputError
from latentfarm.ledger import Ledger
from latentfarm.settings import Settings, redis_problem

pytestmark = pytest.mark.unit


def with_redis(url: str, **fields: Any) -> Settings:
    return Settings().model_copy(update={"redis_url": url, "bucket": "b", **fields})


@pytest.mark.parametrize(
    "url",
    [
        "redis://farm.example",
        "redis://user@farm.example",
        "redis://:@farm.example",
        "redis://10.0.0.7:6379/1",
        "redis://[2001:db8::1]:6379",
        "redis://0.0.0.0",
        "redis://127.0.0.1.example",
        "redis://127.0.0.1%2eexample",
        "redis://127.1",
        "redis://localhost.example",
        "redis:///?host=farm.example",
        "rediss://farm.example?ssl_cert_reqs=none",
        "rediss://farm.example?ssl_check_hostname=false",
    ],
)
def test_a_redis_open_to_a_network_is_refused_unless_allowed(url: str) -> None:
    with pytest.raises(InputError, match=r"LATENTFARM_REDIS_URL leads to .* with neither password nor verified TLS"):
        with_redis(url).require()
    assert with_redis(url, allow_insecure_redis=True).require().redis_url == url


@pytest.mark.parametrize(
    "url",
    [
        "unix:///run/redis.sock",
        "redis://localhost:6379",
        "redis://127.0.0.1",
        "redis://127.9.9.9",
        "redis://[::1]",
        "redis:///1",
        "rediss://:secret@farm.example",
        "rediss://farm.example?ssl_certfile=me.pem",
    ],
)
def test_a_redis_on_this_machine_or_behind_tls_is_used_without_a_warning(url: str) -> None:
    assert redis_problem(url) is None
    assert with_redis(url).require().redis_url == url


def test_a_password_without_tls_gives_one_warning_that_does_not_show_it(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with_redis("redis://:hunter2@clear.example").require()
    [record] = caplog.records
    assert "leads to clear.example port 6379 without verified TLS" in record.getMessage()
    assert "hunter2" not in record.getMessage()
    with_redis("redis://:hunter2@quiet.example", allow_insecure_redis=True).require()
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@h:port",
        "redis://h:hunter2",
        "hunter2",
        "redis://h?max_connections=hunter2",
        "redis://h?path=/hunter2",
        "redis://me:hunt/hunter2@h:6379/0",
        "redis://me:hunt#hunter2@h:6379/0",
        "redis://me:6?hunter2@h:6379/0",
        "redis://me:6?hunter2=@h:6379/0",
        "redis://me:hunter[2@h",
        "http://h",
    ],
)
def test_an_invalid_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InputError, match="LATENTFARM_REDIS_URL is no URL of a Redis") as caught:
        with_redis(url).require()
    assert "hunt" not in str(caught.value)


@given(
    st.text(max_size=40),
    st.sampled_from(
        ["redis://", "rediss://", "unix://", "redis://127.0.0.1@", "", "sentinel://", "sentinel://a/s?", "redis://h?"]
    ),
)
def test_any_url_is_assessed_or_refused(text: str, scheme: str) -> None:
    with suppress(InputError):
        found = redis_problem(scheme + text)
        assert found is None or "LATENTFARM_REDIS_URL leads to" in found.text


@pytest.mark.parametrize(
    "url", ["redis://me:hunter2@h:1/0", "unix:///x.sock?password=hunter2", "redis://h?username=me&password=hunter2"]
)
def test_no_password_of_redis_is_shown_by_settings_or_errors(url: str) -> None:
    assert "hunter2" not in Ledger.connect(url).where
    assert "hunter2" not in repr(with_redis(url))


def test_workers_inherit_the_permission_for_an_open_redis() -> None:
    assert with_redis("redis://h").environment().get("LATENTFARM_ALLOW_INSECURE_REDIS") is None
    allowed = with_redis("redis://h", allow_insecure_redis=True).environment()
    assert allowed["LATENTFARM_ALLOW_INSECURE_REDIS"] == "true"


def test_messages_are_json_only() -> None:
    conf = make_app("redis://localhost", model="mini").conf
    assert (conf.accept_content, conf.task_serializer, conf.event_serializer) == (["json"], "json", "json")
    assert conf.result_backend is None
