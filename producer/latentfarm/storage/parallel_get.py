"""Reading many objects fast.

boto3 spends about 1.9 ms of CPU on each request and holds the GIL meanwhile, so threads hardly help. Here a GET is
signed by botocore and sent by ``http.client`` on a connection that is kept, for 0.35 ms. Whatever comes of it that is
not the object with the right sha256 (an outage, a redirect, a slow-down) is left to boto3, which retries, follows and
words errors.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from collections import deque
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from latentfarm.errors import UnavailableError
from latentfarm.storage.keys import MAX_OBJECT_BYTES

if TYPE_CHECKING:
    from latentfarm.storage.bucket import Bucket

_THIS_MACHINE = {"127.0.0.1", "::1", "localhost"}
_TIMEOUT_S = 30
#: failures in a row after which boto3 is asked at once
_MAX_FAILURES = 8


class ParallelReader:
    """Reads objects, each by its key and sha256, on any of up to ``threads`` threads."""

    def __init__(self, bucket: Bucket, credentials: Any, *, connections: int) -> None:
        self._bucket = bucket
        # a distant store is waited for; one on this machine shares its cores with us, and threads only add to the work
        host = urlsplit(bucket.client.meta.endpoint_url).hostname
        self.threads = 4 if host in _THIS_MACHINE else connections
        self._short_way = _short_way(bucket, credentials)

    def __call__(self, key: str, sha256: str) -> bytes:
        """Return an object.

        Raises:
            UnavailableError: as ``Bucket.get``, and where the object is not what its sha256 says.
        """
        body = self._short_way.get(key) if self._short_way is not None else None
        if body is None or hashlib.sha256(body).hexdigest() != sha256:
            body = self._bucket.get(key)
            if hashlib.sha256(body).hexdigest() != sha256:
                raise UnavailableError(f"{key} is not what its receipt says; its sha256 differs")
        return body

    def close(self) -> None:
        """Hang up."""
        if self._short_way is not None:
            self._short_way.close()


def _short_way(bucket: Bucket, credentials: Any) -> SignedGetClient | None:
    """Return the short way to a bucket, or None where only boto3 knows one: a proxy, no credentials."""
    if credentials is None:
        return None
    with suppress(UnavailableError, OSError):
        # boto3's own idea of where the bucket is, by path or by host
        base = bucket.presign("k", expires_s=1).partition("/k?")[0]
        if not get_environ_proxies(base):
            return SignedGetClient(base, bucket.client.meta.region_name, credentials)
    return None


class SignedGetClient:
    """Kept connections to a bucket at ``base``, on which objects are asked for once and plainly."""

    def __init__(self, base: str, region: str, credentials: Any) -> None:
        self._base, self._parts = base, urlsplit(base)
        self._region, self._credentials = region, credentials
        self._tls: ssl.SSLContext | None = None
        if self._parts.scheme == "https":
            trusted = os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE")
            self._tls = ssl.create_default_context(cafile=trusted or get_cert_path(verify=True))
        self._idle: deque[HTTPConnection] = deque()
        self._failures = 0

    def get(self, key: str) -> bytes | None:
        """Return an object, or None if that did not work at the first try."""
        if self._failures >= _MAX_FAILURES:
            return None
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            body = self._ask(connection, key)
        except (OSError, HTTPException, ValueError, BotoCoreError):
            body = None
        self._failures = 0 if body is not None else self._failures + 1
        if body is not None:
            self._idle.append(connection)
        else:
            connection.close()
        return body

    def close(self) -> None:
        """Hang up."""
        while self._idle:
            self._idle.pop().close()

    def _connect(self) -> HTTPConnection:
        host = self._parts.hostname or ""
        if self._tls is not None:
            return HTTPSConnection(host, self._parts.port, timeout=_TIMEOUT_S, context=self._tls)
        return HTTPConnection(host, self._parts.port, timeout=_TIMEOUT_S)

    def _ask(self, connection: HTTPConnection, key: str) -> bytes | None:
        path = quote(key, safe="/~")
        request = AWSRequest("GET", f"{self._base}/{path}")
        S3SigV4Auth(self._credentials, "s3", self._region).add_auth(request)
        connection.request("GET", f"{self._parts.path}/{path}", headers=dict(request.headers.items()))
        answer = connection.getresponse()
        if answer.status != 200 or answer.length is None or answer.length > MAX_OBJECT_BYTES:
            return None
        return answer.read()
