"""The connection to one farm: its settings, its ledger in Redis, its bucket and its doorbell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from latentfarm.ledger import Ledger
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket

if TYPE_CHECKING:
    from celery import Celery


@dataclass(frozen=True)
class Connection:
    """What ``Farm`` and ``Batch`` both need. Thread-safe.

    ``ring`` sends doorbells for a model, as many as its pending jobs need, and returns their number.
    """

    settings: Settings
    ledger: Ledger
    bucket: Bucket
    ring: Callable[[str], int]

    @classmethod
    def open(cls, settings: Settings) -> Connection:
        """Return the connection that the settings describe. Nothing is sent yet.

        Raises:
            InputError: the settings name no Redis or no bucket.
        """
        settings = settings.require()
        ledger = Ledger.connect(settings.redis_url)
        return cls(settings, ledger, Bucket.connect(settings), _Doorbell(ledger, settings.redis_url).ring)


class _Doorbell:
    """Rings for pending jobs. Celery is imported at the first ring, because most commands never ring."""

    def __init__(self, ledger: Ledger, redis_url: str) -> None:
        self._ledger = ledger
        self._redis_url = redis_url

    def ring(self, model: str) -> int:
        from latentfarm import doorbell

        return doorbell.ring(self._ledger.redis, self._app, model, self._ledger.count_pending(model))

    @cached_property
    def _app(self) -> Celery:
        from latentfarm.doorbell import make_app

        return make_app(self._redis_url)
