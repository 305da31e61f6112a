"""GET what a URL that a user chose leads to, of bounded size and in bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from urllib.parse import SplitResult, urljoin

from latentfarm.errors import InputError
from latentfarm.https.connection import connect, target_of
from latentfarm.https.url_check import parse_url

_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True)
class Limits:
    """What bounds a download.

    ``check_host``: raises ``InputError`` for a host that may not be used; it is called for each redirect, too.
    ``allow_private``: connect to addresses that are not public, too. ``private_cure``: what allows it, for the error.
    ``timeout_s``: from the first DNS query to the last byte. ``accept``: media types for the server.
    """

    check_host: Callable[[str], None]
    max_bytes: int
    timeout_s: float
    accept: str
    private_cure: str
    allow_private: bool = False


def download(url: str, limits: Limits) -> bytes:
    """Return the body that a URL, or the one that it redirects to, has.

    Raises:
        InputError: the URL is invalid or refused, it does not answer in time or not with 200, or the body is too
            large. The text is problem and cure.
    """
    deadline, shown = time.monotonic() + limits.timeout_s, ""
    for _ in range(_MAX_REDIRECTS + 1):
        try:
            found = _get(parse_url(url), limits, deadline)
        except InputError as error:
            raise InputError(f"{shown}{error}") from None
        except (OSError, HTTPException) as error:
            # a connection that is cut at the deadline may raise any of these
            late = time.monotonic() >= deadline
            problem = f"has not answered within {limits.timeout_s:g} s" if late else _describe(error)
            raise InputError(f"{shown}{problem}; check it, or save the image to a file") from None
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
        shown = f"redirects to {url[:100]!r}, which "
    raise InputError(f"redirects more than {_MAX_REDIRECTS} times; write the final URL")


def _get(parts: SplitResult, limits: Limits, deadline: float) -> bytes | str:
    """Return a body, or the location of a redirect."""
    limits.check_host(str(parts.hostname))
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(
                connect(parts, deadline=deadline, allow_private=limits.allow_private, cure=limits.private_cure)
            )
        except InputError as error:
            raise InputError(f"is refused: {error}") from None
        # the body is counted as it is sent
        headers = {"user-agent": "latentfarm", "accept": limits.accept, "accept-encoding": "identity"}
        connection.request("GET", target_of(parts), headers=headers)
        with connection.getresponse() as response:
            # a connection that is cut within the headers reads like an answer that ends there
            if time.monotonic() >= deadline:
                raise TimeoutError
            location = response.headers.get("location")
            if response.status in _REDIRECTS and location:
                return location
            if response.status != 200:
                raise InputError(f"answers with {response.status}; correct the URL, or save the image to a file")
            return _read(response, limits, deadline)


def _read(response: HTTPResponse, limits: Limits, deadline: float) -> bytes:
    size = response.length
    if size is None or size <= limits.max_bytes:
        body = response.read(limits.max_bytes + 1)
        if time.monotonic() >= deadline:
            raise TimeoutError
        if len(body) <= limits.max_bytes:
            if size is not None and len(body) < size:
                raise ConnectionError(f"the answer ends after {len(body):,} of {size:,} bytes")
            return body
    raise InputError(f"has more than {limits.max_bytes:,} bytes; store it smaller")


def _describe(error: Exception) -> str:
    if isinstance(error, HTTPException):
        # its text may be anything that the server sent
        return f"does not answer with HTTP ({type(error).__name__})"
    return f"cannot be read ({str(error) or type(error).__name__})"
