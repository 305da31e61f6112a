"""Listen addresses of metrics servers: ``HOST:PORT``, and the following ports for more workers on a host."""

from __future__ import annotations

from latentfarm.errors import InputError

#: the setting's variable
VARIABLE = "LATENTFARM_METRICS_ADDRESS"


def parse_address(text: str, *, name: str = VARIABLE) -> tuple[str, int]:
    """Parse ``HOST:PORT``, the value of ``name``. An empty host is every interface, port 0 any free port.

    Raises:
        InputError: the text has another form.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    valid = colon and not {"[", "]"} & set(host)
    if not (valid and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise InputError(f"{name} is {text!r}; write HOST:PORT, such as 127.0.0.1:9464")
    return host, int(port)


def nth_address(text: str, place: int) -> str:
    """Return the address of worker ``place``, counted from 0: its port is ``place`` above that of ``text``.

    Raises:
        InputError: ``text`` is not an address, or the port is above 65535.
    """
    if not text:
        return ""
    host, port = parse_address(text)
    if port + place > 65535:
        raise InputError(f"{VARIABLE} is {text!r}; port {port + place} of worker {place + 1} is above 65535")
    bracketed = f"[{host}]" if ":" in host else host
    return f"{bracketed}:{port + place if port else 0}"
