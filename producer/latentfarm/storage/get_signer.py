"""Signs GETs of S3 objects: AWS Signature Version 4 for requests without a body, in headers or in the query.

botocore's signer gives the same headers in four times the CPU, because it derives the key for each request and
copies the headers into a message of the email package. The source is "Create a signed AWS API request" in AWS's
documentation of IAM.
"""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from botocore.credentials import Credentials

_ALGORITHM = "AWS4-HMAC-SHA256"
_EMPTY_SHA256 = sha256(b"").hexdigest()
_DEFAULT_PORTS = {"http": 80, "https": 443}


class GetSigner:
    """Signs GETs to one host. Thread-safe.

    Args:
        base: URL of the host, such as ``http://127.0.0.1:9000/bucket``.
        region: the region that is signed for.
        credentials: botocore's; they may be renewed between two requests.
    """

    def __init__(self, base: str, region: str, credentials: Credentials) -> None:
        address = urlsplit(base)
        name = f"[{address.hostname}]" if ":" in (address.hostname or "") else address.hostname or ""
        plain = address.port is None or address.port == _DEFAULT_PORTS.get(address.scheme)
        self._host = name if plain else f"{name}:{address.port}"
        self._region, self._credentials = region, credentials

    def headers(self, path: str, *, now: datetime | None = None) -> dict[str, str]:
        """Return the headers that sign a GET of a path, which is percent-encoded as it is sent.

        Args:
            path: path of the URL, without a query.
            now: time of the request [default: the current time].
        """
        keys = self._credentials.get_frozen_credentials()
        time = _text(now)
        signed = {"host": self._host, "x-amz-content-sha256": _EMPTY_SHA256, "x-amz-date": time}
        if keys.token:
            signed["x-amz-security-token"] = keys.token
        lines, names = "".join(f"{name}:{value}\n" for name, value in signed.items()), ";".join(signed)
        canonical = f"GET\n{path}\n\n{lines}\n{names}\n{_EMPTY_SHA256}"
        signature = self._sign(canonical, time, keys.secret_key)
        scope = self._scope(time)
        signed["Authorization"] = (
            f"{_ALGORITHM} Credential={keys.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        return signed

    def query(self, path: str, *, expires_s: int, now: datetime | None = None) -> str:
        """Return the query that signs a GET of a path, which is percent-encoded, for ``expires_s`` seconds."""
        keys = self._credentials.get_frozen_credentials()
        time = _text(now)
        fields = {
            "X-Amz-Algorithm": _ALGORITHM,
            "X-Amz-Credential": f"{keys.access_key}/{self._scope(time)}",
            "X-Amz-Date": time,
            "X-Amz-Expires": str(expires_s),
        }
        if keys.token:
            fields["X-Amz-Security-Token"] = keys.token
        fields["X-Amz-SignedHeaders"] = "host"
        query = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in fields.items())
        canonical = f"GET\n{path}\n{query}\nhost:{self._host}\n\nhost\nUNSIGNED-PAYLOAD"
        return f"{query}&X-Amz-Signature={self._sign(canonical, time, keys.secret_key)}"

    def _scope(self, time: str) -> str:
        return f"{time[:8]}/{self._region}/s3/aws4_request"

    def _sign(self, canonical: str, time: str, secret: str) -> str:
        text = f"{_ALGORITHM}\n{time}\n{self._scope(time)}\n{sha256(canonical.encode()).hexdigest()}"
        return hmac.digest(_signing_key(secret, time[:8], self._region), text.encode(), "sha256").hex()


def _text(now: datetime | None) -> str:
    return (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")


# two: at midnight, and after a renewal, threads may hold the old one and the new one
@lru_cache(maxsize=2)
def _signing_key(secret: str, date: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (date, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
