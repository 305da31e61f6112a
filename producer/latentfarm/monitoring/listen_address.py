"""Where metrics are served: ``HOST:PORT``, and the ports beside it for several workers on a host."""

from __future__ import annotations

from latentfarm.errors import InputError

#: the setting's variable
VARIABLE = "LATENTFARM_METRICS_ADDRESS"


def parse_address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``; no host means every interface, port 0 any port that is free.

    Raises:
        InputError: it is not of that form.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    whole = colon and not {"[", "]"} & set(host)
    if not (whole and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise InputError(f"{VARIABLE} is {text!r}; write HOST:PORT, such as 127.0.0.1:9464")
    return host, int(port)


def nth_address(text: str, place: int) -> str:
    """Return the address of the worker that comes ``place`` after the first: the port that comes so much later.

    Raises:
        InputError: ``text`` is no address, or there is no such port.
    """
    if not text:
        return ""
    host, port = parse_address(text)
    if port + place > 65535:
        raise InputError(f"{VARIABLE} is {text!r}; port {port + place} of worker {place + 1} is beyond 65535")
    bracketed = f"[{host}]" if ":" in host else host
    return f"{bracketed}:{port + place if port else 0}"
