"""The one Celery task: a doorbell was heard, so render until no job of the model is left."""

from __future__ import annotations

import logging
import os
import signal
import socket
import uuid
from typing import Any

from celery.signals import setup_logging, worker_init, worker_ready, worker_shutdown, worker_shutting_down

from latentfarm import doorbell
from latentfarm.errors import LatentfarmError
from latentfarm.monitoring import logs
from latentfarm.settings import Settings
from latentfarm_worker.supervise.shared_state import from_environment

log = logging.getLogger(__name__)

settings = Settings.load()
app = doorbell.make_app(settings.redis_url, model=settings.model)

#: the worker's resident pipeline: made once, when the worker starts, on its main thread
_resident: Any = None


@app.task(name=doorbell.TASK_NAME)  # type: ignore[untyped-decorator]
def render() -> None:
    """Render until the ledger has no more job of this worker's model."""
    made = _resident.renderer.render_all()
    log.info("rendered %d", made)


@setup_logging.connect  # type: ignore[untyped-decorator]
def _leave_logging(**_: Any) -> None:
    """Keep Celery from setting logging up, by being connected: it was done when the worker began."""


@worker_init.connect  # type: ignore[untyped-decorator]
def _start(**_: Any) -> None:
    global _resident  # noqa: PLW0603 - Celery gives a task no other way to reach what its worker holds
    pulse, name = from_environment()
    worker = name or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    logs.configure(settings.log_format, worker=worker, process="worker")
    # torch takes seconds to import, and only a worker needs it
    from latentfarm_worker.service.worker import Worker

    try:
        _resident = Worker(settings, app, pulse=pulse, worker=worker, supervised=name is not None)
    except LatentfarmError as error:
        log.critical("the worker cannot start: %s", error)
        # Celery turns an exception in a signal's receiver into a log line and starts all the same
        os._exit(error.exit_code)
    except Exception:
        log.exception("the worker cannot start")
        os._exit(1)


@worker_ready.connect  # type: ignore[untyped-decorator]
def _ready(**_: Any) -> None:
    # Celery's second Ctrl-C cancels tasks, which its threads pool cannot: every way to ask means the same here
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.getsignal(signal.SIGTERM))


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _drain(**_: Any) -> None:
    # within a signal's handler, and again with each further signal
    if _resident is not None:
        _resident.drain.begin()


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _close(**_: Any) -> None:
    if _resident is not None:
        _resident.close()


def serve() -> int:
    """Run a worker, set up by the environment, until it is asked to end; return its exit code."""
    # without the worker's name, which is known when it begins
    logs.configure(settings.log_format, process="worker")
    options = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    # Celery's banner is no line of JSON
    quiet = ["--quiet"] if logs.use_json(settings.log_format) else []
    return int(app.start(argv=[*quiet, "worker", *options]) or 0)
