"""A local farm: Redis, an S3 server, workers and an HTTP server, started and stopped in order."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Self

from latentfarm.errors import InputError, UnavailableError
from latentfarm.farm_folder import FarmFolder
from latentfarm.local.http_server import LocalServer
from latentfarm.local.process import ManagedProcess
from latentfarm.local.redis_server import start_redis
from latentfarm.local.s3_server import start_s3
from latentfarm.model_spec import ModelSpec, with_models
from latentfarm.monitoring import listen_address
from latentfarm.settings import Settings

#: seconds that a supervisor needs beyond the shutdown timeout of its worker
_SUPERVISOR_EXIT_S = 5.0
_SERVER_EXIT_S = 10.0
_POLL_S = 0.2
#: of the extra `worker`
_WORKER_PACKAGES = ("torch", "diffusers", "transformers")


def require_worker_packages() -> None:
    """Check that a worker can run here.

    Raises:
        InputError: A package is missing. The message names the extra to install.
    """
    missing = [name for name in _WORKER_PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"a worker needs {', '.join(missing)}: pip install 'latentfarm[worker]'")


class LocalFarm:
    """Redis, an S3 server and workers, with their data in ``folder``. A context manager that stops them all.

    ``servers`` and ``workers`` are the processes; ``http_server`` is None unless ``start_http_server`` was called.

    Raises:
        InputError: Another farm runs in the folder, or the folder cannot be written.
        UnavailableError: A server does not start.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: list[ManagedProcess] = []
        self.workers: list[ManagedProcess] = []
        self.http_server: ManagedProcess | None = None
        place = FarmFolder(folder)
        self._claim = place.claim()
        try:
            if problem := place.disk_problem():
                raise UnavailableError(problem)
            self._claim.wait_for_servers(_SERVER_EXIT_S)
            self.settings = self._start_servers()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_servers(self) -> Settings:
        lock = self._claim.servers
        redis, url = start_redis(self.folder / "redis", log=self.folder / "logs" / "redis.log", lock=lock)
        self.servers.append(redis)
        s3, settings = start_s3(self.folder / "s3", log=self.folder / "logs" / "s3.log", lock=lock)
        self.servers.append(s3)
        settings = settings.model_copy(update={"redis_url": url})
        self._claim.publish(settings.local_fields())
        return settings

    def require_servers(self) -> None:
        """Check that the servers run.

        Raises:
            UnavailableError: One has ended.
        """
        for server in self.servers:
            server.require_alive()

    def wait_for_users(self, report: Callable[[], None]) -> None:
        """Wait until no other command uses the farm, or a server ends. If one does, call ``report`` first."""
        if self._claim.in_use():
            report()
            while self._claim.in_use():
                self.require_servers()
                time.sleep(_POLL_S)

    def start_workers(self, count: int, models: Sequence[ModelSpec], *, dtype: str, slots: int) -> None:
        """Start workers, each for all these models. They share the CPU cores."""
        start_workers(
            self.settings,
            count,
            models,
            dtype=dtype,
            slots=slots,
            folder=self.folder / "logs",
            into=self.workers,
        )

    def start_http_server(self, address: str) -> LocalServer:
        """Start the HTTP server."""
        server = LocalServer(self.settings, address, log=self.folder / "logs" / "server.log")
        self.http_server = server.process
        return server

    def close(self) -> None:
        """Stop the workers and the HTTP server, then the servers that they use."""
        users = [*self.workers, *([self.http_server] if self.http_server else [])]
        if users:
            # there are settings only once both servers run
            stop_all(users, worker_exit_s(self.settings))
        self._claim.retract()
        # Redis last: the others write to it until they exit
        stop_all(self.servers, _SERVER_EXIT_S)
        self._claim.release()


def start_workers(
    settings: Settings,
    count: int,
    models: Sequence[ModelSpec],
    *,
    dtype: str,
    slots: int,
    folder: Path,
    into: list[ManagedProcess],
) -> None:
    """Start supervised workers on any farm.

    Args:
        settings: How to reach the farm.
        count: Number of workers. They share the CPU cores.
        models: What each of them serves.
        dtype: Floating-point type of the model.
        slots: Guided images that each denoises at once; 0: calibrated.
        folder: Folder of their log files.
        into: Each worker is appended here once it is started, so that an interrupt between two starts loses none.
    """
    if count:
        require_worker_packages()
    chosen: dict[str, object] = {"dtype": dtype, "slots": slots}
    if settings.log_format == "auto":
        # people read these log files
        chosen["log_format"] = "text"
    settings = with_models(settings, models).model_copy(update=chosen)
    threads = str(max(1, (os.cpu_count() or 1) // max(count, 1)))
    for place in range(count):
        name = f"worker-{len(into) + 1}"
        address = listen_address.nth_address(settings.metrics_address, place)
        env = {**settings.environment(), "OMP_NUM_THREADS": threads, listen_address.VARIABLE: address}
        into.append(ManagedProcess(name, worker_command(settings), log=folder / f"{name}.log", env=env))


def worker_command(settings: Settings, *, devices: str = "") -> list[str]:
    """Return the command of a supervised worker, or of one on each of the devices. It reads ``environment()``."""
    limits = {"shutdown-timeout-s": settings.shutdown_timeout_s, "stall-timeout-s": settings.stall_timeout_s}
    options = [f"--{name}={value}" for name, value in limits.items()]
    if devices:
        options.append(f"--devices={devices}")
    return [sys.executable, "-m", "latentfarm_worker.supervise.supervisor", *options]


def worker_exit_s(settings: Settings) -> float:
    """Return the seconds from a stop request to the end of a supervised worker, at most."""
    return settings.shutdown_timeout_s + _SUPERVISOR_EXIT_S


def stop_all(children: list[ManagedProcess], timeout_s: float) -> None:
    """Stop all processes and wait for each. Ctrl-C meanwhile sends each a second stop request."""
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
    """Return an event that the first Ctrl-C, SIGTERM or SIGHUP sets; the second one raises KeyboardInterrupt.

    SIGHUP, of a closed terminal, is left alone if it is ignored, as under ``nohup``. An exception at the first signal
    could be raised at any line, between the start of a process and its registration.
    """
    event = Event()

    def note(_signal: int, _frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
