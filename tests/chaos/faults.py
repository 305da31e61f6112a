"""The kinds of faults and their schedule: the same seed gives the same schedule."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """``kind`` begins ``at_s`` after the start and lasts ``lasts_s``; ``target`` is a worker's number."""

    at_s: float
    kind: str
    target: int
    lasts_s: float = 0.0


@dataclass(frozen=True)
class _Kind:
    """How often, relative to others, and for how long."""

    weight: int
    shortest_s: float = 0.0
    longest_s: float = 0.0


#: how long the shortest stop of a worker lasts: twice the lease of a run
LEASE_S = 3.0

_GAP_S = (0.5, 3.5)
_KILL = "kill -9 a worker"
#: from this share of a run on workers are killed and nothing else happens, to see how fast their jobs run elsewhere
_CALM_FROM = 0.8
_CALM_GAP_S = (6.0, 8.0)

KINDS = {
    _KILL: _Kind(8),
    "stop a worker past its lease": _Kind(3, 2 * LEASE_S, 3 * LEASE_S),
    "SIGTERM a worker": _Kind(3),
    "drain a worker": _Kind(2),
    "black hole for a worker": _Kind(2, 2 * LEASE_S, 4 * LEASE_S),
    "eat 10% of the replies to a worker": _Kind(2, 3, 6),
    "restart Redis": _Kind(1),
    "kill -9 Redis": _Kind(2),
    "freeze Redis": _Kind(1, 15, 15),
    "cut every connection to Redis": _Kind(2),
    "delay Redis by 0.2 s": _Kind(1, 3, 6),
    "Redis: OOM": _Kind(1, 4, 8),
    "Redis: NOPERM": _Kind(1, 4, 8),
    "Redis: MISCONF": _Kind(1, 4, 8),
    "Redis: READONLY": _Kind(1, 3, 6),
    "switch over to the replica": _Kind(1, 1, 4),
    "fail over to the replica": _Kind(1, 1, 4),
    "S3: frozen": _Kind(1, 10, 40),
    "S3: truncated bodies": _Kind(2, 6, 12),
    "S3: errors within 200": _Kind(2, 6, 12),
    "S3: 404 after a put": _Kind(2, 6, 12),
    "S3: clock five minutes off": _Kind(1, 6, 12),
    "S3: 30% 503": _Kind(2, 6, 12),
    "S3: 10% resets": _Kind(1, 6, 12),
    "S3: slow": _Kind(1, 6, 12),
    "S3: down": _Kind(1, 4, 10),
    "kill -9 the producer": _Kind(3),
    "pause batches at once": _Kind(2),
}
#: those in which nothing else begins: they stop everything, or change what Redis is
_ALONE = frozenset(
    {
        "freeze Redis",
        "Redis: READONLY",
        "switch over to the replica",
        "fail over to the replica",
    }
)
#: seconds after one of those until the next fault
_REST_S = 1.0
#: those that a farm without our store, our producer and our commands meets too; the control has no replica
STOCK_KINDS = frozenset(
    kind
    for kind in KINDS
    if not kind.startswith(("S3", "Redis:", "drain", "pause")) and "producer" not in kind and "replica" not in kind
)
#: of one worker only
WORKER_KINDS = frozenset(kind for kind in KINDS if kind.endswith(" worker") or "a worker" in kind)


def seeded(seed: int) -> random.Random:
    """Return the random numbers of a run; they need not be secret."""
    return random.Random(seed)  # noqa: S311


def schedule(seed: int, duration_s: float, workers: int, *, kinds: Collection[str] = frozenset(KINDS)) -> list[Fault]:
    """Return the faults of a run in order: each kind once in a random order, then by their weights, then only kills."""
    chance = seeded(seed)
    names = sorted(kinds)
    first = chance.sample(names, len(names))
    weights = [KINDS[name].weight for name in names]
    faults, at_s = [], 3.0
    while at_s < _CALM_FROM * duration_s:
        name = first.pop() if first else chance.choices(names, weights)[0]
        kind = KINDS[name]
        lasts_s = round(chance.uniform(kind.shortest_s, kind.longest_s), 3)
        faults.append(Fault(round(at_s, 3), name, chance.randrange(workers), lasts_s))
        at_s += chance.uniform(*_GAP_S) + (lasts_s + _REST_S if name in _ALONE else 0)
    while at_s < duration_s:
        faults.append(Fault(round(at_s, 3), _KILL, chance.randrange(workers)))
        at_s += chance.uniform(*_CALM_GAP_S)
    return faults
