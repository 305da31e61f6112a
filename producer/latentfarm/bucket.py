"""The S3 client and the layout of keys in the user's bucket.

::

    batches/<batch>/batch.json                        what was asked: model, totals, digest; written last
    batches/<batch>/manifest/part-00017.jsonl.gz      the jobs 17000 to 17999, prompts and all
    batches/<batch>/images/00017/00017042.png         job 17042
    batches/<batch>/traces/00017/00017042.png         its strip from noise to result, if one was asked for
    batches/<batch>/results/part-00017.jsonl.gz       the receipts of the jobs 17000 to 17999
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlparse

import boto3
from botocore.client import Config
from botocore.exceptions import BotoCoreError, ClientError

from latentfarm.errors import UnavailableError
from latentfarm.job import PART_JOBS

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import DeleteTypeDef

    from latentfarm.settings import Settings

_MISSING = {"404", "NoSuchKey", "NotFound"}


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


def manifest_key(batch: str, part: int) -> str:
    """Return the key of a manifest part."""
    return f"batches/{batch}/manifest/part-{part:05d}.jsonl.gz"


def results_key(batch: str, part: int) -> str:
    """Return the key of a part of receipts."""
    return f"batches/{batch}/results/part-{part:05d}.jsonl.gz"


def image_key(batch: str, index: int) -> str:
    """Return the key of a job's image: it depends on the job only, so a second render replaces the first."""
    return f"batches/{batch}/images/{part_of(index):05d}/{index:08d}.png"


def trace_key(batch: str, index: int) -> str:
    """Return the key of a job's strip from noise to result."""
    return f"batches/{batch}/traces/{part_of(index):05d}/{index:08d}.png"


class Bucket:
    """One bucket of an S3-compatible store.

    The client is made once and shared by threads (boto3's clients are safe to share, its sessions are not).
    Every method raises ``UnavailableError`` when the store does not answer, refuses, or lacks the bucket.
    """

    def __init__(self, client: S3Client, name: str, *, where: str) -> None:
        self.client = client
        self.name = name
        self.where = where

    @classmethod
    def connect(cls, settings: Settings, *, max_connections: int = 16) -> Bucket:
        """Return the bucket that the settings name; nothing is sent yet."""
        endpoint = settings.s3_endpoint_url or None
        foreign = endpoint is not None and not (urlparse(endpoint).hostname or "").endswith(".amazonaws.com")
        path_style = foreign if settings.s3_path_style is None else settings.s3_path_style
        config = Config(
            signature_version="s3v4",
            connect_timeout=5,
            read_timeout=30,
            max_pool_connections=max_connections,
            retries={"mode": "standard", "total_max_attempts": 4},
            s3={"addressing_style": "path" if path_style else "auto"},
            # other stores refuse the trailing checksums that boto3 sends by default since 1.36
            request_checksum_calculation="when_required" if foreign else "when_supported",
            response_checksum_validation="when_required" if foreign else "when_supported",
        )
        session = boto3.session.Session()
        client: S3Client = session.client(
            "s3",
            endpoint_url=endpoint,
            config=config,
            region_name=session.region_name or "us-east-1",
            aws_access_key_id=settings.s3_access_key or None,
            aws_secret_access_key=settings.s3_secret_key.get_secret_value() or None,
        )
        return cls(client, settings.bucket, where=f"{endpoint or 'AWS S3'}, bucket {settings.bucket}")

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
        """
        with self._answered(key):
            body: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
            return body

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

    def delete_all(self, prefix: str) -> Iterator[int]:
        """Delete every object below a prefix, up to a thousand a request; yield how many each one took."""
        with self._answered(prefix):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix):
                keys = [entry["Key"] for entry in page.get("Contents", [])]
                if keys:
                    self._delete(keys)
                    yield len(keys)

    def _delete(self, keys: list[str]) -> None:
        wanted: DeleteTypeDef = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        answer = self.client.delete_objects(Bucket=self.name, Delete=wanted)
        for refused in answer.get("Errors", [])[:1]:
            raise UnavailableError(f"the store ({self.where}) keeps {refused.get('Key')}: {refused.get('Message')}")

    def check(self) -> None:
        """Ask for the bucket itself; it is read only."""
        with self._answered(""):
            self.client.head_bucket(Bucket=self.name)

    def create(self) -> None:
        """Make the bucket; only ``latentfarm up`` does so, in its own store."""
        with self._answered(""):
            self.client.create_bucket(Bucket=self.name)
