"""Parts whose jobs have ended: their receipts on the way to the bucket, and what lost leases may have left there."""

from __future__ import annotations

import redis

from latentfarm.ledger.lua_scripts import Scripts
from latentfarm.ledger.records import decode
from latentfarm.ledger.redis_errors import translate_errors

#: parts that are looked through in one round
_LEFTOVERS_LIMIT = 20


class FlushQueue:
    """What ``Ledger`` knows of parts; a base of its own, for only the flush and the housekeeper ask."""

    redis: redis.Redis
    where: str
    scripts: Scripts

    def full_parts(self) -> list[tuple[str, int]]:
        """Return (batch, part) whose jobs have all ended and whose receipts wait for the bucket."""
        with translate_errors(self.where):
            return sorted(_part_named(name) for name in self.redis.smembers("lf:flush"))

    def drop_flushed(self, batch: str, part: int, *, retries: int) -> bool:
        """Forget the receipts and errors of a part that lies in the bucket, as it was at the batch's ``retries``.

        Returns False, and forgets nothing, if jobs of it run again meanwhile.
        """
        with translate_errors(self.where):
            return int(self.scripts.drop_flushed(args=[batch, part, retries])) >= 0

    def had_returns(self, batch: str, part: int) -> bool:
        """Return whether a lease on a job of the part ended without a commit."""
        with translate_errors(self.where):
            return bool(self.redis.sismember(f"lf:returned:{batch}", str(part)))

    def note_leftovers(self, batch: str, part: int) -> None:
        """Have a part looked through, some time from now, for an image that nobody wants."""
        with translate_errors(self.where):
            self.scripts.note(args=[batch, part])

    def leftovers(self, *, age_s: float) -> tuple[int, list[tuple[str, int]]]:
        """Return (batch, part) in whose folders unwanted images may lie since that long, and the time of that note, ms.

        For as long again nobody else is told of them.
        """
        with translate_errors(self.where):
            noted_ms, *names = self.scripts.leftovers(args=[int(age_s * 1000), _LEFTOVERS_LIMIT])
        return int(noted_ms), [_part_named(name) for name in names]

    def tidied(self, batch: str, part: int, *, noted_ms: int) -> None:
        """Forget what ``leftovers`` told of a part, unless it was noted again since."""
        with translate_errors(self.where):
            self.scripts.tidied(args=[batch, part, noted_ms])


def _part_named(name: bytes | str) -> tuple[str, int]:
    batch, _, part = decode(name).rpartition("/")
    return batch, int(part)
