"""Webhooks without a network: URLs, addresses, signatures, secrets, bodies."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import re
import ssl
from http.client import HTTPSConnection
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from latentfarm.batch_state import BatchState
from latentfarm.errors import InputError
from latentfarm.https.url_check import MAX_URL_CHARACTERS, is_public
from latentfarm.ledger.webhook_outbox import Event
from latentfarm.webhooks.address_check import check_url
from latentfarm.webhooks.deliver import _body, _webhook_id
from latentfarm.webhooks.signing import decode_secret, sign

pytestmark = pytest.mark.unit

TLS = ssl.create_default_context()
EVENT = Event("cats", "https://x.org/", 1, BatchState.COMPLETE, 1_700_000_000_123, 0, "mini", 12, 10, 2, 0, {"nan": 2})


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com/a?token=b",
        "https://hooks.example.com:8443",
        "https://xn--bcher-kva.example/",
        "https://[2606:4700::1111]/x",
        "https://203.0.113.7/",
        "https://localhost./",
        "https://" + "x" * 63 + ".org/",
    ],
)
def test_an_https_url_is_accepted_unchanged(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://hooks.example.com/", "only https is allowed; write https://HOST/PATH"),
        ("HTTP://hooks.example.com/", "only https"),
        ("file:///etc/passwd", "only https"),
        ("hooks.example.com/a", "only https"),
        ("", "printable ASCII"),
        ("https://", "has no valid host"),
        ("https:///a", "has no valid host"),
        ("https://a..b/", "has no valid host"),
        ("https://-a.org/", "has no valid host"),
        ("https://" + "x" * 64 + ".org/", "has no valid host"),
        ("https://a.org:0/", "has no valid host"),
        ("https://a.org:65536/", "Port out of range"),
        ("https://a.org:x/", "Port could not be cast"),
        ("https://[::1", "Invalid IPv6 URL"),
        ("https://[fe80::1%25eth0]/", "has no valid host|not appear to be|Invalid"),
        ("https://a.org/\r\nHost: b.org", "printable ASCII"),
        ("https://a.org/a b", "printable ASCII"),
        ("https://bücher.example/", "printable ASCII"),
        ("https://" + "a" * MAX_URL_CHARACTERS, f"has {MAX_URL_CHARACTERS + 8} characters; at most 2048"),
    ],
)
def test_other_urls_are_refused_with_a_cure(url: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        check_url(url)


@pytest.mark.parametrize("url", ["https://me:hidden@a.org/", "https://hidden@a.org/", "https://good.org\\@hidden.org/"])
def test_a_password_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InputError, match="user or password before its host") as refused:
        check_url(url)
    assert "hidden" not in str(refused.value)


@given(st.text(max_size=60))
def test_any_text_is_accepted_or_refused(text: str) -> None:
    for url in (text, f"https://{text}", f"https://a.org{text}"):
        try:
            assert check_url(url) == url
        except InputError:
            continue


@given(st.from_regex(r"https://[a-zA-Z0-9._-]{1,80}(:[0-9]{1,5})?(/[!-~]{0,20})?", fullmatch=True))
def test_an_accepted_url_can_be_requested(url: str) -> None:
    try:
        parts = urlsplit(check_url(url))
    except InputError:
        return
    host = str(parts.hostname)
    TLS.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=host.rstrip("."))
    connection = HTTPSConnection(host, parts.port or 443, context=TLS)
    connection.putrequest("POST", parts.path or "/")
    host.encode("idna")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fd00::1",
        "fec0::1",
        "ff0e::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::a00:1",
        "2002:a00:1::",
    ],
)
def test_an_address_that_is_not_globally_routable_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::"]
)
def test_a_globally_routable_address_is_public(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_an_ipv6_address_is_as_public_as_the_ipv4_address_it_embeds(plain: ipaddress.IPv4Address) -> None:
    value = int(plain)
    for wrapped in (0xFFFF << 32 | value, 0x64_FF9B << 96 | value, 0x2002 << 112 | value << 80):
        assert is_public(str(ipaddress.IPv6Address(wrapped))) == is_public(str(plain))


@given(st.ip_addresses(v=6))
@example(ipaddress.IPv6Address("2002:100::"))
def test_an_ipv6_address_outside_global_unicast_is_not_public_unless_it_embeds_a_public_one(
    address: ipaddress.IPv6Address,
) -> None:
    wrapped = address.ipv4_mapped or address.sixtofour
    if is_public(str(address)) and wrapped is None and address not in ipaddress.IPv6Network("64:ff9b::/96"):
        assert address in ipaddress.IPv6Network("2000::/3")
        assert not address.is_private


def test_the_signature_is_that_of_the_specification() -> None:
    # the example of Standard Webhooks' own libraries
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(st.binary(min_size=24, max_size=64), st.binary(max_size=200))
def test_a_signature_is_the_hmac_of_id_timestamp_and_body(secret: bytes, body: bytes) -> None:
    signature = sign(decode_secret("whsec_" + base64.b64encode(secret).decode()), "msg_1", 7, body)
    expected = hmac.new(secret, b"msg_1.7." + body, hashlib.sha256).digest()
    assert base64.b64decode(signature.removeprefix("v1,")) == expected


@pytest.mark.parametrize(
    ("secret", "problem"),
    [
        ("", "is not set"),
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "does not begin with whsec_"),
        ("whsec_***", "is not base64 after whsec_"),
        ("whsec_" + base64.b64encode(b"x" * 23).decode(), "has 23 bytes, not 24 to 64"),
        ("whsec_" + base64.b64encode(b"x" * 65).decode(), "has 65 bytes, not 24 to 64"),
    ],
)
def test_the_error_for_an_invalid_secret_does_not_repeat_it(secret: str, problem: str) -> None:
    with pytest.raises(InputError, match=re.escape(problem)) as refused:
        decode_secret(secret)
    assert "openssl rand -base64 32" in str(refused.value)
    assert not secret or secret not in str(refused.value)


def test_an_event_has_only_the_counts_and_the_state_of_the_batch() -> None:
    assert json.loads(_body(EVENT)) == {
        "type": "batch.completed",
        "timestamp": "2023-11-14T22:13:20.123Z",
        "data": {
            "batch": "cats",
            "model": "mini",
            "state": "complete",
            "total": 12,
            "done": 10,
            "failed": 2,
            "cancelled": 0,
            "drafted": 0,
            "errors": {"nan": 2},
        },
    }
    assert b" " not in _body(EVENT)


def test_every_attempt_of_an_event_has_the_same_id() -> None:
    again = Event("cats", "https://x.org/", 5, BatchState.COMPLETE, EVENT.ended_ms, 0, "mini", 12, 10, 2, 0, {})
    later = Event("cats", "https://x.org/", 1, BatchState.COMPLETE, EVENT.ended_ms + 1, 0, "mini", 12, 12, 0, 0, {})
    # two ends may fall into the same millisecond
    retried = Event("cats", "https://x.org/", 1, BatchState.COMPLETE, EVENT.ended_ms, 1, "mini", 12, 12, 0, 0, {})
    assert _webhook_id(EVENT) == _webhook_id(again)
    assert len({_webhook_id(event) for event in (EVENT, later, retried)}) == 3
    assert re.fullmatch("msg_[0-9a-f]{32}", _webhook_id(EVENT))
