"""The S3 client of the farm's bucket. ``keys`` has the layout of its objects."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlparse

from latentfarm.errors import InputError, UnavailableError
from latentfarm.storage.get_signer import GetSigner
from latentfarm.storage.keys import MAX_OBJECT_BYTES

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from botocore.exceptions import ClientError
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import DeleteTypeDef, ListObjectsV2OutputTypeDef, ListObjectsV2RequestPaginateTypeDef

    from latentfarm.settings import Settings

_MISSING = {"404", "NoSuchKey", "NotFound"}
#: answers to DeleteObjects of stores that lack it, or that want another digest of its body than boto3 sends
_NO_MULTI_DELETE = {
    *("400", "405", "501", "NotImplemented", "NotSupported", "MethodNotAllowed", "UnsupportedOperation"),
    *("MalformedXML", "InvalidRequest", "InvalidArgument", "MissingContentMD5", "InvalidDigest", "BadDigest"),
}
#: connections in boto3's pool
MAX_CONNECTIONS = 16
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 5, 30
#: tries of a request that fails before its body is read, by boto3, and of one whose body breaks, by us
_MAX_ATTEMPTS, _BODY_TRIES = 4, 3
#: root elements of answers. boto3 reads any other XML, such as a proxy's page, as a listing without keys, or as a
#: deletion that was done
_ROOTS = {"ListObjectsV2": b"ListBucketResult", "DeleteObjects": b"DeleteResult"}
#: no object of latentfarm begins so: they are images, gzip and JSON
_ERROR_BODY = re.compile(rb"\s*(<\?xml[^>]*>\s*)?<Error\b")
#: seconds that a presigned URL may be valid: SigV4's limit
MAX_PRESIGN_S = 7 * 24 * 3600
#: keys in one DeleteObjects request: S3's limit
MAX_DELETE_KEYS = 1_000


def check_expiry(expires_s: int) -> int:
    """Return the seconds that a presigned URL is to be valid.

    Raises:
        InputError: they are out of range.
    """
    if not 1 <= expires_s <= MAX_PRESIGN_S:
        raise InputError(f"a URL cannot expire in {expires_s} s; write 1 to {MAX_PRESIGN_S} seconds")
    return expires_s


class MissingObjectError(UnavailableError):
    """The key is not in the bucket."""


class InvalidAnswerError(Exception):
    """An answer of status 200 is not one of S3: an error in its body, a proxy's page, or a part of an object.

    It is the cause of an ``UnavailableError``, never raised itself.
    """


class Bucket:
    """One bucket of an S3-compatible store. Thread-safe.

    boto3 is imported, and the client created, at the first request: most commands only read the ledger.
    All methods raise ``UnavailableError`` if the store does not answer, refuses the request, or lacks the bucket, and
    ``InputError`` if the settings name no usable store.
    """

    def __init__(
        self, name: str, *, where: str, open_session: Callable[[], tuple[S3Client, Credentials | None]]
    ) -> None:
        self.name = name
        self.where = where
        self._open_session = open_session
        self._multi_delete = True

    @classmethod
    def connect(cls, settings: Settings, *, max_connections: int = MAX_CONNECTIONS) -> Bucket:
        """Return the bucket of the settings. No request is sent yet."""
        where = f"{settings.s3_endpoint_url or 'AWS S3'}, bucket {settings.bucket}"
        return cls(settings.bucket, where=where, open_session=lambda: _open_session(settings, max_connections))

    @cached_property
    def _session(self) -> tuple[S3Client, Credentials | None]:
        from botocore.exceptions import BotoCoreError

        # two threads may both get here first; each then has a boto3 session of its own, and one client is dropped
        try:
            return self._open_session()
        except (BotoCoreError, ValueError) as error:
            cure = "correct AWS_ENDPOINT_URL, AWS_PROFILE or the AWS configuration"
            raise InputError(f"the store ({self.where}) cannot be used: {error}; {cure}") from error

    @cached_property
    def client(self) -> S3Client:
        """The boto3 client."""
        return self._session[0]

    @cached_property
    def credentials(self) -> Credentials | None:
        """The credentials that the client signs with, None without any."""
        return self._session[1]

    def put(self, key: str, body: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write one object, with a checksum that the store verifies if it supports that."""
        digest = b64encode(hashlib.sha256(body).digest()).decode()
        with self.translate_errors(key):
            answer = self.client.put_object(
                Bucket=self.name, Key=key, Body=body, ContentType=content_type, ChecksumSHA256=digest
            )
            _require("ETag" in answer, "an answer to a put without an ETag")

    def get(self, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        """Read one whole object.

        The length is compared with the answer's, and the sha256 with the one that the store kept of the put, if it
        did. ETags are not compared: they are no MD5 under SSE-KMS, SSE-C and on several stores. Images have a sha256
        in their receipt and parts the CRC of gzip, which both are compared where they are used.

        Raises:
            MissingObjectError: the key is not in the bucket.
            InputError: the object is larger than ``max_bytes``.
        """
        for tries_left in reversed(range(_BODY_TRIES)):
            try:
                with self.translate_errors(key):
                    return self._read(key, max_bytes)
            except UnavailableError as error:
                if not tries_left or not _is_broken_body(error):
                    raise
        raise AssertionError("the last try returns or raises")

    def _read(self, key: str, max_bytes: int) -> bytes:
        answer = self.client.get_object(Bucket=self.name, Key=key, ChecksumMode="ENABLED")
        stream, size = answer["Body"], answer.get("ContentLength")
        try:
            if size is None:
                # only the last chunk marks the end of a body without a length
                headers = answer["ResponseMetadata"]["HTTPHeaders"]
                _require(headers.get("transfer-encoding") == "chunked", "an object without its length")
                body: bytes = stream.read(max_bytes + 1)
                size = len(body)
            elif size <= max_bytes:
                body = stream.read()
                _require(len(body) == size, f"{len(body):,} of {size:,} bytes of an object")
            if size > max_bytes:
                raise InputError(f"{key} has more than {max_bytes:,} bytes; latentfarm writes no such object")
        finally:
            stream.close()
        _require(not is_error(body), "an error in the body of a 200")
        return body

    def presign(self, key: str, *, expires_s: int) -> str:
        """Return a URL that reads an object for ``expires_s`` seconds, at most a week. No request is sent."""
        if self._signer is None:
            return self._presign_slowly(key, expires_s=expires_s)
        path = f"{urlparse(self.base_url).path}/{quote(key, safe='/~')}"
        with self.translate_errors(key):
            query = self._signer.query(path, expires_s=expires_s)
        return f"{self.base_url}/{quote(key, safe='/~')}?{query}"

    def _presign_slowly(self, key: str, *, expires_s: int) -> str:
        with self.translate_errors(key):
            url: str = self.client.generate_presigned_url(
                "get_object", Params={"Bucket": self.name, "Key": key}, ExpiresIn=expires_s
            )
            return url

    @cached_property
    def base_url(self) -> str:
        """The URL of the bucket, without a slash at its end: boto3 decides whether its name is in the path."""
        return self._presign_slowly("k", expires_s=1).partition("/k?")[0]

    @cached_property
    def _signer(self) -> GetSigner | None:
        # boto3 spends half a millisecond on a URL, and the output of a batch has a million
        region = self.client.meta.region_name
        return GetSigner(self.base_url, region, self.credentials) if self.credentials is not None else None

    def exists(self, key: str) -> bool:
        """Return whether the bucket has an object of this key."""
        try:
            with self.translate_errors(key):
                self.client.head_object(Bucket=self.name, Key=key)
        except MissingObjectError:
            return False
        return True

    def keys(self, prefix: str, *, after: str = "") -> Iterator[str]:
        """Yield the keys that begin with a prefix, in lexical order; only those after a key, if one is given."""
        for page in self._pages(prefix, after=after):
            # not every store knows where to start
            yield from (key for key in _keys_of(page) if key > after)

    def folders(self, prefix: str) -> Iterator[str]:
        """Yield the common prefixes below a prefix, each up to its next slash."""
        for page in self._pages(prefix, delimiter="/"):
            for entry in page.get("CommonPrefixes", []):
                yield entry["Prefix"]

    def delete_all(self, prefix: str) -> Iterator[int]:
        """Delete every object below a prefix, up to 1,000 a request. Yield the number of each request."""
        for page in self._pages(prefix):
            if keys := _keys_of(page):
                self.delete(keys)
                yield len(keys)

    def _pages(
        self, prefix: str, *, delimiter: str | None = None, after: str = ""
    ) -> Iterator[ListObjectsV2OutputTypeDef]:
        with self.translate_errors(prefix):
            paginator = self.client.get_paginator("list_objects_v2")
            where: ListObjectsV2RequestPaginateTypeDef = {"Bucket": self.name, "Prefix": prefix}
            if delimiter is not None:
                where["Delimiter"] = delimiter
            if after:
                where["StartAfter"] = after
            yield from paginator.paginate(**where)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, up to 1,000 a request. Missing keys are ignored."""
        for at in range(0, len(keys), MAX_DELETE_KEYS):
            self._delete_some(keys[at : at + MAX_DELETE_KEYS])

    def _delete_some(self, keys: Sequence[str]) -> None:
        """Delete up to 1,000 objects.

        If the store has no DeleteObjects, it receives one request for each key, from then on at once.
        """
        if self._multi_delete:
            try:
                self._delete_together(keys)
            except UnavailableError as error:
                if error_code(error) not in _NO_MULTI_DELETE:
                    raise
            else:
                return
        with ThreadPoolExecutor(min(len(keys), MAX_CONNECTIONS), thread_name_prefix="delete") as pool:
            list(pool.map(self._delete_one, keys))
        self._multi_delete = False

    def _delete_together(self, keys: Sequence[str]) -> None:
        wanted: DeleteTypeDef = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        with self.translate_errors(keys[0]):
            answer = self.client.delete_objects(Bucket=self.name, Delete=wanted)
        for refused in answer.get("Errors", []):
            if refused.get("Code") not in _MISSING:
                message = f"the store ({self.where}) does not delete {refused.get('Key')}: {refused.get('Message')}"
                raise UnavailableError(message, cause="store")

    def _delete_one(self, key: str) -> None:
        with suppress(MissingObjectError), self.translate_errors(key):
            self.client.delete_object(Bucket=self.name, Key=key)

    def head(self) -> None:
        """Check with one HeadBucket request that the bucket exists and the credentials are accepted."""
        with self.translate_errors(""):
            self.client.head_bucket(Bucket=self.name)

    def create(self) -> None:
        """Create the bucket. Only ``latentfarm up`` does so, in its own store."""
        with self.translate_errors(""):
            self.client.create_bucket(Bucket=self.name)

    @contextmanager
    def translate_errors(self, key: str) -> Iterator[None]:
        """Raise ``UnavailableError`` for what the client raises."""
        from http.client import HTTPException

        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ClientError as error:
            if error_code_of(error) in _MISSING:
                raise MissingObjectError(f"{key} is not in the store ({self.where})", cause="store") from error
            message = f"the store ({self.where}) refuses {key or 'the bucket'}: {error}"
            raise UnavailableError(message, cause="store") from error
        except (BotoCoreError, HTTPError, HTTPException, OSError) as error:
            # boto3 lets some errors of urllib3, ssl and sockets through, most of them while a body is read
            message = f"the store ({self.where}) does not answer: {error or type(error).__name__}"
            raise UnavailableError(message, cause="store") from error
        except (InvalidAnswerError, ResponseParserError, ValueError, LookupError, TypeError, AttributeError) as error:
            # the last four: boto3's parsers meet fields that S3 never sends, such as a date that is none
            message = f"the store ({self.where}) gives an answer that is not S3's for {key or 'the bucket'}: {error!r}"
            raise UnavailableError(message, cause="store") from error


def is_error(body: bytes) -> bool:
    """Return whether the body of a 200 is an error of the store instead of an object."""
    return _ERROR_BODY.match(body) is not None


def error_code(error: UnavailableError) -> str:
    """Return the cause of a bucket's error: S3's error code, or the name of the exception."""
    from botocore.exceptions import ClientError

    cause = error.__cause__
    return error_code_of(cause) if isinstance(cause, ClientError) else type(cause).__name__


def error_code_of(error: ClientError) -> str:
    """Return S3's error code; the status if the answer has no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _is_broken_body(error: UnavailableError) -> bool:
    """Return whether an object came damaged or in part. A time-out is none: it took long enough."""
    from botocore.exceptions import FlexibleChecksumError, IncompleteReadError, ResponseStreamingError

    broken = (InvalidAnswerError, FlexibleChecksumError, IncompleteReadError, ResponseStreamingError)
    return isinstance(error.__cause__, broken)


def _keys_of(page: ListObjectsV2OutputTypeDef) -> list[str]:
    return [entry["Key"] for entry in page.get("Contents", [])]


def _require(condition: bool, found: str) -> None:  # noqa: FBT001 - as of assert
    if not condition:
        raise InvalidAnswerError(found)


def _open_session(settings: Settings, max_connections: int) -> tuple[S3Client, Credentials | None]:
    import boto3
    from botocore.client import Config

    endpoint = settings.s3_endpoint_url or None
    foreign = endpoint is not None and not (urlparse(endpoint).hostname or "").endswith(".amazonaws.com")
    path_style = foreign if settings.s3_path_style is None else settings.s3_path_style
    # other stores refuse the trailing checksums that boto3 sends by default since 1.36
    checksums: Any = "when_required" if foreign else "when_supported"
    config = Config(
        signature_version="s3v4",
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        max_pool_connections=max_connections,
        retries={"mode": "standard", "total_max_attempts": _MAX_ATTEMPTS},
        s3={"addressing_style": "path" if path_style else "auto"},
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
    )
    access_key, secret_key = settings.s3_access_key or None, settings.s3_secret_key.get_secret_value() or None
    session = boto3.session.Session(aws_access_key_id=access_key, aws_secret_access_key=secret_key)
    region = session.region_name or "us-east-1"
    client: S3Client = session.client("s3", endpoint_url=endpoint, config=config, region_name=region)
    for operation, root in _ROOTS.items():
        client.meta.events.register(f"before-parse.s3.{operation}", partial(_require_root, root))
    return client, session.get_credentials()


def _require_root(root: bytes, response_dict: dict[str, Any], **_: object) -> None:
    """Make an answer with another root element an answer of status 500, as boto3 does with errors: it tries again."""
    if response_dict["status_code"] == 200 and root not in response_dict["body"][:1_000]:
        response_dict["status_code"] = 500
