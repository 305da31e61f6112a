"""The address of the farm's Redis: a URL that is read once, for the ledger and for the doorbells alike.

::

    redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]                      one server; rediss:// with TLS
    unix://[USER:PASSWORD@]/PATH[?db=DATABASE]                          a unix socket
    sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT]/SERVICE[/DATABASE]  the primary that Sentinels name
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import redis
from redis.connection import URL_QUERY_ARGUMENT_PARSERS, to_bool
from redis.sentinel import SentinelConnectionPool, SentinelManagedConnection, SentinelManagedSSLConnection

from latentfarm.errors import InputError
from latentfarm.sentinel import PrimaryFinder

#: the schemes of one server, and those of Sentinels; true: with TLS
_SERVERS = {"redis": False, "rediss": True, "unix": False}
_SENTINELS = {"sentinel": False, "redis+sentinel": False, "rediss+sentinel": True}
SENTINEL_PORT = 26379

_COMMON = frozenset(
    {
        "username",
        "password",
        "db",
        "client_name",
        "health_check_interval",
        "max_connections",
        "protocol",
        "retry_on_timeout",
        "socket_timeout",
    }
)
_TCP = frozenset({"socket_connect_timeout", "socket_keepalive"})
_TLS = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_ciphers",
        "ssl_keyfile",
        "ssl_min_version",
        "ssl_password",
    }
)
#: values of options that redis-py checks when it connects, if at all
_CHOICES = {
    "protocol": ("2", "3"),
    "ssl_cert_reqs": ("required", "optional", "none"),
    # TLS 1.2 and 1.3
    "ssl_min_version": ("771", "772"),
}
_AT_LEAST = {
    "db": 0,
    "health_check_interval": 0,
    "max_connections": 1,
    "port": 1,
    "socket_connect_timeout": 0.01,
    "socket_timeout": 0.01,
}
_AT_MOST = 1_000_000
_FOR_SENTINELS = frozenset({"ssl", "sentinel_ssl", "sentinel_username", "sentinel_password"})


@dataclass(frozen=True)
class RedisAddress:
    """Where Redis is, and how to connect. Nothing in its text is secret but ``options``.

    ``hosts`` has one server, or all Sentinels; none for a unix socket. ``service`` is what the Sentinels call the
    servers, of which the primary is used.
    """

    #: the URL without its user, password and options, for messages
    where: str
    hosts: tuple[tuple[str, int], ...]
    tls: bool
    db: int
    #: arguments of redis-py's connections
    options: Mapping[str, Any] = field(repr=False)
    service: str = ""
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Read a URL.

        Raises:
            InputError: it is malformed. The text does not repeat it, because it may contain a password.
        """
        try:
            return _parse(url)
        except ValueError:
            raise _malformed("in a password, each of : / ? # @ [ ] is written as % and two digits") from None

    def pool(
        self, adapt: Callable[[type[Any]], type[Any]] = lambda connection: connection, **defaults: Any
    ) -> redis.ConnectionPool:
        """Return a pool of connections to the primary, of which none is open yet.

        Args:
            adapt: makes the class of connections.
            defaults: arguments of connections that the URL does not have.
        """
        options = {**defaults, **self.options}
        connection = adapt(_connection_class(tls=self.tls, sentinel=bool(self.service), unix="path" in options))
        if not self.service:
            return redis.ConnectionPool(connection_class=connection, **options)
        finder = PrimaryFinder(self.hosts, self.sentinel_options)
        return SentinelConnectionPool(self.service, finder, connection_class=connection, **options)  # type: ignore[no-untyped-call]


def sentinels_of(pool: redis.ConnectionPool) -> PrimaryFinder | None:
    """Return what finds the primary for a pool; None if its address names one server."""
    return pool.sentinel_manager if isinstance(pool, SentinelConnectionPool) else None


def _connection_class(*, tls: bool, sentinel: bool = False, unix: bool = False) -> type[Any]:
    if sentinel:
        return SentinelManagedSSLConnection if tls else SentinelManagedConnection
    if unix:
        return redis.UnixDomainSocketConnection
    return redis.SSLConnection if tls else redis.Connection


def _malformed(reason: str = "") -> InputError:
    detail = f": {reason}" if reason else ""
    return InputError(
        f"LATENTFARM_REDIS_URL is no URL of a Redis{detail} (it is not shown: it may contain a password); write "
        "redis://HOST:PORT, rediss://HOST:PORT, unix:///PATH or sentinel://HOST:PORT,HOST:PORT/SERVICE, the password "
        "percent-encoded"
    )


def _parse(url: str) -> RedisAddress:
    scheme, separator, _ = url.partition("://")
    known = [*_SERVERS, *_SENTINELS]
    if not separator or scheme not in known:
        near = get_close_matches(scheme.strip("\"' ").lower(), known, 1) if separator else []
        nearest = f"; {near[0]}:// is the nearest" if near else ""
        raise _malformed(f"it does not begin with a known scheme{nearest}")
    parts = urlsplit(url)
    if parts.fragment or "#" in url:
        raise _malformed("it contains a #, which in a password is written %23")
    if scheme in _SENTINELS:
        return _parse_sentinels(parts)
    options = _read_options(parts, _COMMON | (_TLS if scheme == "rediss" else frozenset()), scheme)
    options = {**options, **_credentials(parts)}
    if scheme == "unix":
        return _at_socket(parts, options)
    host = str(options.pop("host", "")) or unquote(parts.hostname or "") or "localhost"
    port = options.pop("port", None) or _port(parts, 6379)
    db = options.setdefault("db", _database(parts.path))
    options |= {"host": host, "port": port}
    return RedisAddress(_without_secrets(parts), ((host, port),), _SERVERS[scheme], db, options)


