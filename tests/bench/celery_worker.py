"""The peer: a plain Celery worker that renders one prompt a task.

    python -m tests.bench.celery_worker    # configured by the environment of end_to_end.peer_environment

Celery is set up as its documentation recommends for long tasks: the prefork pool, late acknowledgement, a prefetch of
one, a visibility timeout above any task. Each process loads one diffusers pipeline. The image is PIL's default PNG,
stored by boto3. The state goes to Redis through Celery's own result backend.
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

TASK = "bench.render"
_VISIBILITY_TIMEOUT_S = 3600

#: of a worker's process, loaded once after the fork
_pipe: Any = None
_bucket: Any = None


def make_app(redis_url: str, *, processes: int = 1) -> Celery:
    """Return the app of both the sender and the workers. Each number of processes has a queue of its own."""
    app = Celery("bench", broker=broker_url(redis_url), backend=broker_url(redis_url), set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_default_queue=f"bench-{processes}",
        worker_concurrency=processes,
        worker_prefetch_multiplier=1,
        # importing and loading takes longer than the default of four seconds
        worker_proc_alive_timeout=600,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"visibility_timeout": _VISIBILITY_TIMEOUT_S},
        result_backend_transport_options={"visibility_timeout": _VISIBILITY_TIMEOUT_S},
    )
    return app


def load(settings: Settings) -> None:
    """Load the pipeline and connect to the bucket, once in a process's life."""
    global _pipe, _bucket  # noqa: PLW0603 - Celery gives a task no other way to reach the state of its process
    import torch
    from tests.bench import diffusers_pipeline

    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    device = os.environ["BENCH_DEVICE"]
    _pipe = diffusers_pipeline.load_pipe(settings.model_source, dtype=settings.dtype, device=device)
    _bucket = Bucket.connect(settings)


def render(row: Row) -> dict[str, Any]:
    """Render one job, store its image, and return its state."""
    from tests.bench import diffusers_pipeline

    body = diffusers_pipeline.png(diffusers_pipeline.render_one(_pipe, row))
    key = f"celery/{row['seed']:08d}.png"
    _bucket.client.put_object(Bucket=_bucket.name, Key=key, Body=body, ContentType="image/png")
    return {"key": key, "bytes": len(body), "process": os.getpid()}


def serve(settings: Settings) -> None:
    """Run the worker until SIGTERM."""
    app = make_app(settings.redis_url, processes=int(os.environ["BENCH_PROCESSES"]))
    app.task(name=TASK)(render)

    @worker_process_init.connect(weak=False)  # type: ignore[untyped-decorator]
    def _load(**_: Any) -> None:
        load(settings)

    app.worker_main(["worker", "--loglevel", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"])


if __name__ == "__main__":
    serve(Settings.load().require())
