"""How many images of a worker wait for the bucket or the ledger: whoever leases and whoever waits reads it."""

from __future__ import annotations

from threading import Condition


class Backlog:
    """Counts images from the end of their steps to their commit. Thread-safe.

    Args:
        changed: notified whenever a count falls.

    Attributes:
        changed: the condition, whose lock guards the counts.
        images: images that are not committed yet.
        storing: those of them that are not in the bucket yet.
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

    def end_storing(self) -> None:
        """Count an image that is in the bucket, or never will be."""
        with self.changed:
            self.storing -= 1
            self.changed.notify_all()

    def leave(self, images: int) -> None:
        """Forget images that are committed, or never will be."""
        with self.changed:
            self.images -= images
            self.changed.notify_all()
