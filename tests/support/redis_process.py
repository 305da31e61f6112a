"""One Redis on a port of the loopback interface, with any options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import until
from tests.support.machines import free_ports

from latentfarm.local.process import ManagedProcess
from latentfarm.local.redis_server import find_redis


@contextmanager
def running_redis(folder: Path, *options: str, port: int | None = None) -> Iterator[int]:
    """Start a Redis, or with ``--sentinel`` a Sentinel, which writes its configuration; yield the port.

    ``port`` is that port [default: a free one].
    """
    port = port or free_ports(1)[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "redis.conf").write_text(f'port {port}\nbind 127.0.0.1\ndir {folder}\nsave ""\n')
    # a Sentinel logs no more than this
    ready = "Running mode" if "--sentinel" in options else "Ready to accept"
    child = ManagedProcess("Redis", [find_redis(), str(folder / "redis.conf"), *options], log=folder / "redis.log")
    try:
        until(lambda: ready in (folder / "redis.log").read_text(), timeout_s=20)
        yield port
    finally:
        child.terminate()
        child.wait_or_kill(5)
