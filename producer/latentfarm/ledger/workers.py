"""What the ledger knows of each worker: what it serves, on which device, and how busy it was lately."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis

from latentfarm.ledger.records import decode

#: as in ``beat.lua``
WINDOW_MS, WINDOWS = 30_000, 4


@dataclass(frozen=True)
class WorkerRecord:
    """A worker that was seen in the last 15 seconds. Times are milliseconds of Redis ``TIME``.

    ``since_ms`` is when it was first seen under this name, whatever restarts there were; ``images`` were committed
    since. ``images_per_s`` and ``busy_share``, its engine's seconds over those on the clock, 0 to 1, are of the last 90
    to 120 seconds, or of as long as it is here; None before it has measured anything. A step counts when it ends.
    """

    name: str
    model: str
    device: str
    device_name: str
    dtype: str
    slots: int
    since_ms: int
    seen_ms: int
    images: int
    images_per_s: float | None
    busy_share: float | None


def read_workers(client: redis.Redis, model: str, *, seen_since_ms: int) -> list[WorkerRecord]:
    """Return the workers of a model that were seen since a time, by name."""
    found: Any = client.zrangebyscore(f"lf:workers:{model}", seen_since_ms, "+inf", withscores=True)
    seen = {decode(worker): int(score) for worker, score in found}
    pipe = client.pipeline(transaction=False)
    for worker in sorted(seen):
        pipe.hgetall(f"lf:worker:{worker}")
    hashes = [{decode(name): decode(value) for name, value in facts.items()} for facts in pipe.execute()]
    # one that leaves at this moment has no hash any more
    return [
        _record(worker, model, seen[worker], facts) for worker, facts in zip(sorted(seen), hashes, strict=True) if facts
    ]


def _record(name: str, model: str, seen_ms: int, facts: Mapping[str, str]) -> WorkerRecord:
    images, busy_s, wall_s = (_recent(facts, figure, seen_ms // WINDOW_MS) for figure in ("images", "busy_s", "wall_s"))
    return WorkerRecord(
        name=name,
        model=model,
        device=facts.get("device", ""),
        device_name=facts.get("device_name", ""),
        dtype=facts.get("dtype", ""),
        slots=int(facts.get("slots", 0)),
        since_ms=int(facts["since"]),
        seen_ms=seen_ms,
        images=round(float(facts.get("images", 0))),
        images_per_s=images / wall_s if wall_s else None,
        # a step that began before the oldest window counts in it as a whole
        busy_share=min(1.0, busy_s / wall_s) if wall_s else None,
    )


def _recent(facts: Mapping[str, str], figure: str, window: int) -> float:
    """Return the sum of a figure over the windows that are not too old."""
    return sum(
        float(facts.get(f"{figure}:{place}", 0))
        for place in range(WINDOWS)
        if window - WINDOWS < int(facts.get(f"window:{place}", -WINDOWS)) <= window
    )
