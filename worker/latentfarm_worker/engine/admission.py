"""The admission policy: which waiting images begin, and how many rows a batch has. It imports no torch.

Images of one latent shape and cohort run together. An image with guidance takes two rows of the batch, one without
takes one row. Images of another shape or cohort wait until the batch is empty; one with guidance waits for two rows. To
prevent starvation, at most one full batch of later images may overtake an image.

Urgent images begin before all others, first the interactive ones among them, and nothing overtakes them. In a full
batch of their key they take the rows of other images, which are paused and go on later: none is dropped, and none
begins again. From a batch of another key the other images are taken, and go on later.

A cohort keeps a job that had trouble from others: an error or a crash then shows whose it is. Most images have none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import takewhile
from typing import Generic, NamedTuple, Protocol, TypeVar

from latentfarm_worker.latent_shape import LatentShape


class BatchKey(NamedTuple):
    """What the images of a batch have in common."""

    shape: LatentShape
    cohort: Hashable = None


class Admissible(Protocol):
    """A waiting image.

    ``held``: it does not begin yet, and keeps no other image waiting. ``skipped`` counts the later images that began
    before it. ``begun``: it goes on, from a checkpoint or with a second stage. Each interactive image is urgent.
    """

    shape: LatentShape
    cohort: Hashable
    interactive: bool
    urgent: bool
    held: bool
    skipped: int

    @property
    def begun(self) -> bool:
        """Whether the image has work behind it that is not repeated."""

    @property
    def rows_needed(self) -> int:
        """Return the rows that the image takes when it begins: 1 or 2."""


T = TypeVar("T", bound=Admissible)


class AdmissionQueue(Generic[T]):
    """The waiting images in their order, and the slots of each shape.

    A slot is room for one guided image of the ``native`` shape, so a full batch of that shape has ``2 * slots`` rows.
    Larger shapes get fewer rows, in inverse proportion to their area, and never less than 2.

    Iteration and the counts are thread-safe. The methods that change the queue belong to the engine's thread.
    """

    def __init__(self, *, slots: int, native: LatentShape) -> None:
        self._slots = slots
        self._native = native
        self._waiting: deque[T] = deque()
        #: the slots of shapes that ran out of memory
        self._limits: dict[LatentShape, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        # a copy, since other threads iterate while the engine's thread changes the queue
        return iter(tuple(self._waiting))

    def append(self, image: T) -> None:
        """Add an image behind those that are at least as urgent: an ordinary one at the end."""
        behind = (at for at, each in enumerate(self._waiting) if _urgency(each) < _urgency(image))
        self._waiting.insert(next(behind, len(self._waiting)), image)

    def resume(self, image: T) -> None:
        """Add an image that goes on: before those that have not begun, but for more urgent ones."""
        ahead = ((_urgency(each), each.begun) >= (_urgency(image), True) for each in self._waiting)
        self._waiting.insert(next((at for at, is_ahead in enumerate(ahead) if not is_ahead), len(self._waiting)), image)

    def prepend(self, images: Iterable[T]) -> None:
        """Add images in their order, before those that are not more urgent."""
        # sorting keeps the order of equals
        ordered = sorted((*images, *self._waiting), key=_urgency, reverse=True)
        self._waiting = deque(ordered)

    def remove(self, image: T) -> None:
        """Remove a waiting image.

        Raises:
            ValueError: the image does not wait here.
        """
        self._waiting.remove(image)

    def pop(self) -> T:
        """Remove and return the first image."""
        return self._waiting.popleft()

    def clear(self) -> None:
        """Remove every image."""
        self._waiting.clear()

    # -- capacity --------------------------------------------------------------------------------------------

    def max_slots(self, shape: LatentShape) -> int:
        """Return the slots of a shape: all of them, unless it ran out of memory."""
        return self._limits.get(shape, self._slots)

    def max_rows(self, shape: LatentShape) -> int:
        """Return the rows of a full batch."""
        slots = self.max_slots(shape)
        return max(2, min(2 * slots, 2 * slots * self._native.area // shape.area))

    def free_slots(self, rows_in_use: int, *, urgent: bool = False, rows_of_image: int = 2) -> int:
        """Return how many more images of the native shape, of so many rows, fit beside the waiting ones.

        Images that are held take no room. ``urgent``: beside those that an urgent image has before it.
        """
        before = (image.rows_needed for image in self if not image.held and (image.urgent or not urgent))
        taken = rows_in_use + sum(before)
        return max(0, (2 * self.max_slots(self._native) - taken) // rows_of_image)

    def reduce(self, shape: LatentShape, rows: int) -> int:
        """Halve the slots of a shape for good until a full batch has less than ``rows`` rows; return the slots.

        ``rows`` must be greater than 2.
        """
        while self.max_rows(shape) >= rows:
            self._limits[shape] = self.max_slots(shape) // 2
        return self.max_slots(shape)

    def restore(self, shape: LatentShape, slots: int) -> None:
        """Give a shape back the slots that it had before a job took its memory."""
        if slots > self.max_slots(shape):
            self._limits[shape] = slots

    # -- order -----------------------------------------------------------------------------------------------

    def next_key(self, running: BatchKey | None) -> BatchKey | None:
        """Return the key of the next images to begin: that of the running ones, else that of the first image.

        None if nothing waits, or only images that are held.
        """
        first = self.first()
        return None if first is None else running or _key_of(first)

    def first(self) -> T | None:
        """Return the first image that is not held."""
        return next((image for image in self if not image.held), None)

    def urgent_key(self) -> BatchKey | None:
        """Return the key of the first image that is not held if it is urgent."""
        first = self.first()
        return _key_of(first) if first is not None and first.urgent else None

    def urgent_rows(self, key: BatchKey) -> int:
        """Return the rows of the urgent images of a key that are the first to begin."""
        first = takewhile(lambda image: image.urgent and _key_of(image) == key, self._waiting)
        return sum(image.rows_needed for image in first)

    def next_images(
        self, key: BatchKey, *, rows: int, free: int, reserve: Callable[[T], bool] = lambda _: True
    ) -> list[T]:
        """Return the images that begin now: those of the batch's key that fit into its ``free`` rows, in order.

        They stay in the queue until ``remove``. A single free row goes to the first image that needs no more. An image
        that ``rows`` others have overtaken keeps all later images waiting, until it fits or the batch is empty and
        takes its key. So does an urgent image from the start.

        ``reserve`` is called with each image that could begin, and returns whether there is room for its adapters.
        """
        starting: list[T] = []
        overtaken: list[T] = []
        for image in self._waiting:
            if image.held:
                continue
            fits = _key_of(image) == key and image.rows_needed <= free
            if fits and any(each.skipped >= rows for each in overtaken):
                break
            if not fits or not reserve(image):
                if free and image.skipped < rows and not image.urgent:
                    overtaken.append(image)
                    continue
                break
            free -= image.rows_needed
            starting.append(image)
            for other in overtaken:
                other.skipped += 1
        return starting


def _key_of(image: Admissible) -> BatchKey:
    return BatchKey(image.shape, image.cohort)


def _urgency(image: Admissible) -> int:
    return image.urgent + image.interactive
