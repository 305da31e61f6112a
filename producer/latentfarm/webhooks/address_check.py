"""Check the URLs of webhooks."""

from __future__ import annotations

from urllib.parse import SplitResult

from latentfarm.errors import InputError
from latentfarm.https import url_check


def check_url(url: str) -> str:
    """Return a webhook's URL. No name is resolved.

    Raises:
        InputError: the URL is not https, too long, or has a password.
    """
    parse_url(url)
    return url


def parse_url(url: str) -> SplitResult:
    """Return the parts of a webhook's URL.

    Raises:
        InputError: as ``check_url``.
    """
    try:
        return url_check.parse_url(url)
    except InputError as error:
        hidden = url_check.is_secret(url) or len(url) > url_check.MAX_URL_CHARACTERS
        raise InputError(f"the webhook's URL {'' if hidden else f'{url!r} '}{error}") from None
