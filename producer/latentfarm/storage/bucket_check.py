"""The probe of a bucket: whether what a farm does with objects works there, and what to do if not."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from latentfarm.errors import UnavailableError

if TYPE_CHECKING:
    from latentfarm.storage.bucket import Bucket

#: what each step of a probe needs to be allowed
_RIGHTS = {"put": "s3:PutObject", "head": "s3:GetObject", "get": "s3:GetObject", "delete": "s3:DeleteObject"}
#: what an S3 error code of a probe means to whoever set the farm up
_CURES = {
    "NoSuchBucket": "there is no such bucket; create it, or mend LATENTFARM_BUCKET",
    "RequestTimeTooSkewed": "this machine's clock and the store's are too far apart; set this machine's by NTP",
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "NoCredentialsError"),
        "the credentials are missing, wrong or expired; mend AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    **dict.fromkeys(
        ("AuthorizationHeaderMalformed", "PermanentRedirect", "301", "IllegalLocationConstraintException"),
        "the bucket lies in another region; set AWS_DEFAULT_REGION",
    ),
    **dict.fromkeys(
        ("BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "InvalidDigest", "NotImplemented"),
        "the store does not accept a sha256 checksum with the request; use a store, or a version of it, that does",
    ),
    **dict.fromkeys(
        ("EndpointConnectionError", "ConnectTimeoutError", "SSLError", "ConnectionClosedError", "ReadTimeoutError"),
        "nothing answers there as it should; mend AWS_ENDPOINT_URL or the network",
    ),
}


def check_bucket(bucket: Bucket) -> None:
    """Do what ``Bucket.probe`` says."""
    key, body = f"probe/{socket.gethostname()}-{secrets.token_hex(8)}", secrets.token_bytes(64)
    steps: dict[str, Callable[[], object]] = {
        "put": lambda: bucket.put(key, body),
        "head": lambda: bucket.exists(key) or "it is not there although it was put",
        "get": lambda: bucket.get(key) == body or "what comes back is not what was put",
        "delete": lambda: bucket.delete([key]),
    }
    try:
        for verb, step in steps.items():
            _take(verb, step, f"{verb} of {key}")
    except UnavailableError:
        with suppress(UnavailableError):
            bucket.delete([key])
        raise


def _take(verb: str, step: Callable[[], object], what: str) -> None:
    try:
        found = step()
    except UnavailableError as error:
        raise UnavailableError(f"{what} failed: {error}; {_cure(verb, error)}") from error
    if isinstance(found, str):
        raise UnavailableError(f"{what} worked, but {found}; use another store")


def _cure(verb: str, error: UnavailableError) -> str:
    """Say what to do about a step of a probe that failed."""
    cause = error.__cause__
    code = cause.response.get("Error", {}).get("Code", "") if isinstance(cause, ClientError) else type(cause).__name__
    if code in _CURES:
        return _CURES[code]
    return f"allow {_RIGHTS[verb]} on probe/* and batches/* to these credentials (docs/security has policies)"
