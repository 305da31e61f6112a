"""Where a request comes from: the name it was sent to, and the page that sent it.

A browser sends requests on behalf of any page. Two attacks follow from it. A page makes its own name lead to this
server (DNS rebinding): then the Host header has that name. A page sends a request that needs no answer to be read: then
``Sec-Fetch-Site`` or ``Origin`` names another site.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from latentfarm.monitoring.listen_address import parse_address
from latentfarm.server.http.request_error import RequestError

#: methods that change nothing
_SAFE = frozenset({"GET", "HEAD"})
#: a request that a page of this server sent, or a user who typed an address
_OWN = frozenset({"same-origin", "none"})
#: headers of a request that a proxy has passed on
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches ``host``. Apart from ``localhost``, a name may lead anywhere."""
    if host == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


class HostCheck:
    """Which values of the Host header are this server's.

    Args:
        address: ``HOST:PORT`` that is served.
        allowed_hosts: further names, separated by commas.
    """

    def __init__(self, address: str, allowed_hosts: str) -> None:
        host, _ = parse_address(address, name="the address")
        bound = _address(host)
        #: on every interface, any address of the machine is the server's: an address is no name that could be rebound
        self._any_address = not host or (bound is not None and bound.is_unspecified)
        names = (name.strip().lower().rstrip(".") for name in f"{host},{allowed_hosts}".split(","))
        self._names = frozenset(name for name in names if name)

    def check(self, headers: Headers) -> None:
        """Refuse a request that was sent to another name. The port may differ, as in a tunnel.

        Raises:
            RequestError: 421.
        """
        name = host_of(headers.get("host", ""))
        if name in self._names or is_loopback(name) or (self._any_address and _address(name) is not None):
            return
        raise RequestError(
            421,
            "unknown_host",
            f"this server has not the name {name[:100]!r}; use its address, or add the name to the server's "
            "LATENTFARM_SERVER_ALLOWED_HOSTS",
        )


def check_origin(method: str, headers: Headers) -> None:
    """Refuse a request that a browser sent for a page of another origin. Clients that are no browser pass.

    Only what a browser sends by itself needs this check: cookies, a stored password, or nothing on a server without
    keys. Another page may open this server's pages in a tab, but not read or embed them.

    Raises:
        RequestError: 403.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        opened = method in _SAFE and headers.get("sec-fetch-mode") == "navigate"
        opened = opened and headers.get("sec-fetch-dest") == "document"
        foreign = site not in _OWN and not opened
    else:
        # a browser that is old, or that does not trust plain HTTP, sends no Sec-Fetch-Site
        origin = headers.get("origin")
        foreign = origin is not None and _netloc(origin) != headers.get("host", "").lower()
    if foreign:
        raise RequestError(
            403, "foreign_origin", "a page of another origin sent the request; send it from a client, with a key"
        )


def check_not_forwarded(headers: Headers) -> None:
    """Refuse what a proxy has passed on to a server without keys: it would be open to all clients of the proxy.

    Raises:
        RequestError: 403.
    """
    if any(name in headers for name in _FORWARDED):
        raise RequestError(
            403,
            "keys_required",
            "a proxy passed the request on to a server without keys; set LATENTFARM_API_KEYS_FILE for the server",
        )


def host_of(text: str) -> str:
    """Return the name or address in a Host header, in lower case and without its port."""
    text = text.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0].rstrip(".") if ":" in text else text.rstrip(".")


def _netloc(origin: str) -> str:
    """Return the Host header that a browser sends to an origin; empty for the opaque origin ``null``."""
    try:
        return urlsplit(origin.lower()).netloc
    except ValueError:
        return ""


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
