"""A render loop in the test's own process with the real servers, and ways to slow it down or make it fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import torch

from latentfarm import Batch, Farm, UnavailableError
from latentfarm.ledger import Ledger
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import images_prefix
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.models import Family
from latentfarm_worker.safety.gate import SafetyGate
from latentfarm_worker.scoring.scorers import Scorers
from latentfarm_worker.service.hooks import WorkerHooks
from latentfarm_worker.service.image_review import ImageReview
from latentfarm_worker.service.render_loop import MAX_BACKLOG, RenderLoop

SMALL = {"width": 64, "height": 64, "num_inference_steps": 3, "scheduler": "euler"}


def submit(farm: Farm, count: int, **fields: Any) -> Batch:
    """Submit a batch of small jobs."""
    return farm.submit([{"prompt": f"p{n}", **SMALL, **fields} for n in range(count)], batch="b")


def images(farm: Farm) -> list[str]:
    """Return the keys of the stored images of the batch of ``submit``."""
    return list(farm.bucket.keys(images_prefix("b", 0)))


class FaultyBucket(Bucket):
    """The real bucket, but puts of images fail while ``refuses`` is true; ``refused`` is set by the first failure.

    With ``folder`` it is other objects that fail.
    """

    def __init__(self, real: Bucket, refuses: Callable[[], bool], folder: str = "images") -> None:
        super().__init__(real.name, where=real.where, open_session=lambda: (real.client, real.credentials))
        self.refuses = refuses
        self._folder = folder
        self.refused = Event()

    def put(self, key: str, body: bytes, *, content_type: str = "application/octet-stream") -> None:
        if f"/{self._folder}/" in key and self.refuses():
            self.refused.set()
            raise UnavailableError("503 Slow Down")
        super().put(key, body, content_type=content_type)


class Paced:
    """A family that calls ``before_step``, which may block, before each step."""

    def __init__(self, family: Family, before_step: Callable[[], None]) -> None:
        self._family = family
        self._before_step = before_step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def predict(self, *inputs: Any) -> torch.Tensor:
        self._before_step()
        return self._family.predict(*inputs)


@contextmanager
def render_loop(
    farm: Farm,
    family: Family,
    bucket: Bucket | None = None,
    *,
    ledger: Ledger | None = None,
    hooks: WorkerHooks | None = None,
    lease_ttl_s: float = 30,
    slots: int = 2,
    max_backlog: int = MAX_BACKLOG,
    safety: SafetyGate | None = None,
    scorers: Scorers | None = None,
) -> Iterator[RenderLoop]:
    """Provide a render loop that serves ``mini`` as ``worker-a``, and close it afterwards."""
    loop = RenderLoop(
        ledger=ledger or farm.ledger,
        bucket=bucket or farm.bucket,
        engine=Engine(family, slots=slots),
        model="mini",
        worker="worker-a",
        lease_ttl_s=lease_ttl_s,
        max_backlog=max_backlog,
        review=ImageReview(safety, scorers),
        hooks=hooks,
    )
    try:
        yield loop
    finally:
        loop.close()
