"""The servers and workers of a benchmark: real ones, below a temporary folder, with their CPU time and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import redis

from latentfarm.ledger import Ledger
from latentfarm.local.farm import start_workers, stop_all
from latentfarm.local.process import ManagedProcess
from latentfarm.local.redis_server import start_redis
from latentfarm.local.s3_server import start_s3
from latentfarm.model_spec import ModelSpec
from latentfarm.settings import Settings

_WORKER_STOP_TIMEOUT_S = 60.0
#: seconds between two polls of another process
_POLL_S = 0.02


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder that is removed at the end."""
    with TemporaryDirectory(prefix="latentfarm-bench-") as folder:
        yield Path(folder)


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Run the embedded Redis with its append-only file. Yield its URL."""
    child, url = start_redis(folder, log=folder / "redis.log")
    try:
        yield url
    finally:
        _stop(child)


@contextmanager
def farm_servers(folder: Path) -> Iterator[Settings]:
    """Run the embedded Redis and S3 server. Yield the settings that connect to them."""
    with redis_server(folder / "redis") as url:
        child, settings = start_s3(folder / "s3", log=folder / "s3.log")
        try:
            # what is measured encodes its prompts each time, as those with which it is compared do
            yield settings.model_copy(update={"redis_url": url, "embedding_cache_bytes": 0})
        finally:
            _stop(child)


@contextmanager
def workers(settings: Settings, count: int, logs: Path) -> Iterator[list[int]]:
    """Run workers that share the cores, and wait until they have loaded the settings' model.

    Yields the process ids of their supervisors.
    """
    children: list[ManagedProcess] = []
    try:
        model = ModelSpec(settings.model, settings.model_source)
        start_workers(settings, count, [model], dtype=settings.dtype, slots=settings.slots, folder=logs, into=children)
        ledger = Ledger.connect(settings.redis_url)
        until(lambda: len(ledger.workers(settings.model)) == count, "the workers", timeout_s=300)
        yield [child.pid for child in children]
    finally:
        stop_all(children, _WORKER_STOP_TIMEOUT_S)


def until(condition: Callable[[], bool], what: str, *, timeout_s: float = 300) -> None:
    """Wait until the condition holds.

    Raises:
        RuntimeError: ``what`` did not happen in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"timeout after {timeout_s:g} s: {what}")
        time.sleep(_POLL_S)


def _stop(child: ManagedProcess) -> None:
    child.terminate()
    child.wait_or_kill(20)


@dataclass(frozen=True)
class Usage:
    """The resources of a command: CPU seconds with its children, wall seconds, and peak resident memory."""

    cpu_s: float
    wall_s: float
    peak_bytes: int


def run_command(arguments: Sequence[str], settings: Settings, *, log: Path) -> Usage:
    """Run ``latentfarm ...`` as a process of its own, with its output in ``log``.

    Raises:
        RuntimeError: It failed.
    """
    began = time.monotonic()
    peak_bytes = 0
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "latentfarm", *arguments],
            env={**os.environ, **settings.environment()},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    # wait4 instead of subprocess's wait: it returns the CPU time. Its peak memory would include ours before exec.
    ended = 0
    while not ended:
        peak_bytes = max(peak_bytes, _peak_bytes(process.pid))
        time.sleep(_POLL_S)
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"latentfarm {' '.join(arguments)} failed:\n{log.read_text()[-2000:]}")
    return Usage(usage.ru_utime + usage.ru_stime, time.monotonic() - began, peak_bytes)


def _peak_bytes(pid: int) -> int:
    """Return the peak resident memory of a process, or 0 if it has just ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def redis_cpu_s(client: redis.Redis) -> float:
    """Return the CPU seconds of the server, user and system."""
    cpu = client.info("cpu")
    return float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])


def used_memory_bytes(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory"])


def redis_ms(client: redis.Redis) -> float:
    """Return Redis ``TIME`` in milliseconds: the clock of the ledger."""
    seconds, micros = client.time()
    return int(seconds) * 1000 + int(micros) / 1000
