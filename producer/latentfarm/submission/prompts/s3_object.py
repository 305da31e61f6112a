"""An object in an S3 store, read in ranges: a cut connection costs a range, and any place can be gone to."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from latentfarm.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_RANGE_BYTES = 4 * 2**20
#: a body that breaks off is asked for again this often; botocore repeats only what fails before the body
_TRIES = 4
_MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}


def parse_url(url: str) -> tuple[str, str]:
    """Return bucket and key of ``s3://bucket/key``.

    Raises:
        InputError: it is not of that form.
    """
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket or not key or key.endswith("/"):
        raise InputError(f"{url}: write s3://BUCKET/KEY, such as s3://{bucket or 'bucket'}/prompts.jsonl")
    return bucket, key


class S3Object:
    """One version of an object; ``etag`` and ``size_bytes`` come from a head request at first use."""

    def __init__(self, client: S3Client, bucket: str, key: str) -> None:
        self._client = client
        self.bucket = bucket
        self.key = key

    @property
    def url(self) -> str:
        """``s3://bucket/key``."""
        return f"s3://{self.bucket}/{self.key}"

    @cached_property
    def _head(self) -> tuple[str, int]:
        with self._answered():
            head = self._client.head_object(Bucket=self.bucket, Key=self.key)
        return head["ETag"], head["ContentLength"]

    @property
    def etag(self) -> str:
        """The store's mark of the object's content."""
        return self._head[0]

    @property
    def size_bytes(self) -> int:
        """The object's size."""
        return self._head[1]

    def open(self) -> BinaryIO:
        """Return the content as a stream in which any place can be gone to."""
        stream: BinaryIO = io.BufferedReader(_Ranges(self), _RANGE_BYTES)
        return stream

    def read_range(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` to before ``stop``, at most to the end.

        Raises:
            InputError: the object is not there, or another one lies there by now.
            UnavailableError: the store does not answer or refuses.
        """
        stop = min(stop, self.size_bytes)
        if start >= stop:
            return b""
        for attempt in range(1, _TRIES + 1):
            with self._answered():
                answer = self._client.get_object(Bucket=self.bucket, Key=self.key, Range=f"bytes={start}-{stop - 1}")
                if answer["ETag"] != self.etag:
                    raise InputError(f"{self.url} changed while it was read; submit it again")
                try:
                    data: bytes = answer["Body"].read()
                except (HTTPClientError, OSError):
                    # the connection broke in the middle of the body
                    if attempt == _TRIES:
                        raise
                    continue
            if len(data) == stop - start:
                return data
        raise UnavailableError(f"the store sends {self.url} cut short; try again later")

    @contextmanager
    def _answered(self) -> Iterator[None]:
        where = self._client.meta.endpoint_url
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _MISSING:
                raise InputError(f"{self.url} is not in the store ({where}); look at its name") from error
            raise UnavailableError(f"the store ({where}) refuses {self.url}: {error}") from error
        except (BotoCoreError, OSError) as error:
            raise UnavailableError(f"the store ({where}) does not answer: {error}") from error


class _Ranges(io.RawIOBase):
    """The raw side of the stream: every read is a range."""

    def __init__(self, found: S3Object) -> None:
        self._object = found
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._object.size_bytes}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._object.read_range(self._at, self._at + len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
