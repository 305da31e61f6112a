"""Images are downloaded from allowed public hosts, of bounded size, in bounded time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
import trustme
from tests.support.endpoints import Endpoint, Reply, status
from tests.support.image_sources import image_bytes

from latentfarm.errors import InputError
from latentfarm.https.download import Limits, download
from latentfarm.inputs import sources
from latentfarm.inputs.policy import InputPolicy
from latentfarm.inputs.sources import read_source

pytestmark = pytest.mark.integration

LOCAL = InputPolicy(hosts=("localhost",), allow_private=True)


def body(data: bytes, length: int | None = None) -> Reply:
    """Answer with a body, and with its length if that is given."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if length is not None:
            handler.send_header("content-length", str(length))
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def url_of(endpoint: Endpoint, path: str = "/a.png") -> str:
    return f"https://localhost:{endpoint.port}{path}"


def test_an_image_is_read_with_or_without_its_length(endpoint: Endpoint) -> None:
    data = image_bytes()
    endpoint.replies = [body(data, len(data)), body(data)]
    assert read_source(url_of(endpoint, "/a%20b.png?size=1"), LOCAL) == data
    assert read_source(url_of(endpoint), LOCAL) == data
    path, headers, _ = endpoint.received[0]
    assert path == "/a%20b.png?size=1"
    assert headers["accept"] == "image/png, image/jpeg, image/webp"


def test_a_redirect_to_an_allowed_host_is_followed(endpoint: Endpoint) -> None:
    endpoint.replies = [status(302, location="/b.png"), status(307, location=url_of(endpoint, "/c.png")), body(b"x")]
    assert read_source(url_of(endpoint), LOCAL) == b"x"
    assert [path for path, _, _ in endpoint.received] == ["/a.png", "/b.png", "/c.png"]


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("https://127.0.0.1:1/x", "redirects to 'https://127.0.0.1:1/x', which has the host 127.0.0.1, and LATENTFARM"),
        ("http://localhost/x", "which is refused, as only https is allowed"),
        ("file:///etc/passwd", "which is refused, as only https is allowed"),
        ("https://me:pw@localhost/", "which has a user or password"),
    ],
)
def test_a_redirect_to_another_host_or_scheme_is_refused(endpoint: Endpoint, location: str, problem: str) -> None:
    endpoint.replies = [status(302, location=location)]
    with pytest.raises(InputError, match=problem):
        read_source(url_of(endpoint), LOCAL)
    assert len(endpoint.received) == 1


def test_endless_redirects_end(endpoint: Endpoint) -> None:
    endpoint.replies = [status(301, location="/a.png")] * 9
    with pytest.raises(InputError, match="redirects more than 5 times; write the final URL"):
        read_source(url_of(endpoint), LOCAL)
    assert len(endpoint.received) == 6


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "2130706433"])
def test_a_private_address_is_refused_unless_allowed(endpoint: Endpoint, host: str) -> None:
    with pytest.raises(InputError, match=r"is refused: .* is not a public address.*LATENTFARM_INPUT_ALLOW_PRIVATE"):
        read_source(f"https://{host}:{endpoint.port}/a.png", InputPolicy(hosts=("*",)))
    assert endpoint.received == []


@pytest.mark.parametrize("code", [204, 206, 304, 401, 404, 429, 503])
def test_any_answer_but_200_is_an_error(endpoint: Endpoint, code: int) -> None:
    endpoint.replies = [status(code)]
    with pytest.raises(InputError, match=f"answers with {code}; correct the URL, or save the image to a file"):
        read_source(url_of(endpoint), LOCAL)


def test_a_body_over_the_limit_is_not_read(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_INPUT_BYTES", 1000)
    endpoint.replies = [body(b"x", 1001), body(bytes(1001)), body(bytes(1000))]
    for _ in range(2):
        with pytest.raises(InputError, match="has more than 1,000 bytes; store it smaller"):
            read_source(url_of(endpoint), LOCAL)
    assert len(read_source(url_of(endpoint), LOCAL)) == 1000


def test_a_body_that_is_cut_is_an_error(endpoint: Endpoint) -> None:
    endpoint.replies = [body(b"abc", 9)]
    with pytest.raises(InputError, match=r"ends after 3 of 9 bytes.*; check it, or save the image to a file"):
        read_source(url_of(endpoint), LOCAL)


def drip(endpoint: Endpoint) -> Reply:
    """Answer with a byte now and then, for as long as the client stays."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000000")
        handler.end_headers()
        while not endpoint.stopped.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    return reply


def test_a_server_that_sends_a_byte_now_and_then_is_cut_off(endpoint: Endpoint) -> None:
    endpoint.replies = [drip(endpoint)]
    limits = Limits(lambda _: None, 10**7, 0.7, "image/png", "", allow_private=True)
    began = time.monotonic()
    with pytest.raises(InputError, match=r"has not answered within 0\.7 s; check it, or save the image to a file"):
        download(url_of(endpoint), limits)
    assert time.monotonic() - began < 5


@pytest.fixture
def stranger(ca: trustme.CA) -> Iterator[Endpoint]:
    endpoint = Endpoint(ca, "other.example")
    yield endpoint
    endpoint.close()


def test_a_certificate_of_another_host_is_refused(trusted: Any, stranger: Endpoint) -> None:  # noqa: ARG001
    with pytest.raises(InputError, match=r"cannot be read .*certificate is not valid"):
        read_source(url_of(stranger), LOCAL)
    assert stranger.received == []
