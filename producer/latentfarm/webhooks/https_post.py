"""POST to the URL of a webhook. Redirects are not followed."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException

from latentfarm.https.connection import connect, target_of
from latentfarm.webhooks.address_check import parse_url

#: bytes of an answer that are read
_MAX_BODY_BYTES = 64 * 1024
#: the longest delay that an endpoint may request
_MAX_RETRY_AFTER_S = 24 * 3600
_CURE = "to allow it, set LATENTFARM_WEBHOOK_ALLOW_PRIVATE=true on the workers"


@dataclass(frozen=True)
class Answer:
    """An answer's status, and the seconds of its ``Retry-After`` header, 0 without one."""

    status: int
    retry_after_s: float


def post(url: str, body: bytes, headers: dict[str, str], *, allow_private: bool, timeout_s: float) -> Answer:
    """POST a body and return the answer. ``timeout_s`` bounds the attempt, from the DNS query to the answer's end.

    Raises:
        InputError: the URL is invalid, or its host has an address that is not public.
        OSError, HTTPException: the endpoint cannot be reached, has no valid certificate or does not speak HTTP.
    """
    deadline = time.monotonic() + timeout_s
    parts = parse_url(url)
    with connect(parts, deadline=deadline, allow_private=allow_private, cure=_CURE) as connection:
        connection.request("POST", target_of(parts), body, headers)
        with connection.getresponse() as response:
            # a connection that is cut within the headers reads like an answer that ends there
            if time.monotonic() >= deadline:
                raise TimeoutError
            # the status decides; the body is read as a courtesy to the endpoint
            with suppress(OSError, HTTPException):
                response.read(_MAX_BODY_BYTES)
            return Answer(response.status, _retry_after_s(response.headers.get("retry-after", "")))


def _retry_after_s(header: str) -> int:
    return min(int(header), _MAX_RETRY_AFTER_S) if re.fullmatch("[0-9]{1,9}", header) else 0
