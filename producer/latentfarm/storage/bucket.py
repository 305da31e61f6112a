"""The S3 client of the farm's bucket. ``keys`` has the layout of its objects."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from latentfarm.errors import InputError, UnavailableError
from latentfarm.storage.keys import MAX_OBJECT_BYTES

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import DeleteTypeDef

    from latentfarm.settings import Settings

_MISSING = {"404", "NoSuchKey", "NotFound"}
#: connections in boto3's pool
MAX_CONNECTIONS = 16
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 5, 30
#: seconds that a presigned URL may be valid: SigV4's limit
MAX_PRESIGN_S = 7 * 24 * 3600
#: keys in one DeleteObjects request: S3's limit
MAX_DELETE_KEYS = 1_000


class MissingObjectError(UnavailableError):
    """The key is not in the bucket."""


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
        with self._translate_errors(key):
            self.client.put_object(
                Bucket=self.name, Key=key, Body=body, ContentType=content_type, ChecksumSHA256=digest
            )

    def get(self, key: str) -> bytes:
        """Read one object.

        Raises:
            MissingObjectError: the key is not in the bucket.
            InputError: the object is larger than any that latentfarm writes.
        """
        with self._translate_errors(key):
            answer = self.client.get_object(Bucket=self.name, Key=key)
            if answer["ContentLength"] > MAX_OBJECT_BYTES:
                answer["Body"].close()
                raise InputError(f"{key} has {answer['ContentLength']:,} bytes; latentfarm writes no such object")
            body: bytes = answer["Body"].read()
            return body

    def presign(self, key: str, *, expires_s: int) -> str:
        """Return a URL that reads an object for ``expires_s`` seconds, at most a week. No request is sent."""
        with self._translate_errors(key):
            url: str = self.client.generate_presigned_url(
                "get_object", Params={"Bucket": self.name, "Key": key}, ExpiresIn=expires_s
            )
            return url

    def exists(self, key: str) -> bool:
        """Return whether the bucket has an object of this key."""
        try:
            with self._translate_errors(key):
                self.client.head_object(Bucket=self.name, Key=key)
        except MissingObjectError:
            return False
        return True

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with a prefix, in lexical order."""
        with self._translate_errors(prefix):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix):
                for entry in page.get("Contents", []):
                    yield entry["Key"]

    def folders(self, prefix: str) -> Iterator[str]:
        """Yield the common prefixes below a prefix, each up to its next slash."""
        with self._translate_errors(prefix):
            paginator = self.client.get_paginator("list_objects_v2")
            for page in paginator.paginate(Bucket=self.name, Prefix=prefix, Delimiter="/"):
                for entry in page.get("CommonPrefixes", []):
                    yield entry["Prefix"]

    def delete_all(self, prefix: str) -> Iterator[int]:
        """Delete every object below a prefix, up to 1,000 a request. Yield the number of each request."""
        with self._translate_errors(prefix):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix):
                keys = [entry["Key"] for entry in page.get("Contents", [])]
                if keys:
                    self.delete(keys)
                    yield len(keys)

    def delete(self, keys: list[str]) -> None:
        """Delete up to 1,000 objects. Missing keys are ignored."""
        wanted: DeleteTypeDef = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        with self._translate_errors(keys[0]):
            answer = self.client.delete_objects(Bucket=self.name, Delete=wanted)
        for refused in answer.get("Errors", [])[:1]:
            raise UnavailableError(
                f"the store ({self.where}) does not delete {refused.get('Key')}: {refused.get('Message')}",
                cause="store",
            )

    def head(self) -> None:
        """Check with one HeadBucket request that the bucket exists and the credentials are accepted."""
        with self._translate_errors(""):
            self.client.head_bucket(Bucket=self.name)

    def create(self) -> None:
        """Create the bucket. Only ``latentfarm up`` does so, in its own store."""
        with self._translate_errors(""):
            self.client.create_bucket(Bucket=self.name)

    @contextmanager
    def _translate_errors(self, key: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _MISSING:
                raise MissingObjectError(f"{key} is not in the store ({self.where})", cause="store") from error
            raise UnavailableError(
                f"the store ({self.where}) refuses {key or 'the bucket'}: {error}", cause="store"
            ) from error
        except BotoCoreError as error:
            raise UnavailableError(f"the store ({self.where}) does not answer: {error}", cause="store") from error


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
        retries={"mode": "standard", "total_max_attempts": 4},
        s3={"addressing_style": "path" if path_style else "auto"},
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
    )
    access_key, secret_key = settings.s3_access_key or None, settings.s3_secret_key.get_secret_value() or None
    session = boto3.session.Session(aws_access_key_id=access_key, aws_secret_access_key=secret_key)
    region = session.region_name or "us-east-1"
    client: S3Client = session.client("s3", endpoint_url=endpoint, config=config, region_name=region)
    return client, session.get_credentials()
