"""The S3 client and the layout of keys in the user's bucket.

::

    batches/<batch>/batch.json                        what was asked: model, digest, and at the end its total
    batches/<batch>/control.json                      what its user decided since: paused, cancelled, priority
    batches/<batch>/manifest/part-00017.jsonl.gz      the jobs 17000 to 17999, prompts and all
    batches/<batch>/images/00017/00017042-<epoch>.png job 17042, as the lease of that epoch made it
    batches/<batch>/traces/00017/00017042-<epoch>.png its strip from noise to result, if one was asked for
    batches/<batch>/results/part-00017.jsonl.gz       the receipts of the jobs 17000 to 17999
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import ssl
from base64 import b64encode
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote, urlparse, urlsplit

import boto3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.client import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from latentfarm.errors import InputError, UnavailableError
from latentfarm.job import PART_JOBS
from latentfarm.probe import probe_bucket

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import DeleteTypeDef

    from latentfarm.settings import Settings

_IMAGE_KEY = re.compile(r"/(\d{8,})-(\d+)\.png\Z")
_MISSING = {"404", "NoSuchKey", "NotFound"}
_THIS_MACHINE = {"127.0.0.1", "::1", "localhost"}
#: connections that boto3 keeps
_CONNECTIONS = 16
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 5, 30
#: bytes of an object that is read whole; the largest of ours, a strip of eight large pictures, has less than half
MAX_OBJECT_BYTES = 256 * 1024 * 1024
#: how long a presigned URL may live: what SigV4 allows
MAX_PRESIGN_S = 7 * 24 * 3600


class MissingObjectError(UnavailableError):
    """The key is not in the bucket."""


def part_of(index: int) -> int:
    """Return the number of the part that a job belongs to."""
    return index // PART_JOBS


def batch_prefix(batch: str) -> str:
    """Return what all keys of a batch begin with."""
    return f"batches/{batch}/"


def header_key(batch: str) -> str:
    """Return the key of what was asked, which makes a manifest whole."""
    return f"batches/{batch}/batch.json"


def control_key(batch: str) -> str:
    """Return the key of what its user has decided about the batch since."""
    return f"batches/{batch}/control.json"


def manifest_key(batch: str, part: int) -> str:
    """Return the key of a manifest part."""
    return f"batches/{batch}/manifest/part-{part:05d}.jsonl.gz"


def results_key(batch: str, part: int) -> str:
    """Return the key of a part of receipts."""
    return f"batches/{batch}/results/part-{part:05d}.jsonl.gz"


def images_prefix(batch: str, part: int) -> str:
    """Return what the keys of a part's images begin with."""
    return f"batches/{batch}/images/{part:05d}/"


def traces_prefix(batch: str, part: int) -> str:
    """Return what the keys of a part's traces begin with."""
    return f"batches/{batch}/traces/{part:05d}/"


def image_key(batch: str, index: int, epoch: int) -> str:
    """Return the key of what a lease makes of a job.

    The epoch in it keeps a worker that was presumed dead from overwriting what its successor has stored.
    """
    return f"{images_prefix(batch, part_of(index))}{index:08d}-{epoch}.png"


def trace_key(batch: str, index: int, epoch: int) -> str:
    """Return the key of a job's strip from noise to result."""
    return f"{traces_prefix(batch, part_of(index))}{index:08d}-{epoch}.png"


def parse_image_key(key: str) -> tuple[int, int] | None:
    """Return the index and the epoch in the key of an image or a trace, None where it is none."""
    found = _IMAGE_KEY.search(key)
    return (int(found[1]), int(found[2])) if found else None


