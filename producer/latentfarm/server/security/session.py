"""Sessions of browsers: a cookie instead of a key, and a token against posts of other sites.

No server stores a session. The cookie has the key's name and the time of its end, and a signature under two secrets:
one that all servers share in Redis, and the digest of the key. So a session ends when its key does, and neither a
reader of Redis nor a reader of the keys file can make one.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable, Iterable
from hashlib import sha256

from latentfarm.errors import UnavailableError
from latentfarm.ledger.ledger import Ledger
from latentfarm.ledger.redis_errors import translate_errors
from latentfarm.server.security.access import ANONYMOUS
from latentfarm.server.security.keys import ApiKey

#: seconds that a session lasts
SESSION_S = 12 * 3600
#: a browser takes the second only over https, and only from this very host
_COOKIE, _HTTPS_COOKIE = "latentfarm", "__Host-latentfarm"
#: the key of the secret in Redis
_REDIS_KEY = "{lf}:session_secret"
_SECRET_BYTES = 32
#: seconds after which the secret is read again: Redis may have been emptied
_REREAD_S = 60.0
_NO_KEY = ApiKey(ANONYMOUS, secrets.token_bytes(32))


class SessionSecret:
    """The secret that all servers of a farm share. ``read`` blocks."""

    def __init__(self, ledger: Ledger, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._clock = clock
        self._value = b""
        self._read_at = 0.0

    @property
    def fresh(self) -> bytes:
        """The secret if it was read within a minute, else empty."""
        return self._value if self._clock() - self._read_at < _REREAD_S else b""

    def read(self) -> bytes:
        """Return the secret; the first server makes it. While Redis is unavailable, the one from before is used.

        Raises:
            UnavailableError: Redis is unavailable, and nothing was read before.
        """
        try:
            with translate_errors(self._ledger.where):
                self._ledger.redis.set(_REDIS_KEY, secrets.token_bytes(_SECRET_BYTES), nx=True)
                value = self._ledger.redis.get(_REDIS_KEY)
        except UnavailableError:
            if not self._value:
                raise
        else:
            # deleted between the two commands: the next request makes a new one
            self._value = value if isinstance(value, bytes) else b""
            self._read_at = self._clock()
        return self._value


def new_session(secret: bytes, key: ApiKey, *, now_s: float) -> str:
    """Return the value of the cookie of a session that begins now."""
    payload = f"{key.name}.{int(now_s) + SESSION_S}.{secrets.token_urlsafe(12)}"
    return f"{payload}.{_sign(secret, key, payload).decode()}"


def find_session(secret: bytes, keys: Iterable[ApiKey], cookie: str, *, now_s: float) -> ApiKey | None:
    """Return the key of a session that is valid, None for any other cookie."""
    payload, _, signature = cookie.rpartition(".")
    parts = payload.split(".")
    if not secret or len(parts) != 3 or not (parts[1].isascii() and parts[1].isdigit() and len(parts[1]) < 20):
        return None
    # an unknown name takes as long as a known one
    key = next((key for key in keys if key.name == parts[0]), _NO_KEY)
    valid = hmac.compare_digest(_sign(secret, key, payload), signature.encode("utf-8", "replace"))
    return key if valid and key is not _NO_KEY and int(parts[1]) > now_s else None


def csrf_token(secret: bytes, cookie: str) -> str:
    """Return the token of a session, which a page sends in ``X-CSRF-Token`` with each change."""
    return hmac.new(secret, b"csrf." + cookie.encode("utf-8", "replace"), sha256).hexdigest()


def expiry_of(cookie: str) -> int:
    """Return the time at which a valid session ends, in seconds since 1970."""
    return int(cookie.split(".")[1])


def cookie_name(*, https: bool) -> str:
    """Return the name of the cookie."""
    return _HTTPS_COOKIE if https else _COOKIE


def cookie_of(cookies: dict[str, str]) -> str:
    """Return the session's cookie that a browser has sent, empty if there is none."""
    return cookies.get(_HTTPS_COOKIE) or cookies.get(_COOKIE, "")


def _sign(secret: bytes, key: ApiKey, payload: str) -> bytes:
    text = b"session." + payload.encode("utf-8", "replace")
    return hmac.new(secret + key.digest, text, sha256).hexdigest().encode()
