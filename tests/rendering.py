"""A worker's renderer in the test's own process, over the real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from latentfarm import Farm
from latentfarm.bucket import Bucket
from latentfarm.ledger import Ledger
from latentfarm_worker.engine import Engine
from latentfarm_worker.families import Family
from latentfarm_worker.renderer import Host, Renderer
from latentfarm_worker.rows import Shape
from latentfarm_worker.trace import Tracer


def full_batch(family: Family, shape: Shape, rows: int, *, on_call: Callable[[], None]) -> tuple[int, ...]:
    """Have an engine call its model with the full batch only, and not before there is something to render."""
    del family, shape, on_call
    return (rows,)


@contextmanager
def renderer(
    farm: Farm,
    family: Family,
    bucket: Bucket | None = None,
    *,
    ledger: Ledger | None = None,
    host: Host | None = None,
    lease_s: float = 30,
) -> Iterator[Renderer]:
    """Give a renderer with two slots that serves ``mini`` as ``worker-a``, and close it in the end.

    Its model is called for steps of jobs only: whoever holds a step up knows which.
    """
    tracer = Tracer(family)
    made = Renderer(
        ledger=ledger or farm.ledger,
        bucket=bucket or farm.bucket,
        engine=Engine(family, slots=2, row_counts=full_batch, on_step=tracer),
        tracer=tracer,
        model="mini",
        worker="worker-a",
        lease_s=lease_s,
        host=host,
    )
    try:
        yield made
    finally:
        made.close()
