"""Writes an object of any size in parts, so that its writer holds only one at a time."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

from latentfarm.errors import UnavailableError
from latentfarm.storage.bucket import Bucket, error_code

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

#: S3's limits: bytes of every part but the last, and parts of an object
MIN_PART_BYTES, MAX_PARTS = 5 * 2**20, 10_000


class MultipartUpload:
    """One object that is written in parts. It exists only after ``complete``; use it from one thread at a time.

    All methods raise ``UnavailableError`` if the store does not answer or refuses the request.
    """

    def __init__(self, bucket: Bucket, key: str, *, content_type: str = "application/octet-stream") -> None:
        self._bucket = bucket
        self._key = key
        self._parts: list[CompletedPartTypeDef] = []
        with bucket.translate_errors(key):
            answer = bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key, ContentType=content_type)
            self._id = answer["UploadId"]

    def put_part(self, body: bytes | bytearray) -> None:
        """Store the next part. The store compares its MD5, the one checksum that every store knows for parts."""
        number = len(self._parts) + 1
        digest = b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        with self._bucket.translate_errors(self._key):
            answer = self._bucket.client.upload_part(
                Bucket=self._bucket.name,
                Key=self._key,
                UploadId=self._id,
                PartNumber=number,
                Body=body,
                ContentMD5=digest,
            )
            self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})

    def complete(self) -> None:
        """Make the object of its parts."""
        try:
            with self._bucket.translate_errors(self._key):
                self._bucket.client.complete_multipart_upload(
                    Bucket=self._bucket.name, Key=self._key, UploadId=self._id, MultipartUpload={"Parts": self._parts}
                )
        except UnavailableError as error:
            # boto3 repeats a request whose answer was lost, and the first one may have completed the upload
            if error_code(error) != "NoSuchUpload" or not self._bucket.exists(self._key):
                raise

    def abort(self) -> None:
        """Remove the parts. They cost space, but are no object."""
        abort_upload(self._bucket, self._key, self._id)


def abort_upload(bucket: Bucket, key: str, upload_id: str) -> None:
    """Remove the parts of an upload that was not completed, if the store answers."""
    with suppress(UnavailableError), bucket.translate_errors(key):
        bucket.client.abort_multipart_upload(Bucket=bucket.name, Key=key, UploadId=upload_id)


def abort_uploads_before(bucket: Bucket, prefix: str, time: datetime) -> int:
    """Abort the uploads below a prefix that began before a time; return how many. Their writers have died.

    A store that cannot list uploads has 0: its lifecycle rules remove them, or its restart.
    """
    aborted = 0
    with suppress(UnavailableError), bucket.translate_errors(prefix):
        for page in bucket.client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket.name, Prefix=prefix):
            for upload in page.get("Uploads", []):
                if upload["Initiated"] < time:
                    abort_upload(bucket, upload["Key"], upload["UploadId"])
                    aborted += 1
    return aborted
