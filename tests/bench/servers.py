"""What a measurement runs against: a real Redis and a real S3 server below a temporary folder, and their CPU time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import redis

from latentfarm.local.process import Child
from latentfarm.local.redis_server import start_redis
from latentfarm.local.s3_server import start_s3
from latentfarm.settings import Settings


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder that is removed at the end."""
    with TemporaryDirectory(prefix="latentfarm-bench-") as folder:
        yield Path(folder)


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Run the embedded Redis, append-only file and all; give its URL."""
    child, url = start_redis(folder, log=folder / "redis.log")
    try:
        yield url
    finally:
        _end(child)


@contextmanager
def farm_servers(folder: Path) -> Iterator[Settings]:
    """Run the embedded Redis and S3 server; give the settings that reach them."""
    with redis_server(folder / "redis") as url:
        child, settings = start_s3(folder / "s3", log=folder / "s3.log")
        try:
            yield settings.model_copy(update={"redis_url": url})
        finally:
            _end(child)


def _end(child: Child) -> None:
    child.terminate()
    child.wait_or_kill(20)


@dataclass(frozen=True)
class Used:
    """What a command used: CPU seconds of it and its children, wall seconds, and its largest resident memory."""

    cpu_s: float
    wall_s: float
    peak_bytes: int


def run_command(arguments: Sequence[str], settings: Settings, *, log: Path) -> Used:
    """Run ``latentfarm ...`` in a process of its own, its output in ``log``.

    Raises:
        RuntimeError: it failed.
    """
    began = time.monotonic()
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "latentfarm", *arguments],
            env={**os.environ, **settings.environment()},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        # not subprocess's own wait: this one tells the resources of the process and its children
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"latentfarm {' '.join(arguments)} failed:\n{log.read_text()[-2000:]}")
    return Used(usage.ru_utime + usage.ru_stime, time.monotonic() - began, usage.ru_maxrss * 1024)


def redis_cpu_s(client: redis.Redis) -> float:
    """Return the CPU seconds that the server has used, user and system."""
    cpu = client.info("cpu")
    return float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])


def used_memory_bytes(client: redis.Redis) -> int:
    """Return Redis' ``used_memory``."""
    return int(client.info("memory")["used_memory"])
