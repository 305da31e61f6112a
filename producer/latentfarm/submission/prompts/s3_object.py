"""Read an object of an S3 store as a seekable stream, in ranges: a broken connection costs one range.

smart_open does not replace this: it does not check that all its requests read the same version of the object.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from latentfarm.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: buffer size for readers; each refill is one request
RANGE_BYTES = 4 * 2**20
#: requests for a range whose body breaks off; botocore retries only what fails before the body
_TRIES = 4
_MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}


class S3Object(io.RawIOBase):
    """One version of an object. The constructor reads its ETag and size.

    Raises:
        InputError: the object does not exist, or it was replaced: its ETag is not ``etag``, or changes between reads.
        UnavailableError: the store does not answer, or refuses access.
    """

    def __init__(self, client: S3Client, url: str, *, etag: str | None = None) -> None:
        super().__init__()
        self.url = url
        self._client = client
        self._bucket, self._key = parse_url(url)
        self._offset = 0
        with self._translate_errors():
            head = client.head_object(Bucket=self._bucket, Key=self._key)
        self.etag, self.size_bytes = etag or head["ETag"], head["ContentLength"]
        self._check_version(head["ETag"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self.size_bytes}[whence]
        self._offset = base + offset
        return self._offset

    def tell(self) -> int:
        return self._offset

    def readinto(self, buffer: Any) -> int:
        stop = min(self._offset + len(buffer), self.size_bytes)
        data = self._range(self._offset, stop) if self._offset < stop else b""
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def _range(self, start: int, stop: int) -> bytes:
        for attempt in range(1, _TRIES + 1):
            with self._translate_errors():
                answer = self._client.get_object(Bucket=self._bucket, Key=self._key, Range=f"bytes={start}-{stop - 1}")
                # If-Match would do, but rclone's server ignores it
                self._check_version(answer["ETag"])
                try:
                    data: bytes = answer["Body"].read()
                except (HTTPClientError, OSError):
                    if attempt == _TRIES:
                        raise
                    continue
            if len(data) == stop - start:
                return data
        raise UnavailableError(f"the store sends {self.url} incompletely; try again later", cause="store")

    def _check_version(self, etag: str) -> None:
        if etag != self.etag:
            raise InputError(f"{self.url} changed while it was read; submit it again")

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        where = self._client.meta.endpoint_url
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _MISSING:
                raise InputError(f"{self.url} is not in the store ({where}); check its name") from error
            raise UnavailableError(f"the store ({where}) refuses {self.url}: {error}", cause="store") from error
        except (BotoCoreError, OSError) as error:
            raise UnavailableError(f"the store ({where}) does not answer: {error}", cause="store") from error


def parse_url(url: str) -> tuple[str, str]:
    """Return bucket and key of ``s3://bucket/key``.

    Raises:
        InputError: the URL has another form.
    """
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket or not key or key.endswith("/"):
        raise InputError(f"{url}: write s3://BUCKET/KEY, such as s3://{bucket or 'bucket'}/prompts.jsonl")
    return bucket, key
