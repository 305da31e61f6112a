"""Read many objects fast, on several threads.

boto3 spends about 2.3 ms of CPU on each request and holds the GIL meanwhile, so threads hardly help.
``SignedGetClient`` signs a GET with ``GetSigner`` and sends it with http.client, for about 0.2 ms; urllib3 takes 0.3
more.
If its answer is not the object with the right sha256 (an outage, a redirect, a slow-down), boto3 reads the object: it
retries, follows redirects and words errors.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from latentfarm.errors import UnavailableError
from latentfarm.storage.bucket import MAX_CONNECTIONS, Bucket, is_error
from latentfarm.storage.get_signer import GetSigner
from latentfarm.storage.keys import MAX_OBJECT_BYTES

if TYPE_CHECKING:
    from botocore.credentials import Credentials

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_TIMEOUT_S = 30
_NOT_FOUND = 404
#: failures in a row after which boto3 reads everything, and seconds until the client is tried again
_MAX_FAILURES, _PAUSE_S = 8, 60.0


@contextmanager
def parallel_reader(bucket: Bucket) -> Iterator[ParallelReader]:
    """Open a reader of a bucket's objects. Its connections are closed at the end."""
    client = _signed_get_client(bucket)
    try:
        yield ParallelReader(bucket, client)
    finally:
        if client is not None:
            client.close()


class DamagedObjectError(UnavailableError):
    """An object has another sha256 than its receipt."""


class ParallelReader:
    """Reads objects by key and sha256. Thread-safe; ``threads`` is the number that is worth using."""

    def __init__(self, bucket: Bucket, signed_get: SignedGetClient | None) -> None:
        self._bucket = bucket
        self._signed_get = signed_get
        # threads wait for a distant store; a store on this machine competes with them for its cores
        host = urlsplit(bucket.client.meta.endpoint_url).hostname
        self.threads = 4 if host in _LOOPBACK else MAX_CONNECTIONS

    def __call__(self, key: str, sha256: str = "") -> bytes:
        """Return an object. If its ``sha256`` is unknown, only its length is compared.

        Raises:
            UnavailableError: as ``Bucket.get``.
            DamagedObjectError: the object has another sha256.
        """
        body = self._signed_get.get(key) if self._signed_get is not None else None
        if body is None or not _is_object(body, sha256):
            body = self._bucket.get(key)
            if not _is_object(body, sha256):
                raise DamagedObjectError(f"{key} does not match its receipt: its sha256 differs", cause="store")
        return body


def _is_object(body: bytes, sha256: str) -> bool:
    return hashlib.sha256(body).hexdigest() == sha256 if sha256 else not is_error(body)


def _signed_get_client(bucket: Bucket) -> SignedGetClient | None:
    """Return a client of the bucket; None where only boto3 can read: behind a proxy, or without credentials."""
    from botocore.utils import get_environ_proxies

    if bucket.credentials is None:
        return None
    with suppress(UnavailableError, OSError):
        base = bucket.base_url
        if not get_environ_proxies(base):
            return SignedGetClient(base, bucket.client.meta.region_name, bucket.credentials)
    return None


class _MissingError(Exception):
    """The store has no such object."""


class SignedGetClient:
    """Sends GETs to the bucket at the URL ``base``. Thread-safe. Only a connection that broke is tried again, once."""

    def __init__(self, base: str, region: str, credentials: Credentials) -> None:
        self._path = urlsplit(base).path
        self._signer = GetSigner(base, region, credentials)
        self._open = _connector(base)
        #: connections that wait for a request; the last one has waited least, so it is most likely open
        self._idle: list[HTTPConnection] = []
        self._failures = 0
        self._paused_until = 0.0

    def get(self, key: str) -> bytes | None:
        """Return an object, or None if it cannot be read at once."""
        from botocore.exceptions import BotoCoreError

        if time.monotonic() < self._paused_until:
            return None
        body = None
        with suppress(BotoCoreError, HTTPException, OSError, ValueError):
            try:
                body = self._send(key)
            except _MissingError:
                # an answer like any other
                self._failures = 0
                return None
        self._failures = 0 if body is not None else self._failures + 1
        if self._failures >= _MAX_FAILURES:
            self._paused_until = time.monotonic() + _PAUSE_S
        return body

    def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop().close()

    def _send(self, key: str) -> bytes | None:
        path = f"{self._path}/{quote(key, safe='/~')}"
        headers = self._signer.headers(path)
        try:
            return self._request(self._take(), path, headers)
        except ConnectionError:
            # the store may have closed it while it waited
            return self._request(self._open(), path, headers)

    def _take(self) -> HTTPConnection:
        try:
            return self._idle.pop()
        except IndexError:
            return self._open()

    def _request(self, connection: HTTPConnection, path: str, headers: dict[str, str]) -> bytes | None:
        """Return the body of an answer, None if it is no object.

        The size is checked before the body is read. A body is not decompressed: its sha256 is that of the object.
        """
        body = None
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            size = answer.length
            if answer.status == _NOT_FOUND:
                raise _MissingError
            if answer.status == 200 and size is not None and size <= MAX_OBJECT_BYTES:
                body = answer.read()
        finally:
            if body is None:
                connection.close()
        if body is not None:
            self._idle.append(connection)
        return body


def _connector(base: str) -> Callable[[], HTTPConnection]:
    """Return what makes a connection to the host of a URL; it opens at its first request."""
    from botocore.httpsession import get_cert_path

    address = urlsplit(base)
    host = address.hostname or ""
    if address.scheme != "https":
        return partial(HTTPConnection, host, address.port, timeout=_TIMEOUT_S)
    trusted = os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE") or get_cert_path(verify=True)
    context = ssl.create_default_context(cafile=trusted)
    return partial(HTTPSConnection, host, address.port, timeout=_TIMEOUT_S, context=context)
