"""How many images of a worker wait for the bucket or the ledger: who leases, and who waits for the end, reads it."""

from __future__ import annotations

from threading import Condition


class Backlog:
    """Counts images from the end of their steps until the ledger has recorded what became of them. Thread-safe.

    Args:
        changed: notified whenever a count falls.

    Attributes:
        changed: the condition, whose lock guards the counts.
        images: images that are not committed or parked yet.
        storing: those of them that are to be committed, and are not in the bucket yet.
    """

    def __init__(self, changed: Condition) -> None:
        self.changed = changed
        self.images = 0
        self.storing = 0

    def enter(self) -> None:
        """Count an image that is to be stored."""
        with self.changed:
            self.images += 1
            self.storing += 1

    def enter_parked(self, images: int) -> None:
        """Count images that are to be parked."""
        with self.changed:
            self.images += images

    def end_storing(self) -> None:
        """Count an image that is in the bucket, or never will be."""
        with self.changed:
            self.storing -= 1
            self.changed.notify_all()

    def leave(self, images: int) -> None:
        """Forget images that are recorded, or never will be."""
        with self.changed:
            self.images -= images
            self.changed.notify_all()
