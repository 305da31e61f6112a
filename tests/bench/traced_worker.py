"""A worker that records what its threads do, for ``timeline``: ``python -m tests.bench.traced_worker FOLDER``.

It is the real worker, some of whose methods are wrapped. A span costs about two microseconds. They are written to a
file when the worker ends.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from latentfarm.ledger import Ledger
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.manifest import ManifestReader

#: name, thread, begin and end in ns of the monotonic clock, and what else is known
_spans: list[tuple[str, int, int, int, dict[str, Any]]] = []


def _trace(owner: Any, attribute: str, name: str) -> None:
    """Record each call of a method as a span."""
    method = getattr(owner, attribute)

    @functools.wraps(method)
    def traced(*arguments: Any, **options: Any) -> Any:
        began = time.monotonic_ns()
        try:
            return method(*arguments, **options)
        finally:
            _spans.append((name, threading.get_native_id(), began, time.monotonic_ns(), {}))

    setattr(owner, attribute, traced)


def _trace_lease() -> None:
    """Record each lease with the number of jobs that were wanted and leased."""
    method = Ledger.lease

    def traced(self: Ledger, model: str, worker: str, k: int, **options: Any) -> Any:
        began = time.monotonic_ns()
        leases = method(self, model, worker, k, **options)
        counts = {"wanted": k, "leased": len(leases)}
        _spans.append(("lease", threading.get_native_id(), began, time.monotonic_ns(), counts))
        return leases

    Ledger.lease = traced  # type: ignore[method-assign]


def _trace_step(engine_class: Any) -> None:
    """Record each step with its slots, its thread's CPU time, and the time in which its thread waited for a core."""
    method = engine_class.step

    def traced(self: Any) -> Any:
        thread = threading.get_native_id()
        images = sum(left != 0 for _, left in self.remaining())
        cpu, queue = _schedule(thread)
        began = time.monotonic_ns()
        try:
            return method(self)
        finally:
            ended, (cpu_after, queue_after) = time.monotonic_ns(), _schedule(thread)
            used = {"cpu": cpu_after - cpu, "queue": queue_after - queue}
            _spans.append(("step", thread, began, ended, {**used, "images": images, "slots": self.slots}))

    engine_class.step = traced


def _schedule(thread: int) -> tuple[int, int]:
    """Return the nanoseconds that a thread of this process ran, and waited for a core."""
    cpu, queue, _ = Path(f"/proc/self/task/{thread}/schedstat").read_text().split()
    return int(cpu), int(queue)


def _trace_model(family: Any) -> None:
    for attribute, name in (("encode", "text"), ("predict", "model"), ("decode", "decode")):
        _trace(type(family), attribute, name)


def install(file: Path) -> None:
    """Wrap the methods of a worker that is imported, and write the spans when it closes."""
    from latentfarm_worker.engine.engine import Engine
    from latentfarm_worker.images.receipt import ImageFileEncoder
    from latentfarm_worker.service.render_loop import RenderLoop

    worker_module: Any = importlib.import_module("latentfarm_worker.service.worker")
    for owner, attribute, name in (
        (RenderLoop, "render_all", "render_all"),
        (ManifestReader, "load", "manifest"),
        (Engine, "prepare", "prepare"),
        (ImageFileEncoder, "encode", "encode"),
        (Bucket, "put", "put"),
        (Ledger, "commit", "commit"),
        (Ledger, "renew", "renew"),
        (Ledger, "heartbeat", "heartbeat"),
        (Ledger, "expire_leases", "sweep"),
        (worker_module.doorbell, "ring", "ring"),
        (worker_module, "deliver_due", "webhooks"),
    ):
        _trace(owner, attribute, name)
    _trace_lease()
    _trace_step(Engine)
    load_model, close = worker_module.load_model, worker_module.Worker.close

    def load(*arguments: Any, **options: Any) -> Any:
        family = load_model(*arguments, **options)
        _trace_model(family)
        return family

    def close_and_write(self: Any) -> None:
        threads = {thread.native_id: thread.name for thread in threading.enumerate()}
        close(self)
        file.write_text(json.dumps({"spans": _spans, "threads": threads}))

    worker_module.load_model = load
    worker_module.Worker.close = close_and_write


if __name__ == "__main__":
    from latentfarm_worker.service import tasks

    # imported by the worker when Celery starts it, as here
    install(Path(sys.argv[1]) / f"{os.getpid()}.json")
    sys.argv[1:] = []
    sys.exit(tasks.serve())
