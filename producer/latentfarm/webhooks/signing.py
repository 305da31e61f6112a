"""Sign webhooks by Standard Webhooks (https://www.standardwebhooks.com).

The ``standardwebhooks`` package, which is for receivers, verifies these signatures in the tests. It would replace only
the two lines of ``sign``: it accepts secrets that are too short or not base64, so ``decode_secret`` would stay.
"""

from __future__ import annotations

import base64
import binascii
import hmac

from latentfarm.errors import InputError

_PREFIX = "whsec_"
#: the lengths that Standard Webhooks allows
_SECRET_BYTES = range(24, 65)


def sign(secret: bytes, webhook_id: str, timestamp_s: int, body: bytes) -> str:
    """Return the signature of a message, ``v1,<base64>``: HMAC-SHA256 of ``id.timestamp.body``."""
    message = b".".join((webhook_id.encode(), str(timestamp_s).encode(), body))
    return "v1," + base64.b64encode(hmac.digest(secret, message, "sha256")).decode()


def decode_secret(secret: str) -> bytes:
    """Return the key of a ``whsec_`` secret.

    Raises:
        InputError: the secret is missing or malformed; the text does not repeat it.
    """
    cure = "set one on the workers, for instance whsec_$(openssl rand -base64 32)"
    if not secret:
        raise InputError(f"LATENTFARM_WEBHOOK_SECRET is not set; {cure}")
    if not secret.startswith(_PREFIX):
        raise InputError(f"LATENTFARM_WEBHOOK_SECRET does not begin with {_PREFIX}; {cure}")
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"LATENTFARM_WEBHOOK_SECRET is not base64 after {_PREFIX}; {cure}") from None
    if len(key) not in _SECRET_BYTES:
        raise InputError(f"LATENTFARM_WEBHOOK_SECRET has {len(key)} bytes, not 24 to 64; {cure}")
    return key
