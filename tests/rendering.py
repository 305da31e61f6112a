"""A worker's renderer in the test's own process, over the real servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from latentfarm import Farm
from latentfarm.bucket import Bucket
from latentfarm.ledger import Ledger
from latentfarm_worker.engine import Engine
from latentfarm_worker.families import Family
from latentfarm_worker.renderer import Host, Renderer
from latentfarm_worker.trace import Tracer


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
    """Give a renderer with two slots that serves ``mini`` as ``worker-a``, and close it in the end."""
    tracer = Tracer(family)
    made = Renderer(
        ledger=ledger or farm.ledger,
        bucket=bucket or farm.bucket,
        engine=Engine(family, slots=2, on_step=tracer),
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
