"""The age of objects by the store's own clock: that of this machine may be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from latentfarm.storage.bucket import Bucket, MissingObjectError


def age_of(bucket: Bucket, key: str) -> float | None:
    """Return the seconds since an object was written, None if the bucket has no such object."""
    try:
        with bucket.translate_errors(key):
            answer = bucket.client.head_object(Bucket=bucket.name, Key=key)
            return _age(answer, answer["LastModified"])
    except MissingObjectError:
        return None


def list_ages(bucket: Bucket, prefix: str) -> Iterator[list[tuple[str, float]]]:
    """Yield pages of keys below a prefix, in lexical order, with the seconds since each object was written."""
    with bucket.translate_errors(prefix):
        for page in bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name, Prefix=prefix):
            yield [(entry["Key"], _age(page, entry["LastModified"])) for entry in page.get("Contents", [])]


def _age(answer: Any, modified: datetime) -> float:
    date = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return (date - modified).total_seconds()
