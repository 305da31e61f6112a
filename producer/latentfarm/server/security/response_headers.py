"""Headers of every answer, by which browsers protect the server's pages."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from urllib.parse import urlsplit

from latentfarm.errors import LatentfarmError
from latentfarm.storage.bucket import Bucket

log = logging.getLogger(__name__)


def origin_of(bucket: Bucket) -> str:
    """Return scheme, host and port of the bucket's presigned URLs; empty, with a warning, if none can be made."""
    try:
        url = urlsplit(bucket.presign("origin", expires_s=60))
    except LatentfarmError as error:
        log.warning("pages cannot show images of the bucket until the server is started again: %s", error)
        return ""
    return f"{url.scheme}://{url.netloc}"


def response_headers(bucket_origin: str = "") -> Mapping[str, str]:
    """Return headers for answers that do not set them.

    There is none of CORS: pages of other origins read nothing.

    Args:
        bucket_origin: scheme, host and port of presigned URLs: pages show and load images from there.
    """
    policy = {
        "default-src": "'self'",
        "img-src": f"'self' blob: data: {bucket_origin}".rstrip(),
        "connect-src": f"'self' {bucket_origin}".rstrip(),
        "object-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        # with no-referrer, a form of the server's own page would have the origin null
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
