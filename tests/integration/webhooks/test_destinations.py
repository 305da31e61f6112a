"""Events go over https with a valid certificate, to public addresses that are resolved once and checked."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trustme
from tests.support.endpoints import Endpoint, ended, facts, status

from latentfarm.ledger import Ledger
from latentfarm.settings import Settings
from latentfarm.webhooks.deliver import deliver_due

pytestmark = pytest.mark.integration


def test_a_redirect_is_a_failed_attempt_and_not_followed(ledger: Ledger, worker: Settings, endpoint: Endpoint) -> None:
    for code in (301, 302, 307, 308):
        ended(ledger, f"https://localhost:{endpoint.port}/", batch=f"b{code}")
        endpoint.replies = [status(code, location=f"https://localhost:{endpoint.port}/other")]
        assert deliver_due(ledger, worker) == 0
        assert facts(ledger, f"b{code}")[2].startswith(f"the answer was {code}, and redirects are not followed")
    assert [path for path, _, _ in endpoint.received] == ["/"] * 4


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]"])
def test_a_private_address_in_any_notation_is_refused_unless_allowed(
    ledger: Ledger, worker: Settings, endpoint: Endpoint, host: str
) -> None:
    ended(ledger, f"https://{host}:{endpoint.port}/")
    strict = worker.model_copy(update={"webhook_allow_private": False})
    assert deliver_due(ledger, strict) == 0
    state, _, error = facts(ledger)
    assert state == "due"
    assert "is not a public address" in error
    assert "LATENTFARM_WEBHOOK_ALLOW_PRIVATE=true" in error
    assert endpoint.received == []


def test_one_private_address_among_public_ones_is_refused(
    ledger: Ledger, worker: Settings, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_: str, port: int, **__: Any) -> list[Any]:
        return [(2, 1, 6, "", (address, port)) for address in ("8.8.8.8", "127.0.0.1")]

    # an attacker's name server
    monkeypatch.setattr(socket, "getaddrinfo", answer)
    client: Any = ledger.redis
    client.ping()
    ended(ledger, f"https://two.example:{endpoint.port}/")
    deliver_due(ledger, worker.model_copy(update={"webhook_allow_private": False}))
    assert "two.example is 127.0.0.1, which is not a public address" in facts(ledger)[2]
    assert endpoint.received == []


def test_a_host_is_resolved_once_and_the_checked_address_is_used(
    ledger: Ledger, worker: Settings, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = []
    real = socket.getaddrinfo

    def answer(host: str, port: int, *rest: Any, **more: Any) -> list[Any]:
        # addresses are not resolved
        if host[0].isdigit():
            return real(host, port, *rest, **more)
        resolved.append(host)
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    ended(ledger, f"https://localhost:{endpoint.port}/")
    assert deliver_due(ledger, worker) == 1
    assert resolved == ["localhost"]


def test_plain_http_is_refused_even_if_private_addresses_are_allowed(
    ledger: Ledger, worker: Settings, endpoint: Endpoint
) -> None:
    ended(ledger, f"http://localhost:{endpoint.port}/")
    assert deliver_due(ledger, worker) == 0
    assert "only https is allowed" in facts(ledger)[2]
    assert endpoint.received == []


def test_a_certificate_of_another_host_is_refused(
    ledger: Ledger,
    worker: Settings,
    ca: trustme.CA,
    endpoint: Endpoint,  # noqa: ARG001
) -> None:
    other = Endpoint(ca, "other.example")
    ended(ledger, f"https://localhost:{other.port}/")
    assert deliver_due(ledger, worker) == 0
    other.close()
    assert "certificate is not valid for 'localhost'" in facts(ledger)[2]
    assert other.received == []


def test_an_untrusted_certificate_is_refused(
    ledger: Ledger, worker: Settings, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    ended(ledger, f"https://localhost:{endpoint.port}/")
    assert deliver_due(ledger, worker) == 0
    assert "CERTIFICATE_VERIFY_FAILED" in facts(ledger)[2]
    assert endpoint.received == []


def test_proxies_of_the_environment_are_not_used(
    ledger: Ledger, worker: Settings, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    ended(ledger, f"https://localhost:{endpoint.port}/")
    assert deliver_due(ledger, worker) == 1
