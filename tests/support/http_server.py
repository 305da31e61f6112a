"""The real HTTP server in a thread of the test process, and a real worker in other threads of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import httpx2
import redis

from latentfarm.doorbell import queue_name
from latentfarm.farm import Farm
from latentfarm.server.app import OPERATIONS, make_app
from latentfarm.server.http.operation import Operation
from latentfarm.server.http.process import HttpServer, listen, url_of
from latentfarm.server.settings import ServerSettings

WORKER = "worker-a"


class RunningServer:
    """A server on a free port of the loopback interface; a context manager. ``client`` sends to it, without a key."""

    def __init__(
        self,
        farm: Farm,
        settings: ServerSettings,
        *,
        operations: Sequence[Operation] = OPERATIONS,
        header_timeout_s: float = 15.0,
    ) -> None:
        self.settings = settings
        self.app = make_app(farm, settings, operations)
        listener = listen(settings.address)
        self.url = url_of(listener)
        self.server = HttpServer(
            self.app,
            max_connections=settings.max_connections,
            shutdown_timeout_s=settings.shutdown_timeout_s,
            header_timeout_s=header_timeout_s,
        )
        self.client = httpx2.Client(base_url=self.url, timeout=30)
        self._thread = threading.Thread(target=self.server.run_on, args=(listener,), name="server", daemon=True)
        # the socket listens already: a request waits until the thread answers it
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def stop(self) -> None:
        """End as at a signal, and wait for the end."""
        self.server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.stop()


class RunningWorker:
    """A worker with a tiny model that serves ``mini`` as ``worker-a``, woken by the doorbell as a real one is."""

    def __init__(self, farm: Farm, folder: Path) -> None:
        # imported here: most tests of the server need no worker
        import torch
        from tests.support.tiny import make_tiny

        from latentfarm.doorbell import make_app as make_celery
        from latentfarm_worker.service.worker import Worker
        from latentfarm_worker.supervise.shared_state import SharedState

        # with tiny convolutions, a second thread costs more than it gains
        torch.set_num_threads(1)
        chosen = {
            "model_source": str(make_tiny(folder / "tiny")),
            "slots": 2,
            "micro_batch": 4,
            # after a test has emptied Redis, the next one finds the worker soon
            "housekeeping_interval_s": 0.2,
        }
        settings = farm.settings.model_copy(update=chosen)
        celery = make_celery(settings.redis_url, model="mini")
        in_use = threading.Event()

        class QuietWorker(Worker):
            """Reports and renders only while a test uses it: other tests have workers of their own, or none."""

            def _do_housekeeping(self) -> None:
                if in_use.is_set():
                    super()._do_housekeeping()

            def on_urgent(self) -> None:
                if in_use.is_set():
                    super().on_urgent()

        self._in_use = in_use
        self.worker = QuietWorker(settings, celery, state=SharedState(), name=WORKER, supervised=True)
        self._redis: redis.Redis = farm.ledger.redis
        #: held while it may take a doorbell and jobs
        self._turn = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._in_use.wait(0.5):
                continue
            with self._turn:
                if self._in_use.is_set() and self._redis.blpop([queue_name("mini")], timeout=0.2):
                    self.worker.render_loop.render_all()

    @contextmanager
    def used(self) -> Iterator[Self]:
        """Be a worker of the farm meanwhile."""
        self._in_use.set()
        self.worker._heartbeat()
        try:
            yield self
        finally:
            self._in_use.clear()
            # the jobs that it has not begun must not keep it busy, and those that it has must not outlive the test
            self._redis.flushall()
            with self._turn, self.worker.render_loop._engine_lock:
                pass

    def stop(self) -> None:
        """End as at a stop request."""
        self._stopping.set()
        self.worker.render_loop.stop()
        self._thread.join(30)
        self.worker.close()
