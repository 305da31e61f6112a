"""Checks of an S3 server: each returns a few words for the table, or raises AssertionError with what is wrong."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import urllib3
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import SecretStr

from latentfarm.errors import UnavailableError
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket, MissingObjectError, error_code
from latentfarm.storage.bucket_check import check_bucket

BODY = bytes(range(256)) * 16
ODD_KEYS = ["a b/c d", "ü/日本語.png", "plus+and&per%20cent", "(brackets)/it's~-_.!*"]


def code_of(call: Callable[[], Any]) -> str:
    """Return the error code of a call; an empty text if it works."""
    try:
        call()
    except ClientError as error:
        return str(error.response.get("Error", {}).get("Code", ""))
    except BotoCoreError as error:
        return type(error).__name__
    return ""


def put_get_head_delete(bucket: Bucket) -> str:
    bucket.put("k", BODY)
    assert bucket.get("k") == BODY
    assert bucket.exists("k")
    bucket.put("k", b"other")
    assert bucket.get("k") == b"other", "a second put is not seen"
    bucket.put("empty", b"")
    assert bucket.get("empty") == b"", "an empty object is not"
    bucket.delete(["k", "empty"])
    assert not bucket.exists("k"), "a deleted object is seen"
    return "yes"


def listing(bucket: Bucket) -> str:
    """1,005 keys: all on two pages, in order, right after their puts."""
    wanted = sorted(f"list/{n:04d}" for n in range(1_005))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: bucket.put(key, b"x"), wanted))
    found = list(bucket.keys("list/"))
    assert len(found) == len(wanted), f"{len(found):,} of {len(wanted):,} keys"
    assert found == wanted, "out of order"
    assert list(bucket.folders("")) == ["list/"], "no common prefixes"
    assert sum(bucket.delete_all("list/")) == len(wanted)
    assert list(bucket.keys("list/")) == [], "deleted keys are listed"
    return "yes"


def multi_delete(bucket: Bucket) -> str:
    bucket.put("a", b"x")
    objects: Any = {"Objects": [{"Key": "a"}, {"Key": "missing"}], "Quiet": True}
    code = code_of(lambda: bucket.client.delete_objects(Bucket=bucket.name, Delete=objects))
    bucket.delete(["a", "missing"])
    assert not bucket.exists("a"), "a deleted object is seen"
    return f"no ({code}): single deletions" if code else "yes"


def odd_keys(bucket: Bucket) -> str:
    for key in ODD_KEYS:
        bucket.put(key, key.encode())
        assert bucket.get(key) == key.encode(), f"{key} is another object"
    assert sorted(bucket.keys("")) == sorted(ODD_KEYS), "keys are listed otherwise"
    bucket.delete(ODD_KEYS)
    assert list(bucket.keys("")) == [], "they are not deleted"
    return "yes"


def if_none_match(bucket: Bucket) -> str:
    def put(body: bytes) -> str:
        return code_of(lambda: bucket.client.put_object(Bucket=bucket.name, Key="c", Body=body, IfNoneMatch="*"))

    first, second = put(b"1"), put(b"2")
    if first:
        return f"refused ({first})"
    return f"yes ({second})" if second and bucket.get("c") == b"1" else "ignored"


def if_match(bucket: Bucket) -> str:
    bucket.put("m", b"1")
    other = f'"{hashlib.md5(b"other", usedforsecurity=False).hexdigest()}"'
    code = code_of(lambda: bucket.client.put_object(Bucket=bucket.name, Key="m", Body=b"2", IfMatch=other))
    return f"yes ({code})" if code and bucket.get("m") == b"1" else f"refused ({code})" if code else "ignored"


def wrong_sha256(bucket: Bucket) -> str:
    """Every put of the farm has the header; here with the digest of another body."""
    digest = b64encode(hashlib.sha256(b"other").digest()).decode()
    code = code_of(lambda: bucket.client.put_object(Bucket=bucket.name, Key="s", Body=b"body", ChecksumSHA256=digest))
    return f"refused ({code})" if code else "not verified"


def returned_sha256(bucket: Bucket) -> str:
    bucket.put("r", BODY)
    answer = bucket.client.get_object(Bucket=bucket.name, Key="r", ChecksumMode="ENABLED")
    assert answer["Body"].read() == BODY
    return "yes" if answer.get("ChecksumSHA256") else "no"


def presigned_get(bucket: Bucket) -> str:
    bucket.put("a b/ü.png", BODY)
    answer = urllib3.request("GET", bucket.presign("a b/ü.png", expires_s=60), retries=False)
    assert (answer.status, answer.data) == (200, BODY), f"status {answer.status}"
    return "yes"


def missing_key(bucket: Bucket) -> str:
    code = code_of(lambda: bucket.client.get_object(Bucket=bucket.name, Key="missing"))
    try:
        bucket.get("missing")
    except MissingObjectError:
        assert not bucket.exists("missing")
        return code
    except UnavailableError as error:
        raise AssertionError(f"{error_code(error)}") from error
    raise AssertionError("a missing object is read")


def missing_bucket(bucket: Bucket) -> str:
    return code_of(lambda: bucket.client.get_object(Bucket="no-such-bucket", Key="k")) or "none"


def wrong_secret(settings: Settings) -> str:
    bucket = Bucket.connect(settings.model_copy(update={"s3_secret_key": SecretStr("wrong")}))
    return code_of(lambda: bucket.client.list_objects_v2(Bucket=bucket.name)) or "not checked"


def large_object(bucket: Bucket) -> str:
    body = BODY * (64 * 1024 * 1024 // len(BODY))
    bucket.put("large", body)
    assert bucket.get("large") == body
    return "yes"


def concurrency(bucket: Bucket) -> str:
    """64 objects by 16 threads."""

    def round_trip(n: int) -> bool:
        bucket.put(f"c/{n}", BODY + bytes([n]))
        return bucket.get(f"c/{n}") == BODY + bytes([n])

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(round_trip, range(64)))
    assert len(list(bucket.keys("c/"))) == 64, "not all are listed"
    return "yes"


def own_check(bucket: Bucket) -> str:
    check_bucket(bucket)
    return "passes"


#: column of the table, and whether the farm needs it
CHECKS: dict[str, tuple[Callable[[Bucket], str], bool]] = {
    "put, get, head, delete": (put_get_head_delete, True),
    "1,005 keys listed after put": (listing, True),
    "DeleteObjects": (multi_delete, True),
    "spaces and Unicode in keys": (odd_keys, False),
    "64 MB object": (large_object, True),
    "16 threads": (concurrency, True),
    "presigned GET": (presigned_get, True),
    "GET of a missing key": (missing_key, True),
    "GET in a missing bucket": (missing_bucket, False),
    "put `If-None-Match: *`": (if_none_match, False),
    "put `If-Match`": (if_match, False),
    "wrong sha256 in a put": (wrong_sha256, False),
    "sha256 returned by a get": (returned_sha256, False),
    "`doctor`'s check": (own_check, True),
}
