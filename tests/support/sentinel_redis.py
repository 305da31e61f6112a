"""Two Redis servers, of which a Sentinel makes one the primary. All need passwords."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from tests.conftest import until
from tests.support.machines import free_ports

from latentfarm.local.process import ManagedProcess
from latentfarm.local.redis_server import find_redis

SERVICE = "farm"
PASSWORD = "p@ss/word"
SENTINEL_PASSWORD = "hush"


@dataclass(frozen=True)
class SentinelRedis:
    """The servers by port, and a Sentinel."""

    servers: dict[int, ManagedProcess]
    port: int
    sentinel: Any
    closed_port: int

    @property
    def url(self) -> str:
        """The URL, whose first Sentinel is down."""
        return self.url_of(f"127.0.0.1:{self.closed_port},127.0.0.1:{self.port}")

    def url_of(self, hosts: str, service: str = SERVICE, query: str = f"sentinel_password={SENTINEL_PASSWORD}") -> str:
        return f"sentinel://:p%40ss%2Fword@{hosts}/{service}/1?{query}"

    @property
    def primary(self) -> int:
        """The port of the primary, as the Sentinel knows it."""
        return int(self.sentinel.sentinel_masters()[SERVICE]["port"])

    def client(self, port: int) -> Any:
        return redis.Redis(port=port, db=1, password=PASSWORD)

    def kill_primary(self) -> None:
        """Kill the primary, and return when the Sentinel has made the other server the primary."""
        port = self.primary
        self.servers[port].wait_or_kill(0)
        until(lambda: self.primary != port, timeout_s=30)


@contextmanager
def sentinel_redis(folder: Path) -> Iterator[SentinelRedis]:
    """Start the servers and the Sentinel."""
    first, second, port, closed = free_ports(4)
    children: dict[int, ManagedProcess] = {}
    common = f'bind 127.0.0.1\nrequirepass "{PASSWORD}"\nmasterauth "{PASSWORD}"\nsave ""\nrepl-diskless-sync-delay 0\n'
    monitor = (
        f"sentinel monitor {SERVICE} 127.0.0.1 {first} 1\n"
        f'sentinel auth-pass {SERVICE} "{PASSWORD}"\n'
        f"sentinel down-after-milliseconds {SERVICE} 500\n"
        f"sentinel failover-timeout {SERVICE} 3000\n"
    )
    configs = {
        first: common,
        second: f"{common}replicaof 127.0.0.1 {first}\n",
        port: f'bind 127.0.0.1\nrequirepass "{SENTINEL_PASSWORD}"\n{monitor}',
    }
    try:
        for number, config in configs.items():
            home = folder / str(number)
            home.mkdir(parents=True)
            (home / "redis.conf").write_text(f"port {number}\ndir {home}\n{config}")
            command = [find_redis(), str(home / "redis.conf"), *(["--sentinel"] if number == port else [])]
            children[number] = ManagedProcess("Redis", command, log=home / "log")
            until(lambda home=home: "Running mode" in (home / "log").read_text(), timeout_s=20)  # type: ignore[misc]
        sentinel = redis.Redis(port=port, password=SENTINEL_PASSWORD, decode_responses=True)
        found = SentinelRedis({first: children[first], second: children[second]}, port, sentinel, closed)
        until(lambda: bool(replicas(found)), timeout_s=30)
        yield found
    finally:
        for child in children.values():
            child.terminate()
        for child in children.values():
            child.wait_or_kill(5)


def replicas(servers: SentinelRedis) -> list[dict[str, Any]]:
    """Return the replicas that the Sentinel may make a primary."""
    found = servers.sentinel.sentinel_slaves(SERVICE)
    return [each for each in found if each["flags"] == "slave" and each["master-link-status"] == "ok"]