class Bucket:
    """One bucket of an S3-compatible store.

    The client is made once and shared by threads (boto3's clients are safe to share, its sessions are not).
    Every method raises ``UnavailableError`` when the store does not answer, refuses, or lacks the bucket.
    """

    def __init__(self, client: S3Client, name: str, *, where: str, credentials: Any = None) -> None:
        self.client = client
        self.name = name
        self.where = where
        self._credentials = credentials

    @classmethod
    def connect(cls, settings: Settings, *, max_connections: int = _CONNECTIONS) -> Bucket:
        """Return the bucket that the settings name; nothing is sent yet."""
        endpoint = settings.s3_endpoint_url or None
        foreign = endpoint is not None and not (urlparse(endpoint).hostname or "").endswith(".amazonaws.com")
        path_style = foreign if settings.s3_path_style is None else settings.s3_path_style
        config = Config(
            signature_version="s3v4",
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            max_pool_connections=max_connections,
            retries={"mode": "standard", "total_max_attempts": 4},
            s3={"addressing_style": "path" if path_style else "auto"},
            # other stores refuse the trailing checksums that boto3 sends by default since 1.36
            request_checksum_calculation="when_required" if foreign else "when_supported",
            response_checksum_validation="when_required" if foreign else "when_supported",
        )
        access_key, secret_key = settings.s3_access_key or None, settings.s3_secret_key.get_secret_value() or None
        session = boto3.session.Session(aws_access_key_id=access_key, aws_secret_access_key=secret_key)
        client: S3Client = session.client(
            "s3",
            endpoint_url=endpoint,
            config=config,
            region_name=session.region_name or "us-east-1",
        )
        where = f"{endpoint or 'AWS S3'}, bucket {settings.bucket}"
        return cls(client, settings.bucket, where=where, credentials=session.get_credentials())

    @contextmanager
    def _answered(self, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _MISSING:
                raise MissingObjectError(f"{key} is not in the store ({self.where})") from error
            raise UnavailableError(f"the store ({self.where}) refuses {key or 'the bucket'}: {error}") from error
        except BotoCoreError as error:
            raise UnavailableError(f"the store ({self.where}) does not answer: {error}") from error

    def put(self, key: str, body: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write one object whole, with a checksum that the store checks where it can."""
        digest = b64encode(hashlib.sha256(body).digest()).decode()
        with self._answered(key):
            self.client.put_object(
                Bucket=self.name, Key=key, Body=body, ContentType=content_type, ChecksumSHA256=digest
            )

    def get(self, key: str) -> bytes:
        """Read one object.

        Raises:
            MissingObjectError: there is none.
            InputError: it is larger than any of ours, so somebody else's.
        """
        with self._answered(key):
            answer = self.client.get_object(Bucket=self.name, Key=key)
            if answer["ContentLength"] > MAX_OBJECT_BYTES:
                answer["Body"].close()
                raise InputError(f"{key} has {answer['ContentLength']:,} bytes; latentfarm writes no such object")
            body: bytes = answer["Body"].read()
            return body

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """Give a way to read many objects fast, on several threads."""
        lines = _Lines.to(self, self._credentials)
        try:
            yield Reading(self, lines)
        finally:
            if lines is not None:
                lines.close()

    def presign(self, key: str, *, expires_s: int) -> str:
        """Return a URL that reads an object for ``expires_s`` seconds, up to a week; nothing is sent."""
        with self._answered(key):
            url: str = self.client.generate_presigned_url(
                "get_object", Params={"Bucket": self.name, "Key": key}, ExpiresIn=expires_s
            )
            return url

    def exists(self, key: str) -> bool:
        """Ask whether an object is there."""
        try:
            with self._answered(key):
                self.client.head_object(Bucket=self.name, Key=key)
        except MissingObjectError:
            return False
        return True

    def keys(self, prefix: str) -> Iterator[str]:
        """List the keys below a prefix."""
        with self._answered(prefix):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix):
                for entry in page.get("Contents", []):
                    yield entry["Key"]

    def folders(self, prefix: str) -> Iterator[str]:
        """List what lies directly below a prefix and has more below it, each up to its next slash."""
        with self._answered(prefix):
            paginator = self.client.get_paginator("list_objects_v2")
            for page in paginator.paginate(Bucket=self.name, Prefix=prefix, Delimiter="/"):
                for entry in page.get("CommonPrefixes", []):
                    yield entry["Prefix"]

    def delete_all(self, prefix: str) -> Iterator[int]:
        """Delete every object below a prefix, up to a thousand a request; yield how many each one took."""
        with self._answered(prefix):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix):
                keys = [entry["Key"] for entry in page.get("Contents", [])]
                if keys:
                    self.delete(keys)
                    yield len(keys)

    def delete(self, keys: list[str]) -> None:
        """Delete objects, at most a thousand; those that are not there are none too many."""
        wanted: DeleteTypeDef = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        with self._answered(keys[0]):
            answer = self.client.delete_objects(Bucket=self.name, Delete=wanted)
        for refused in answer.get("Errors", [])[:1]:
            raise UnavailableError(f"the store ({self.where}) keeps {refused.get('Key')}: {refused.get('Message')}")

    def check(self) -> None:
        """Ask for the bucket itself; it is read only."""
        with self._answered(""):
            self.client.head_bucket(Bucket=self.name)

    def probe(self) -> None:
        """Put, look at, read and delete an object of 64 random bytes under ``probe/``, outside of all batches.

        Raises:
            UnavailableError: one of these does not work; the text says which, why and what to do.
        """
        probe_bucket(self)

    def create(self) -> None:
        """Make the bucket; only ``latentfarm up`` does so, in its own store."""
        with self._answered(""):
            self.client.create_bucket(Bucket=self.name)


class Reading:
    """Reads objects, each by its key and sha256, on any of up to ``threads`` threads."""

    def __init__(self, bucket: Bucket, lines: _Lines | None) -> None:
        self._bucket = bucket
        self._lines = lines
        # a distant store is waited for; one on this machine shares its cores with us, and threads only add to the work
        host = urlparse(bucket.client.meta.endpoint_url).hostname
        self.threads = 4 if host in _THIS_MACHINE else _CONNECTIONS

    def __call__(self, key: str, sha256: str) -> bytes:
        """Return an object.

        Raises:
            UnavailableError: as ``Bucket.get``, and where the object is not what its sha256 says.
        """
        body = self._lines.get(key) if self._lines is not None else None
        if body is None or hashlib.sha256(body).hexdigest() != sha256:
            body = self._bucket.get(key)
            if hashlib.sha256(body).hexdigest() != sha256:
                raise UnavailableError(f"{key} is not what its receipt says; its sha256 differs")
        return body


class _Lines:
    """Kept connections on which objects are asked for plainly: one signed GET, one answer, no retry.

    boto3 spends 1.3 ms of CPU on each request and holds the GIL meanwhile, so threads do not help; this spends 0.2 ms.
    It knows one answer, 200 with a length. For anything else, an outage, a redirect, a slow-down, it gives None and
    boto3 is to be asked, who retries, follows and words errors. It can fail but not mislead: callers check the sha256.
    """

    #: failures in a row after which boto3 is asked at once
    _MAX_FAILURES = 8

    def __init__(self, base: str, region: str, credentials: Any) -> None:
        parts = urlsplit(base)
        self._base, self._netloc, self._path = base, parts.netloc, parts.path
        self._address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            trusted = os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE")
            self._tls = ssl.create_default_context(cafile=trusted or get_cert_path(verify=True))
        self._region, self._credentials = region, credentials
        self._idle: deque[tuple[socket.socket, IO[bytes]]] = deque()
        self._failures = 0

    @classmethod
    def to(cls, bucket: Bucket, credentials: Any) -> _Lines | None:
        """Return lines to the bucket, or None where only boto3 knows the way: a proxy, no credentials."""
        if credentials is None:
            return None
        with suppress(UnavailableError, OSError):
            # boto3's own idea of where the bucket is, by path or by host
            base = bucket.presign("k", expires_s=1).partition("/k?")[0]
            if not get_environ_proxies(base):
                return cls(base, bucket.client.meta.region_name, credentials)
        return None

    def get(self, key: str) -> bytes | None:
        """Return an object, or None if that did not work at the first try."""
        if self._failures >= self._MAX_FAILURES:
            return None
        line = None
        with suppress(IndexError):
            line = self._idle.pop()
        try:
            line = line or self._connect()
            body, keep = self._ask(*line, key)
        except (OSError, ValueError, BotoCoreError):
            body, keep = None, False
        self._failures = 0 if body is not None else self._failures + 1
        if keep and line is not None:
            self._idle.append(line)
        elif line is not None:
            _hang_up(line)
        return body

    def close(self) -> None:
        """Hang up."""
        while self._idle:
            _hang_up(self._idle.pop())

    def _connect(self) -> tuple[socket.socket, IO[bytes]]:
        plain = socket.create_connection(self._address, timeout=_CONNECT_TIMEOUT_S)
        try:
            plain.settimeout(_READ_TIMEOUT_S)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line = self._tls.wrap_socket(plain, server_hostname=self._address[0]) if self._tls else plain
        except BaseException:
            plain.close()
            raise
        return line, line.makefile("rb")

    def _ask(self, line: socket.socket, answer: IO[bytes], key: str) -> tuple[bytes | None, bool]:
        """Return the object, or None, and whether the connection may be used again."""
        path = quote(key, safe="/~")
        request = AWSRequest("GET", f"{self._base}/{path}")
        S3SigV4Auth(self._credentials, "s3", self._region).add_auth(request)
        fields = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        line.sendall(f"GET {self._path}/{path} HTTP/1.1\r\nHost: {self._netloc}\r\n{fields}\r\n".encode())
        status = answer.readline(65536)
        headers: dict[bytes, bytes] = {}
        while (field := answer.readline(65536)).strip():
            name, _, value = field.partition(b":")
            headers[name.lower()] = value.strip()
        plain = not headers.keys() & {b"transfer-encoding", b"content-encoding"} and b"content-length" in headers
        if not status.startswith(b"HTTP/1.1 200 ") or not plain:
            return None, False
        length = int(headers[b"content-length"])
        if not 0 <= length <= MAX_OBJECT_BYTES:
            return None, False
        body = answer.read(length)
        return (body if len(body) == length else None), headers.get(b"connection", b"").lower() != b"close"


def _hang_up(line: tuple[socket.socket, IO[bytes]]) -> None:
    connection, answer = line
    answer.close()
    connection.close()
