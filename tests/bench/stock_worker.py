"""The peer: a plain Celery worker that renders one prompt a task, as anybody would begin.

    python -m tests.bench.stock_worker    # set up by the environment

The environment is that of a latentfarm worker (``Settings.environment``), and ``STOCK_PROCESSES``,
``STOCK_THREADS`` and ``STOCK_DEVICE``. As Celery's documentation advises for long tasks: the prefork pool, acknowledged
late, a prefetch of one, a visibility timeout above any task; as diffusers': one pipe, loaded once in each process. The
picture is PIL's PNG with its default settings, put by boto3; the state goes to Redis by Celery's own result backend.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import worker_process_init
from tests.bench.workload import Row

from latentfarm.doorbell import broker_url
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket

TASK = "stock.render"
_VISIBILITY_TIMEOUT_S = 3600

#: of a worker's process: made once, after the fork
_pipe: Any = None
_bucket: Any = None


def make_app(redis_url: str, *, processes: int = 1) -> Celery:
    """Return the app; both sides use it. Workers of so many processes have a queue of their own."""
    app = Celery("stock", broker=broker_url(redis_url), backend=broker_url(redis_url), set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_default_queue=f"stock-{processes}",
        worker_concurrency=processes,
        worker_prefetch_multiplier=1,
        # importing and loading takes longer than the four seconds that a process gets by default
        worker_proc_alive_timeout=600,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"visibility_timeout": _VISIBILITY_TIMEOUT_S},
        result_backend_transport_options={"visibility_timeout": _VISIBILITY_TIMEOUT_S},
    )
    return app


def load(settings: Settings) -> None:
    """Load what a process keeps for its whole life."""
    global _pipe, _bucket  # noqa: PLW0603 - Celery gives a task no other way to reach what its process holds
    import torch
    from tests.bench import pipes

    torch.set_num_threads(int(os.environ["STOCK_THREADS"]))
    _pipe = pipes.load_pipe(settings.model_source, dtype=settings.dtype, device=os.environ["STOCK_DEVICE"])
    _bucket = Bucket.connect(settings)


def render(row: Row) -> dict[str, Any]:
    """Render one job, store its picture, and return what its state says."""
    from tests.bench import pipes

    body, key = pipes.png(pipes.draw_one(_pipe, row)), f"stock/{row['seed']:08d}.png"
    _bucket.client.put_object(Bucket=_bucket.name, Key=key, Body=body, ContentType="image/png")
    return {"key": key, "bytes": len(body), "process": os.getpid()}


def serve(settings: Settings) -> None:
    """Run the worker until it is asked to end."""
    app = make_app(settings.redis_url, processes=int(os.environ["STOCK_PROCESSES"]))
    app.task(name=TASK)(render)

    @worker_process_init.connect(weak=False)  # type: ignore[untyped-decorator]
    def _load(**_: Any) -> None:
        load(settings)

    app.worker_main(["worker", "--loglevel", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"])


if __name__ == "__main__":
    serve(Settings.load().require())
