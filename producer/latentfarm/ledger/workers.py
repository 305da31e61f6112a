"""Workers in the ledger: which are alive, what they run on, and how fast they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from latentfarm.ledger.announced_facts import AnnouncedFacts
from latentfarm.ledger.constants import SCHEMA_KEY, WINDOW_MS, WINDOWS
from latentfarm.ledger.records import decode
from latentfarm.ledger.redis_errors import translate_errors
from latentfarm.model_facts import ModelFacts

_ALIVE_MS = 15_000
_FORGOTTEN_S = 60


@dataclass(frozen=True)
class HeartbeatReply:
    """``pending`` jobs of the worker's model wait for a lease; ``drain``: the worker is to take no more, and end."""

    pending: int
    drain: bool


@dataclass(frozen=True)
class WorkerRecord:
    """A worker that sent a heartbeat in the last 15 seconds. Times are milliseconds of Redis ``TIME``.

    ``since_ms`` is its first heartbeat under this name; restarts do not change it. ``images`` were committed since
    then. ``images_per_s`` and ``busy_share`` (engine seconds / seconds, 0 to 1) cover the last 90 to 120 seconds; None
    before the first measurement. A denoising step counts when it ends. While it is ``draining``, it takes no more jobs,
    or is requested to.
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
    draining: bool = False


@dataclass(frozen=True)
class ModelRecord:
    """A model that ``workers`` serve, or for which ``pending`` jobs wait for a lease.

    ``facts`` are those that its workers have announced, None if they have not.
    """

    name: str
    workers: tuple[WorkerRecord, ...]
    pending: int
    facts: ModelFacts | None = None


@dataclass(frozen=True)
class Throughput:
    """Sums over all workers of a model.

    ``work`` counts pixels x steps x U-Net rows (two rows with guidance), which makes jobs of any size comparable.
    ``busy_s`` is the engine time of that work, in seconds; ``size_bytes`` and ``pixels`` those of the images.
    """

    images: float
    work: float
    busy_s: float
    size_bytes: float
    pixels: float

    def gpu_hours(self, work: float) -> float | None:
        """Return the GPU hours of so much work, None without measurements."""
        return work * self.busy_s / self.work / 3600 if self.work and self.busy_s else None


class WorkerRegistry(AnnouncedFacts):
    """The workers of all models."""

    def heartbeat(
        self,
        model: str,
        worker: str,
        measured: Mapping[str, float] | None = None,
        *,
        about: Mapping[str, str | int] | None = None,
    ) -> HeartbeatReply:
        """Record that a worker is alive.

        Args:
            model: alias of the model.
            worker: name of the worker.
            measured: fields of ``Throughput`` and ``wall_s``, each since the last heartbeat.
            about: device, device_name, dtype, slots and draining of ``WorkerRecord``; ``facts``, those of the model as
                JSON, and ``adapters``, the names of its adapters as JSON, which are kept by model.
        """
        facts = dict(about or {})
        args: list[Any] = [model, worker, _FORGOTTEN_S, len(facts)]
        for name, fact in facts.items():
            args += [name, fact]
        for name, value in (measured or {}).items():
            args += [name, repr(float(value))]
        pending, drain = self.run(self.scripts.heartbeat, *args)
        return HeartbeatReply(int(pending), bool(drain))

    def request_drain(self, worker: str) -> bool:
        """Let a worker take no more jobs, and end when it has ended those it has; return False if it is unknown.

        It learns of it at its next heartbeat.
        """
        return bool(self.run(self.scripts.request_drain, worker))

    def sign_off(self, model: str, worker: str) -> None:
        """Remove a worker that ends."""
        self.run(self.scripts.sign_off, model, worker)

    def count_pending(self, model: str) -> int:
        """Return how many jobs of a model wait for a lease, as ``heartbeat`` does."""
        return self.pending_jobs().get(model, 0)

    def pending_jobs(self) -> dict[str, int]:
        """Return how many jobs wait for a lease, by model; without models of which none does."""
        with translate_errors(self.where):
            pipe = self.redis.pipeline(transaction=False)
            pipe.hgetall("{lf}:pending")
            pipe.get(SCHEMA_KEY)
            found, schema = pipe.execute()
        self.check_schema(schema)
        return {decode(model): int(count) for model, count in found.items()}

    def throughput(self, model: str) -> Throughput | None:
        """Return the sums over the workers of a model; None before the first measurement."""
        with translate_errors(self.where):
            found = self.redis.hgetall(f"{{lf}}:throughput:{model}")
        figures = {decode(key): float(value) for key, value in found.items()}
        if not figures:
            return None
        # steps are reported before the first image is
        return Throughput(**{each.name: figures.get(each.name, 0.0) for each in fields(Throughput)})

    def active_batches(self, model: str) -> list[str]:
        """Return the names of the batches of a model whose jobs may be leased, paused ones included."""
        with translate_errors(self.where):
            return sorted(map(decode, self.redis.smembers(f"{{lf}}:active:{model}")))

    def workers(self, model: str) -> list[str]:
        """Return the names of the workers of a model that are alive."""
        with translate_errors(self.where):
            return sorted(self._alive(model))

    def worker_records(self, model: str | None = None) -> list[WorkerRecord]:
        """Return the workers that are alive, of one model or of all, by model and name."""
        with translate_errors(self.where):
            models = [model] if model is not None else sorted(map(decode, self.redis.zrange("{lf}:models", 0, -1)))
            return [record for name in models for record in self._records(name)]

    def model_records(self) -> list[ModelRecord]:
        """Return the models that have workers that are alive, or jobs that wait for a lease, by name."""
        pending, workers, facts = self.pending_jobs(), self.worker_records(), self.all_model_facts()
        return [
            ModelRecord(
                name, tuple(worker for worker in workers if worker.model == name), pending.get(name, 0), facts.get(name)
            )
            for name in sorted({*pending, *(worker.model for worker in workers)})
        ]

    def _alive(self, model: str) -> dict[str, int]:
        """Return the last heartbeat, in milliseconds, of each worker that is alive."""
        since = self.now_us() // 1000 - _ALIVE_MS
        found: Any = self.redis.zrangebyscore(f"{{lf}}:workers:{model}", since, "+inf", withscores=True)
        return {decode(worker): int(score) for worker, score in found}

    def _records(self, model: str) -> list[WorkerRecord]:
        seen = sorted(self._alive(model).items())
        pipe = self.redis.pipeline(transaction=False)
        for worker, _ in seen:
            pipe.hgetall(f"{{lf}}:worker:{worker}")
        hashes = [{decode(name): decode(value) for name, value in facts.items()} for facts in pipe.execute()]
        # a worker that signs off at this moment has no hash any more
        return [
            _record(worker, model, seen_ms, facts)
            for (worker, seen_ms), facts in zip(seen, hashes, strict=True)
            if facts
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
        # a step that began before the oldest window counts in full
        busy_share=min(1.0, busy_s / wall_s) if wall_s else None,
        draining="1" in (facts.get("draining"), facts.get("drain")),
    )


def _recent(facts: Mapping[str, str], figure: str, window: int) -> float:
    """Return the sum of a figure over the last ``WINDOWS`` windows."""
    return sum(
        float(facts.get(f"{figure}:{place}", 0))
        for place in range(WINDOWS)
        if window - WINDOWS < int(facts.get(f"window:{place}", -WINDOWS)) <= window
    )
