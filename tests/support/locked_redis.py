"""A Redis on the loopback interface that admits only the users of docs/security."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import REPOSITORY, until
from tests.support.machines import free_ports

from latentfarm.local.process import ManagedProcess
from latentfarm.local.redis_server import find_redis

DOCS = REPOSITORY / "docs" / "security"


@contextmanager
def locked_redis(folder: Path, passwords: Mapping[str, str]) -> Iterator[int]:
    """Start Redis on the loopback interface with the published users."""
    acl = (DOCS / "redis-acl.txt").read_text()
    for user, password in passwords.items():
        acl = acl.replace(f"{user.upper()}_PASSWORD", password)
    (folder / "users.acl").write_text(acl)
    [port] = free_ports(1)
    options = ["--port", str(port), "--bind", "127.0.0.1", "--aclfile", str(folder / "users.acl"), "--save", ""]
    child = ManagedProcess("Redis", [find_redis(), *options, "--dir", str(folder)], log=folder / "redis.log")
    try:
        until(lambda: "Ready to accept" in (folder / "redis.log").read_text(), timeout_s=20)
        yield port
    finally:
        child.terminate()
        child.wait_or_kill(5)
