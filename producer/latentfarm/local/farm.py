"""Everything of a local farm, started and ended in the right order."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Self

from latentfarm.errors import InputError
from latentfarm.local.process import ManagedProcess
from latentfarm.local.redis_server import start_redis
from latentfarm.local.s3_server import start_s3
from latentfarm.model_spec import ModelSpec
from latentfarm.monitoring import listen_address, logs
from latentfarm.settings import FARM_FILE, Settings, write_farm_file

#: what a supervisor needs, beyond the time that its worker has to drain
_SUPERVISOR_END_S = 5.0
_SERVER_END_S = 10.0
#: what pip has to bring for a worker
_WORKER_PACKAGES = ("torch", "diffusers", "transformers")


def require_worker_packages() -> None:
    """Do nothing where a worker can run.

    Raises:
        InputError: a package is missing; the message names the extra to install.
    """
    missing = [name for name in _WORKER_PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"a worker needs {', '.join(missing)}: pip install 'latentfarm[worker]'")


class LocalFarm:
    """A Redis, an S3 server and workers below ``folder``; a context manager that ends them all.

    Raises:
        InputError: another farm runs in the folder.
        UnavailableError: a server does not start.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._servers: list[ManagedProcess] = []
        self._workers: list[ManagedProcess] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip()
            raise InputError(f"a farm already runs in {folder} (process {holder}); use it, or end it first") from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        try:
            self.settings = self._start_servers()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_servers(self) -> Settings:
        redis, url = start_redis(self.folder / "redis", log=self.folder / "logs" / "redis.log")
        self._servers.append(redis)
        s3, settings = start_s3(self.folder / "s3", log=self.folder / "logs" / "s3.log")
        self._servers.append(s3)
        settings = settings.model_copy(update={"redis_url": url})
        write_farm_file(self.folder / FARM_FILE, settings)
        return settings

    def start_workers(self, count: int, model: ModelSpec, *, dtype: str, slots: int) -> None:
        """Start workers for a model; each gets its share of the cores."""
        start_workers(
            self.settings,
            count,
            model,
            dtype=dtype,
            slots=slots,
            folder=self.folder / "logs",
            into=self._workers,
        )

    @property
    def workers(self) -> list[ManagedProcess]:
        """The worker processes."""
        return self._workers

    @property
    def children(self) -> list[ManagedProcess]:
        """Every process."""
        return [*self._servers, *self._workers]

    def close(self) -> None:
        """End the workers, then the servers they use."""
        end_all(self._workers, worker_end_s(self.settings))
        (self.folder / FARM_FILE).unlink(missing_ok=True)
        # Redis last: whatever ended before has had its say
        end_all(self._servers, _SERVER_END_S)
        self._lock.close()


def start_workers(
    settings: Settings,
    count: int,
    model: ModelSpec,
    *,
    dtype: str,
    slots: int,
    folder: Path,
    into: list[ManagedProcess],
) -> None:
    """Start worker processes on any farm, their logs in ``folder``, appending them to ``into`` one by one."""
    require_worker_packages()
    mine = settings.model_copy(
        update={"model": model.alias, "model_source": model.source, "dtype": dtype, "slots": slots}
    )
    threads = str(max(1, (os.cpu_count() or 1) // max(count, 1)))
    # the logs here are files that a person reads
    environment = {"OMP_NUM_THREADS": threads, logs.VARIABLE: "text", **mine.environment()}
    for place in range(count):
        name = f"worker-{len(into) + 1}"
        own = {**environment, listen_address.VARIABLE: listen_address.nth_address(settings.metrics_address, place)}
        into.append(ManagedProcess(name, worker_command(mine), log=folder / f"{name}.log", env=own))


def worker_command(settings: Settings) -> list[str]:
    """Return the command of a worker under its supervisor; what it serves is said by the environment."""
    return [sys.executable, "-m", "latentfarm_worker.supervise.supervisor", *_limits(settings)]


def devices_command(settings: Settings, devices: str) -> list[str]:
    """Return the command of a worker on each of the devices, each under its supervisor."""
    return [sys.executable, "-m", "latentfarm_worker.supervise.devices", devices, *_limits(settings)]


def _limits(settings: Settings) -> list[str]:
    return ["--shutdown-timeout-s", str(settings.shutdown_timeout_s), "--stall-timeout-s", str(settings.stall_timeout_s)]


def worker_end_s(settings: Settings) -> float:
    """Return the seconds within which a worker that was asked to end has ended."""
    return settings.shutdown_timeout_s + _SUPERVISOR_END_S


def end_all(children: list[ManagedProcess], timeout_s: float) -> None:
    """Ask all to end, then wait for each; a Ctrl-C meanwhile asks them to hurry."""
    for child in reversed(children):
        child.terminate()
    for child in reversed(children):
        try:
            child.wait_or_kill(timeout_s)
        except KeyboardInterrupt:
            for each in children:
                each.terminate()
            child.wait_or_kill(timeout_s)


@contextmanager
def stop_on_signals() -> Iterator[Event]:
    """Give an event that is set by Ctrl-C or SIGTERM, instead of an exception at any line; the second is one."""
    event = Event()

    def note(_signal: int, _frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
