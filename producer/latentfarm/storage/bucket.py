"""The S3 client and the layout of keys in the user's bucket.

::

    batches/<batch>/batch.json                        what was asked: model, digest, and at the end its total
    batches/<batch>/control.json                      what its user decided since: paused, cancelled, priority
    batches/<batch>/manifest/part-00017.jsonl.gz      the jobs 17000 to 17999, prompts and all
    batches/<batch>/images/00017/00017042-<epoch>.png job 17042, as the lease of that epoch made it; or .webp, .jpg
    batches/<batch>/traces/00017/00017042-<epoch>.png its strip from noise to result, if one was asked for
    batches/<batch>/results/part-00017.jsonl.gz       the receipts of the jobs 17000 to 17999
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import boto3
from botocore.client import Config
from botocore.exceptions import BotoCoreError, ClientError

from latentfarm.errors import InputError, UnavailableError
from latentfarm.storage.bucket_check import check_bucket
from latentfarm.storage.keys import MAX_OBJECT_BYTES
from latentfarm.storage.parallel_get import ParallelReader

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import DeleteTypeDef

    from latentfarm.settings import Settings

_MISSING = {"404", "NoSuchKey", "NotFound"}
#: connections that boto3 keeps
_CONNECTIONS = 16
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 5, 30
#: how long a presigned URL may live: what SigV4 allows
MAX_PRESIGN_S = 7 * 24 * 3600


class MissingObjectError(UnavailableError):
    """The key is not in the bucket."""


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
    def reading(self) -> Iterator[ParallelReader]:
        """Give a way to read many objects fast, on several threads."""
        reading = ParallelReader(self, self._credentials, connections=_CONNECTIONS)
        try:
            yield reading
        finally:
            reading.close()

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
        check_bucket(self)

    def create(self) -> None:
        """Make the bucket; only ``latentfarm up`` does so, in its own store."""
        with self._answered(""):
            self.client.create_bucket(Bucket=self.name)