def _at_socket(parts: SplitResult, options: dict[str, Any]) -> RedisAddress:
    path = unquote(parts.path)
    if parts.netloc.rpartition("@")[2] or path in {"", "/"}:
        raise _malformed("the path of a unix socket begins after three slashes, as in unix:///run/redis.sock")
    options["path"] = path
    db = options.setdefault("db", 0)
    return RedisAddress(_without_secrets(parts), (), tls=False, db=db, options=options)


def _parse_sentinels(parts: SplitResult) -> RedisAddress:
    if ";" in parts.netloc or parts.netloc.count("@") > 1:
        raise _malformed("Sentinels are separated by commas, with one user and password before the first")
    hosts = tuple(_sentinel_host(text) for text in parts.netloc.rpartition("@")[2].split(","))
    service, _, database = parts.path.removeprefix("/").partition("/")
    if not service:
        raise _malformed("it has no service; write its name after the Sentinels, as in sentinel://HOST:26379/mymaster")
    found = {**_read_options(parts, _COMMON | _TLS | _FOR_SENTINELS, parts.scheme), **_credentials(parts)}
    tls = _flag(found.pop("ssl", None), default=_SENTINELS[parts.scheme])
    sentinel_tls = _flag(found.pop("sentinel_ssl", None), default=tls)
    # the Sentinels have users of their own
    own = {name: found.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in found}
    certificates = {name: found.pop(name) for name in _TLS if name in found}
    if certificates and not (tls or sentinel_tls):
        raise _malformed("it has options for TLS; write rediss+sentinel:// or ssl=true")
    db = found.setdefault("db", _database(database))
    options = {**found, **(certificates if tls else {})}
    timeouts = {name: value for name, value in found.items() if name.startswith("socket_")}
    sentinel_options = {**timeouts, **own, **(certificates if sentinel_tls else {})}
    if sentinel_tls:
        sentinel_options["ssl"] = True
    return RedisAddress(_without_secrets(parts), hosts, tls, db, options, unquote(service), sentinel_options)


def _sentinel_host(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise _malformed("the host of a Sentinel is missing")
    return unquote(parts.hostname), _port(parts, SENTINEL_PORT)


def _port(parts: SplitResult, default: int) -> int:
    if parts.port == 0:
        raise _malformed("0 is no port; write 1 to 65535")
    return parts.port or default


def _database(path: str) -> int:
    path = unquote(path).strip("/")
    if path and not re.fullmatch(r"\d{1,9}", path):
        raise _malformed("what follows the host is no number of a database; in a password, / is written %2F")
    return int(path or 0)


def _credentials(parts: SplitResult) -> dict[str, str]:
    found = {"username": parts.username, "password": parts.password}
    return {name: unquote(value) for name, value in found.items() if value}


def _read_options(parts: SplitResult, known: frozenset[str], scheme: str) -> dict[str, Any]:
    if scheme != "unix":
        known |= _TCP
    if scheme in {"redis", "rediss"}:
        known |= {"host", "port"}
    found: dict[str, Any] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)):
        if name not in known:
            raise _malformed(_unknown_option(name, known, scheme))
        # an option without a value has none
        if value:
            found[name] = _read_option(name, value)
    return found


def _read_option(name: str, value: str) -> Any:
    if value not in _CHOICES.get(name, (value,)):
        raise _malformed(f"its option {name} is none of {', '.join(_CHOICES[name])}")
    parser: Any = int if name == "port" else URL_QUERY_ARGUMENT_PARSERS.get(name)
    try:
        found: Any = parser(value) if parser else value
    except ValueError:
        raise _malformed(f"its option {name} is no number") from None
    low = _AT_LEAST.get(name)
    # also false for a number that is none
    if low is not None and not low <= found <= _AT_MOST:
        raise _malformed(f"its option {name} is not from {low} to {_AT_MOST}")
    if name == "client_name" and not re.fullmatch("[!-~]+", value):
        raise _malformed("its option client_name has a character that Redis does not allow; write ASCII without spaces")
    return found


def _unknown_option(name: str, known: frozenset[str], scheme: str) -> str:
    # the text may be part of a password, so only names of redis-py are repeated
    if name in _TLS | {"ssl"}:
        return f"{name} is no option of {scheme}://; for TLS, write rediss://"
    near = get_close_matches(name, sorted(known), 1)
    nearest = f"; {near[0]} is the nearest" if near else ""
    return f"it has an option after the ? that is not known{nearest}; in a password, ? is written %3F"


def _flag(value: str | None, *, default: bool) -> bool:
    return default if value is None else bool(to_bool(value))  # type: ignore[no-untyped-call]


def _without_secrets(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
