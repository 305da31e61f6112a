"""Check URLs that a user chose, and the IP addresses of their hosts."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import SplitResult, urlsplit

from latentfarm.errors import InputError

MAX_URL_CHARACTERS = 2048

_HOST = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\.?\Z"
)
_GLOBAL_UNICAST, _NAT64 = IPv6Network("2000::/3"), IPv6Network("64:ff9b::/96")


def parse_url(url: str) -> SplitResult:
    """Return the parts of an https URL. No name is resolved.

    Raises:
        InputError: the URL is not https, too long, or has a password. The text is problem and cure.
    """
    if len(url) > MAX_URL_CHARACTERS:
        raise InputError(f"has {len(url)} characters; at most {MAX_URL_CHARACTERS} are allowed")
    if not re.fullmatch("[!-~]+", url):
        raise InputError("is not printable ASCII; percent-encode it, and write a host name as xn--...")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InputError(f"is not valid ({error}); write https://HOST/PATH") from None
    if parts.username is not None or parts.password is not None:
        raise InputError("has a user or password before its host; remove both")
    if parts.scheme != "https":
        raise InputError("is refused, as only https is allowed; write https://HOST/PATH")
    if port == 0 or not (_is_ipv6(host) if "[" in parts.netloc else _HOST.match(host)):
        raise InputError("has no valid host; write https://HOST/PATH")
    return parts


def is_secret(url: str) -> bool:
    """Return whether a URL may have a password, so that messages must not repeat it."""
    return "@" in url


def _is_ipv6(host: str) -> bool:
    try:
        IPv6Address(host)
    except ValueError:
        return False
    return "%" not in host


def is_public(address: str) -> bool:
    """Return whether an IP address is globally routable unicast.

    An IPv6 address that embeds an IPv4 address is as public as that one.
    """
    found = ip_address(address)
    if isinstance(found, IPv6Address):
        embedded = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            embedded = IPv4Address(int(found) & 0xFFFF_FFFF)
        if embedded is not None:
            return is_public(str(embedded))
        if found not in _GLOBAL_UNICAST:
            return False
    return found.is_global and not found.is_multicast


def require_public(host: str, addresses: list[str], *, cure: str) -> None:
    """Require that every address of a host is public.

    Raises:
        InputError: one is not. Checking all of them matters: an attacker's name server chooses their order.
    """
    for address in addresses:
        if not is_public(address):
            found = host if host == address else f"{host} is {address}, which"
            raise InputError(f"{found} is not a public address; {cure}")
