"""The Celery app of a worker and its only task: a doorbell rang, so render until no job of its models is left."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import uuid
from functools import cache
from typing import Any

from celery.apps.worker import Worker as Program
from celery.signals import setup_logging, worker_init, worker_ready, worker_shutdown, worker_shutting_down

from latentfarm import doorbell
from latentfarm.errors import LatentfarmError
from latentfarm.model_spec import served_models
from latentfarm.monitoring import logs
from latentfarm.settings import Settings
from latentfarm_worker.supervise.exit_codes import EXIT_UNAVAILABLE
from latentfarm_worker.supervise.shared_state import SharedState, from_environment

log = logging.getLogger(__name__)

settings = Settings.load()
_aliases = [spec.alias for spec in served_models(settings)]
app = doorbell.make_app(settings.redis_url, model=_aliases, remote_control=settings.celery_remote_control)

#: as under ``nohup``; Celery handles it later
_HANGUP_IS_IGNORED = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
#: this process's ``Worker``, created on the main thread when Celery starts
_worker: Any = None
#: the error that ended Celery, if one did
_cause: BaseException | None = None


@cache
def _supervision() -> tuple[SharedState, str | None]:
    # the first call removes the variable
    return from_environment()


class CeleryWorker(Program):  # type: ignore[misc]
    """Celery's worker without messages to other workers, whichever command starts it.

    They do nothing for doorbells, and the published users of Redis may not send them.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        visible = settings.celery_remote_control
        options |= {"without_gossip": True, "without_mingle": True}
        options |= {"without_heartbeat": not visible, "task_events": visible}
        _, supervised_name = _supervision()
        if supervised_name:
            # the workers of a host need different names
            options["hostname"] = f"celery@{supervised_name}"
        super().__init__(*arguments, **options)


app.Worker = app.subclass_with_self(CeleryWorker)


@app.task(name=doorbell.TASK_NAME)  # type: ignore[untyped-decorator]
def render() -> None:
    """Render until the ledger has no more jobs of this worker's models."""
    log.info("rendered %d", _worker.render_loops.render_all())


@setup_logging.connect  # type: ignore[untyped-decorator]
def _keep_logging(**_: Any) -> None:
    """Do nothing: a connected receiver keeps Celery from replacing our logging configuration."""


@worker_init.connect  # type: ignore[untyped-decorator]
def _start(**_: Any) -> None:
    global _worker  # noqa: PLW0603 - Celery offers a task no other way to reach an object of its process
    state, supervised_name = _supervision()
    name = supervised_name or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    logs.configure(settings.log_format, worker=name, process="worker")
    # imported here, because torch takes seconds to import
    from latentfarm_worker.service.worker import Worker

    try:
        _worker = Worker(settings, app, state=state, name=name, supervised=supervised_name is not None)
    except LatentfarmError as error:
        log.critical("the worker cannot start: %s", error)
        # exit here: Celery logs an exception of a signal receiver and starts nevertheless
        os._exit(error.exit_code)
    except Exception:
        log.exception("the worker cannot start")
        os._exit(1)


@worker_ready.connect  # type: ignore[untyped-decorator]
def _handle_signals(**_: Any) -> None:
    # on a second Ctrl-C Celery cancels its tasks, which the threads pool does not support: treat all like SIGTERM. On
    # SIGHUP, that of a closed terminal, it restarts the process
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        ignored = number == signal.SIGHUP and _HANGUP_IS_IGNORED
        signal.signal(number, signal.SIG_IGN if ignored else signal.getsignal(signal.SIGTERM))


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _begin_shutdown(**_: Any) -> None:
    # runs in a signal handler, and again on each further signal
    if _worker is not None:
        _worker.state.stop()
        _worker.shutdown.begin()


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _close(**_: Any) -> None:
    global _cause  # noqa: PLW0603 - Celery calls this while it handles the error that ends it, and drops both then
    _cause = sys.exc_info()[1]
    if _worker is not None:
        _worker.close()


def serve() -> int:
    """Run a worker with the settings of the environment until it is stopped; return its exit code.

    It is 0 only if a stop was requested: who finds 0 does not start the worker again.
    """
    # without the worker's name, which is known when Celery starts
    logs.configure(settings.log_format, process="worker")
    # Celery's banner is not JSON
    quiet = ["--quiet"] if logs.use_json(settings.log_format) else []
    app.start(argv=[*quiet, "worker"])
    if _worker is not None and _worker.state.stopping:
        return 0
    log.critical("the worker ended, though nothing requested it: %r", _cause)
    return EXIT_UNAVAILABLE
