"""The address of a client, also behind proxies that the operator trusts."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from starlette.requests import Request

from latentfarm.errors import InputError

#: an IPv6 client has a whole network of this size
_IPV6_CLIENT_BITS = 64


class ClientAddresses:
    """Finds the address of the client of a request.

    Args:
        trusted_proxies: addresses or networks of proxies, separated by commas. The header ``X-Forwarded-For`` counts
            only in a request that one of them sent: anybody can write it.

    Raises:
        InputError: one is no address.
    """

    def __init__(self, trusted_proxies: str) -> None:
        self._trusted: list[IPv4Network | IPv6Network] = []
        for text in filter(None, map(str.strip, trusted_proxies.split(","))):
            try:
                self._trusted.append(ip_network(text))
            except ValueError:
                raise InputError(
                    f"LATENTFARM_SERVER_TRUSTED_PROXIES has {text!r}; write addresses or networks such as 10.0.0.0/8, "
                    "separated by commas"
                ) from None

    def of(self, request: Request) -> str:
        """Return the address that is not a trusted proxy's, nearest to the server."""
        found = request.client.host if request.client else ""
        if not self._trusts(found):
            return found
        passed_on = ",".join(request.headers.getlist("x-forwarded-for")).split(",")
        for text in reversed(passed_on):
            if not _is_address(text.strip()):
                break
            found = text.strip()
            if not self._trusts(found):
                break
        return found

    def _trusts(self, host: str) -> bool:
        return bool(self._trusted) and _is_address(host) and any(ip_address(host) in each for each in self._trusted)


def network_of(address: str) -> str:
    """Return what one client has: an IPv4 address, or the network of an IPv6 address."""
    if ":" not in address or not _is_address(address):
        return address
    return str(ip_network(f"{address.partition('%')[0]}/{_IPV6_CLIENT_BITS}", strict=False))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
