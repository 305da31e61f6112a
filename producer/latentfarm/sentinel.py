"""Finds the primary of a Redis service with its Sentinels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

#: seconds; the next Sentinel is queried then
_TIMEOUT_S = 2.0


class PrimaryNotFoundError(MasterNotFoundError):
    """No Sentinel names a primary. The text is a problem and its cure."""


class PrimaryFinder(Sentinel):
    """redis-py's client of Sentinels, which reports why none of them names a primary.

    Args:
        hosts: host and port of each Sentinel.
        options: arguments of the connections to them.
    """

    def __init__(self, hosts: Iterable[tuple[str, int]], options: Mapping[str, Any]) -> None:
        timeouts = {"socket_timeout": _TIMEOUT_S, "socket_connect_timeout": _TIMEOUT_S}
        # redis-py's own retries would wait for seconds at a Sentinel that is down
        options = {**timeouts, "retry": Retry(NoBackoff(), 0), **options}
        super().__init__(hosts, sentinel_kwargs=options)  # type: ignore[no-untyped-call]

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return host and port of the primary, by the first Sentinel that knows it.

        Raises:
            PrimaryNotFoundError: none does.
        """
        problems = []
        for number, client in enumerate(self.sentinels):
            where = "{host}:{port}".format_map(client.connection_pool.connection_kwargs)
            try:
                services: Any = client.sentinel_masters()
            except redis.RedisError as error:
                problems.append(f"{where} {_explain(error)}")
                continue
            state = services.get(service_name)
            if state and self.check_master_state(state, service_name):  # type: ignore[no-untyped-call]
                # the next search begins with the Sentinel that knew it
                self.sentinels[0], self.sentinels[number] = client, self.sentinels[0]
                return state["ip"], state["port"]
            if state:
                problems.append(
                    f"{where} reports that the primary of {service_name!r}, {state['ip']}:{state['port']}, is down; "
                    "wait for the failover to end, or repair the servers"
                )
            else:
                known = ", ".join(map(repr, services)) or "none"
                problems.append(
                    f"{where} knows no service {service_name!r}, but {known}; correct the name in LATENTFARM_REDIS_URL"
                )
        raise PrimaryNotFoundError(f"no Sentinel names a primary: {'. '.join(problems)}")


def _explain(error: redis.RedisError) -> str:
    """Return what is wrong with one Sentinel, and the cure."""
    text = str(error)
    if isinstance(error, redis.AuthenticationError) or text.startswith(("NOAUTH", "WRONGPASS", "NOPERM")):
        return (
            "refuses the user or the password; correct sentinel_username and sentinel_password in LATENTFARM_REDIS_URL "
            f"(Sentinel: {text})"
        )
    if "unknown command" in text or "SENTINEL" in text:
        return "is no Sentinel but a Redis; write redis://, or the port of a Sentinel, often 26379"
    if isinstance(error, redis.InvalidResponse | redis.ResponseError):
        return f"is no Sentinel; correct host and port in LATENTFARM_REDIS_URL ({text})"
    return f"does not answer; start it, or correct LATENTFARM_REDIS_URL ({text})"
