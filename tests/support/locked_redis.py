"""A Redis on the loopback interface that admits only the users of docs/security."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.support.redis_process import running_redis

DOCS = REPOSITORY / "docs" / "security"


@contextmanager
def locked_redis(folder: Path, passwords: Mapping[str, str]) -> Iterator[int]:
    """Start Redis on the loopback interface with the published users."""
    acl = (DOCS / "redis-acl.txt").read_text()
    for user, password in passwords.items():
        acl = acl.replace(f"{user.upper()}_PASSWORD", password)
    (folder / "users.acl").write_text(acl)
    with running_redis(folder, "--aclfile", str(folder / "users.acl")) as port:
        yield port
