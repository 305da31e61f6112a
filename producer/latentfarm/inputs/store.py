"""Store input images in the bucket, each once, and read them."""

from __future__ import annotations

import hashlib

from latentfarm.errors import InputError
from latentfarm.limits import MAX_INPUT_BYTES
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import input_key
from latentfarm.storage.object_age import age_of

#: what is before the hex digits of a digest
DIGEST_PREFIX = "sha256:"
#: seconds for which an input is kept that no batch names
GRACE_S = 7 * 24 * 3600
#: an input that is older is written again when it is used, so that it is not collected at this moment
_REFRESH_S = GRACE_S / 2
_TYPES = {b"\x89": "image/png", b"\xff": "image/jpeg", b"R": "image/webp"}


def digest_of(data: bytes) -> str:
    """Return the digest of an input image, ``sha256:`` and 64 hex digits."""
    return DIGEST_PREFIX + hashlib.sha256(data).hexdigest()


def is_stored(bucket: Bucket, digest: str) -> bool:
    """Return whether the bucket has an input image, and keeps it for days even if no batch names it.

    Raises:
        UnavailableError: the store does not answer.
    """
    age_s = age_of(bucket, input_key(digest))
    return age_s is not None and age_s <= _REFRESH_S


def store_input(bucket: Bucket, digest: str, data: bytes) -> None:
    """Store an input image unless the bucket has it.

    Raises:
        UnavailableError: the store does not answer.
    """
    if not is_stored(bucket, digest):
        content_type = _TYPES.get(data[:1], "application/octet-stream")
        bucket.put(input_key(digest), data, content_type=content_type)


def read_input(bucket: Bucket, digest: str) -> bytes:
    """Return a stored input image.

    Raises:
        MissingObjectError: it is not in the bucket.
        InputError: its bytes are others than were stored. The text is problem and cure.
        UnavailableError: the store does not answer.
    """
    data = bucket.get(input_key(digest), max_bytes=MAX_INPUT_BYTES)
    if digest_of(data) != digest:
        raise InputError("is damaged in the bucket; store the image again")
    return data
