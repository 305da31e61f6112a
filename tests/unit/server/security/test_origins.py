"""Names of the server, pages of other origins, and addresses of clients."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.requests import Request

from latentfarm.errors import InputError
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.security.client_address import ClientAddresses, network_of
from latentfarm.server.security.guard import check_exposure
from latentfarm.server.security.origins import HostCheck, check_not_forwarded, check_origin, host_of
from latentfarm.server.settings import ServerSettings

pytestmark = pytest.mark.unit

LOOPBACK = "localhost localhost:8000 127.0.0.1:7860 127.9.9.9 [::1]:7860 LOCALHOST. [::1]"
FOREIGN = "evil.example evil.example:7860 127.0.0.1.evil.example localhost.evil.example [evil] 0x7f.1 :"


def accepted(check: HostCheck, hosts: str) -> list[str]:
    found = []
    for host in hosts.split():
        with suppress(RequestError):
            check.check(Headers({"host": host}))
            found.append(host)
    return found


@pytest.mark.parametrize("address", ["127.0.0.1:7860", "0.0.0.0:7860", ":7860", "[::]:7860", "10.0.0.5:7860"])
def test_names_that_could_be_rebound_are_not_this_servers(address: str) -> None:
    check = HostCheck(address, "Farm.example, other.example")
    assert accepted(check, LOOPBACK) == LOOPBACK.split()
    assert accepted(check, FOREIGN) == []
    assert len(accepted(check, "farm.example FARM.example.:443 other.example:80")) == 3
    addresses = accepted(check, "10.0.0.5 10.0.0.5:7860 192.168.7.7:7860 [fd00::1]:7860")
    assert len(addresses) == (0 if address.startswith("127") else 2 if address.startswith("10") else 4)


def test_a_request_without_a_name_is_refused() -> None:
    with pytest.raises(RequestError, match="ALLOWED_HOSTS") as raised:
        HostCheck("127.0.0.1:7860", "").check(Headers({}))
    assert raised.value.status == 421


@given(st.text())
def test_any_host_is_parsed(text: str) -> None:
    assert ":" not in host_of(text) or "[" in text or text.count(":") > 1


@pytest.mark.parametrize(
    ("method", "passes", "headers"),
    [
        # clients that are no browser
        ("POST", True, {}),
        ("POST", True, {"sec-fetch-mode": "cors"}),
        # a page of the server, and an address that was typed
        ("POST", True, {"sec-fetch-site": "same-origin", "origin": "http://localhost:7860"}),
        ("GET", True, {"sec-fetch-site": "none", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}),
        ("POST", True, {"origin": "http://localhost:7860"}),
        ("POST", True, {"origin": "https://localhost:7860"}),
        # a link of another page
        ("GET", True, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}),
        # its forms, scripts, images and frames; another port is another page
        ("POST", False, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}),
        ("POST", False, {"sec-fetch-site": "cross-site", "origin": "http://localhost:7860"}),
        ("POST", False, {"sec-fetch-site": "same-site"}),
        ("DELETE", False, {"origin": "http://evil.example"}),
        ("POST", False, {"origin": "http://localhost:9999"}),
        ("POST", False, {"origin": "null"}),
        ("POST", False, {"origin": "http://[evil"}),
        ("GET", False, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}),
        ("GET", False, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}),
    ],
)
def test_pages_of_other_origins_send_nothing(method: str, passes: bool, headers: dict[str, str]) -> None:  # noqa: FBT001
    sent = Headers({"host": "localhost:7860", **headers})
    if passes:
        check_origin(method, sent)
    else:
        with pytest.raises(RequestError) as raised:
            check_origin(method, sent)
        assert raised.value.code == "foreign_origin"


def test_a_proxy_in_front_of_a_server_without_keys_is_found() -> None:
    check_not_forwarded(Headers({}))
    for name in ("Forwarded", "X-Forwarded-For", "Via"):
        with pytest.raises(RequestError, match="LATENTFARM_API_KEYS_FILE"):
            check_not_forwarded(Headers({name: "x"}))


@pytest.mark.parametrize("address", ["0.0.0.0:7860", ":7860", "[::]:1", "10.0.0.5:80", "myhost:7860", "127.0.0.1.x:1"])
def test_only_the_loopback_interface_needs_no_keys(address: str) -> None:
    with pytest.raises(InputError, match="latentfarm key new NAME --append"):
        check_exposure(ServerSettings(address=address))
    for loopback in ("127.0.0.1:0", "localhost:7860", "[::1]:7860", "127.0.0.2:1"):
        check_exposure(ServerSettings(address=loopback))


def request(peer: str, *forwarded: str) -> Request:
    headers = [(b"x-forwarded-for", each.encode()) for each in forwarded]
    scope: dict[str, Any] = {"type": "http", "client": (peer, 1), "headers": headers}
    return Request(scope)


def test_only_a_trusted_proxy_names_the_client() -> None:
    trusting = ClientAddresses("10.0.0.0/8, 192.168.1.1")
    assert ClientAddresses("").of(request("10.0.0.1", "1.2.3.4")) == "10.0.0.1"
    assert trusting.of(request("9.9.9.9", "1.2.3.4")) == "9.9.9.9"
    assert trusting.of(request("10.0.0.1", "6.6.6.6, 1.2.3.4, 192.168.1.1")) == "1.2.3.4"
    assert trusting.of(request("10.0.0.1", "6.6.6.6", "1.2.3.4")) == "1.2.3.4"
    assert trusting.of(request("10.0.0.1", "evil\r\n, 10.0.0.7")) == "10.0.0.7"
    assert trusting.of(request("10.0.0.1")) == "10.0.0.1"
    with pytest.raises(InputError, match="such as 10"):
        ClientAddresses("proxy")


@given(st.text(alphabet=st.characters(max_codepoint=255)))
def test_any_forwarded_header_is_an_address_in_the_end(text: str) -> None:
    found = ClientAddresses("10.0.0.1").of(
        Request({"type": "http", "client": ("10.0.0.1", 1), "headers": [(b"x-forwarded-for", text.encode("latin-1"))]})
    )
    assert network_of(found)


def test_one_client_has_a_network_of_ipv6() -> None:
    assert network_of("1.2.3.4") == "1.2.3.4"
    assert network_of("fd00:1:2:3:4::5") == network_of("fd00:1:2:3:ffff::1%eth0") == "fd00:1:2:3::/64"
    assert network_of("testclient") == "testclient"
