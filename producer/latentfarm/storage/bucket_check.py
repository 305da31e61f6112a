"""Check that a bucket supports the requests of a farm, and name the cure if it does not."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from contextlib import suppress

from latentfarm.errors import UnavailableError
from latentfarm.storage.bucket import Bucket, error_code

#: the permission that each step needs
_PERMISSIONS = {"put": "s3:PutObject", "head": "s3:GetObject", "get": "s3:GetObject", "delete": "s3:DeleteObject"}
#: the cure by S3 error code or by botocore exception
_CURES = {
    "NoSuchBucket": "there is no such bucket; create it, or correct LATENTFARM_BUCKET",
    "RequestTimeTooSkewed": "this machine's clock and the store's are too far apart; set this machine's by NTP",
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "NoCredentialsError"),
        "the credentials are missing, invalid or expired; correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    **dict.fromkeys(
        ("AuthorizationHeaderMalformed", "PermanentRedirect", "301", "IllegalLocationConstraintException"),
        "the bucket is in another region; set AWS_DEFAULT_REGION",
    ),
    **dict.fromkeys(
        ("BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "InvalidDigest", "NotImplemented"),
        "the store does not accept a sha256 checksum with the request; use a store, or a version of it, that does",
    ),
    **dict.fromkeys(
        ("EndpointConnectionError", "ConnectTimeoutError", "SSLError", "ConnectionClosedError", "ReadTimeoutError"),
        "the store cannot be reached; correct AWS_ENDPOINT_URL or the network",
    ),
    **dict.fromkeys(
        ("InvalidAnswerError", "ResponseParserError", "FlexibleChecksumError", "IncompleteReadError"),
        "correct AWS_ENDPOINT_URL, or remove the proxy before the store that changes its answers",
    ),
}


def check_bucket(bucket: Bucket) -> None:
    """Put, head, get and delete an object of 64 random bytes under ``probe/``, outside of all batches.

    Raises:
        UnavailableError: one request fails; the text names it, the reason and the cure.
    """
    key, body = f"probe/{socket.gethostname()}-{secrets.token_hex(8)}", secrets.token_bytes(64)
    steps: dict[str, Callable[[], object]] = {
        "put": lambda: bucket.put(key, body),
        "head": lambda: bucket.exists(key) or "the object is missing",
        "get": lambda: bucket.get(key) == body or "the store returned other bytes",
        "delete": lambda: bucket.delete([key]),
    }
    try:
        for verb, step in steps.items():
            _run(verb, step, f"{verb} of {key}")
    except UnavailableError:
        with suppress(UnavailableError):
            bucket.delete([key])
        raise


def _run(verb: str, step: Callable[[], object], request: str) -> None:
    try:
        problem = step()
    except UnavailableError as error:
        raise UnavailableError(f"{request} failed: {error}; {_cure(verb, error)}", cause=error.cause) from error
    if isinstance(problem, str):
        raise UnavailableError(f"{request} worked, but {problem}; use another store", cause="store")


def _cure(verb: str, error: UnavailableError) -> str:
    if (code := error_code(error)) in _CURES:
        return _CURES[code]
    return f"allow {_PERMISSIONS[verb]} on probe/* and batches/* to these credentials (docs/security has policies)"
