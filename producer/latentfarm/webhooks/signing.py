"""Sign webhooks as Standard Webhooks specifies."""

from __future__ import annotations

import base64
import binascii
import hmac

from latentfarm.errors import InputError

_SECRET_PREFIX = "whsec_"  # noqa: S105 - the mark of a secret, not one


_SECRET_BYTES = range(24, 65)


def sign(secret: bytes, webhook_id: str, timestamp_s: int, body: bytes) -> str:
    """Return the signature ``v1,<base64>`` of a message: HMAC-SHA256 of ``id.timestamp.body``."""
    message = b".".join((webhook_id.encode(), str(timestamp_s).encode(), body))
    return "v1," + base64.b64encode(hmac.digest(secret, message, "sha256")).decode()


def decode_secret(secret: str) -> bytes:
    """Return the key bytes of a `whsec_` secret; raise InputError if it is malformed."""
    cure = "set one on the workers, for instance whsec_$(openssl rand -base64 32)"
    if not secret:
        raise InputError(f"LATENTFARM_WEBHOOK_SECRET is not set; {cure}")
    if not secret.startswith(_SECRET_PREFIX):
        raise InputError(f"LATENTFARM_WEBHOOK_SECRET does not begin with {_SECRET_PREFIX}; {cure}")
    try:
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"LATENTFARM_WEBHOOK_SECRET is not base64 after {_SECRET_PREFIX}; {cure}") from None
    if len(key) not in _SECRET_BYTES:
        raise InputError(f"LATENTFARM_WEBHOOK_SECRET holds {len(key)} bytes, not 24 to 64; {cure}")
    return key
