"""Processes that kill themselves with kill -9 right before or right after a named act; run in a fork_server's child."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from threading import Event
from typing import Any

from tests.chaos import fake_worker

from latentfarm.ledger import Lease, Ledger
from latentfarm.storage.bucket import Bucket
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.images.receipt import ImageFileEncoder

#: how a process ends that killed itself
KILLED = -signal.SIGKILL

When = Callable[..., bool]


def _always(*_: Any, **__: Any) -> bool:
    return True


def _key_has(part: str) -> When:
    def has(_bucket: Bucket, key: str, *_: Any, **__: Any) -> bool:
        return part in key

    return has


def _renders(engine: Engine) -> bool:
    # the warm-up's image has no lease as its handle
    return any(isinstance(handle, Lease) for handle, _ in engine.remaining())


def _closes(*_: Any, **options: Any) -> bool:
    return options["closed"] is True


def _opens(*_: Any, **options: Any) -> bool:
    return int(options["before"]) == 0


#: act -> (whose method, its name, which calls are meant)
WORKER_ACTS: dict[str, tuple[type, str, When]] = {
    "lease": (Ledger, "lease", _always),
    "render": (Engine, "step", _renders),
    "encode": (ImageFileEncoder, "encode", _always),
    "put": (Bucket, "put", _key_has("/images/")),
    "put a checkpoint": (Bucket, "put", _key_has("/drafts/")),
    "park": (Ledger, "park", _always),
    "commit": (Ledger, "commit", _always),
    "flush": (Bucket, "put", _key_has("/results/")),
    "forget": (Ledger, "drop_flushed", _always),
}
PRODUCER_ACTS: dict[str, tuple[type, str, When]] = {
    "create batch": (Ledger, "create_batch", _always),
    "put part 0": (Bucket, "put", _key_has("/manifest/part-00000")),
    "put part 1": (Bucket, "put", _key_has("/manifest/part-00001")),
    "first append": (Ledger, "append_jobs", _opens),
    "header": (Bucket, "put", _key_has("/batch.json")),
    "last append": (Ledger, "append_jobs", _closes),
}


#: acts of a worker that is stopped midway
PARKING_ACTS = ("put a checkpoint", "park")


def work(point: str) -> int:
    """Be the real worker with the fake family, up to the point; to the end for an empty one."""
    _set_up(point, WORKER_ACTS)
    if point.endswith(PARKING_ACTS):
        _stop_midway()
    fake_worker.register()
    return fake_worker.run_worker()


def submit(point: str, arguments: list[str]) -> int:
    """Be ``latentfarm submit``, up to the point; to the end for an empty one."""
    _set_up(point, PRODUCER_ACTS)
    return fake_worker.run_command(["submit", *arguments])


def _set_up(point: str, acts: dict[str, tuple[type, str, When]]) -> None:
    if not point:
        return
    moment, _, act = point.partition(" ")
    owner, name, meant = acts[act]
    original = getattr(owner, name)

    def deadly(*args: Any, **options: Any) -> Any:
        hit = meant(*args, **options)
        if hit and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **options)
        if hit and moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


def _stop_midway() -> None:
    """Send SIGTERM to this process once an image of a job has begun."""
    step, sent = Engine.step, Event()

    def stopping(engine: Engine) -> Any:
        result = step(engine)
        if not sent.is_set() and any(isinstance(handle, Lease) and left for handle, left in engine.remaining()):
            # a second one would end it at once
            sent.set()
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    setattr(Engine, "step", stopping)  # noqa: B010 (mypy takes a method for a constant)
