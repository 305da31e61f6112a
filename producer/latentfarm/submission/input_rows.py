"""Replace the sources of input images in rows by their digests, and check the images' sizes.

Inputs are read on several threads, ahead of the rows that are yielded, and the order of rows is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import lcm
from typing import Any, NamedTuple

from latentfarm.edit_fields import SOURCE_FIELDS, SOURCE_LIST_FIELDS
from latentfarm.errors import InputError
from latentfarm.https.url_check import is_secret
from latentfarm.inputs.resolver import InputResolver, StoredInput, key_of
from latentfarm.job import Defaults, Row
from latentfarm.limits import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE
from latentfarm.model_facts import ModelFacts
from latentfarm.storage.bucket import Bucket
from latentfarm.submission.prompts import RowError
from latentfarm.submission.prompts.rows import abbreviate

#: inputs that are read at the same time
_THREADS = 8
#: rows that wait for an input while others are read ahead; a row with a data URL has up to a megabyte
_ROWS_AHEAD = 64
_FIELDS = (*SOURCE_FIELDS, *SOURCE_LIST_FIELDS)
_NAMES = frozenset(_FIELDS)
_RESIZE = "write resize: crop, pad or stretch"


class PlacedRow(NamedTuple):
    """A row or its error, its number in the source, and its place for messages."""

    number: int
    place: str
    row: Row | RowError


@dataclass(frozen=True)
class _Waiting:
    """A row and its inputs, which are found or being read, by field."""

    placed: PlacedRow
    inputs: dict[str, list[tuple[str, StoredInput | InputError | Future[StoredInput]]]]

    @property
    def ready(self) -> bool:
        found = (each for entries in self.inputs.values() for _, each in entries)
        return all(not isinstance(each, Future) or each.done() for each in found)


class InputRows:
    """Resolves the inputs of one reading of rows.

    Args:
        resolver: reads, checks and stores inputs.
        bucket: where they are stored; None: they are checked only.
        defaults: fields of rows that do not set them.
        facts: what is known of the model, for its sizes.
    """

    def __init__(
        self, resolver: InputResolver, bucket: Bucket | None, defaults: Defaults, facts: ModelFacts | None
    ) -> None:
        self._resolver = resolver
        self._bucket = bucket
        self._defaults = defaults.given()
        self._shared = _sources_of(defaults)
        self._facts = facts
        self._reading: dict[bytes, Future[StoredInput]] = {}

    def resolve(self, rows: Iterable[PlacedRow]) -> Generator[tuple[int, Row | RowError], None, None]:
        """Yield each row with digests instead of sources, or its error, with its number.

        A row with an image and without a width or height gets that of the image.

        Raises:
            UnavailableError: the store does not answer.
        """
        waiting: deque[_Waiting] = deque()
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="input")
        try:
            for placed in rows:
                inputs = self._begin(pool, placed.row)
                if not inputs and not waiting:
                    yield placed.number, placed.row
                    continue
                waiting.append(_Waiting(placed, inputs))
                while waiting and (waiting[0].ready or len(waiting) == _ROWS_AHEAD):
                    yield self._end(waiting.popleft())
            while waiting:
                yield self._end(waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)
            self._reading.clear()

    def _begin(
        self, pool: ThreadPoolExecutor, row: Row | RowError
    ) -> dict[str, list[tuple[str, StoredInput | InputError | Future[StoredInput]]]]:
        if isinstance(row, RowError):
            return {}
        sources = self._shared if row.model_fields_set.isdisjoint(_NAMES) else {**self._shared, **_sources_of(row)}
        return {name: [(source, self._find(pool, source)) for source in each] for name, each in sources.items()}

    def _find(self, pool: ThreadPoolExecutor, source: str) -> StoredInput | InputError | Future[StoredInput]:
        known = self._resolver.known(source, self._bucket)
        if known is not None:
            return known
        key = key_of(source)
        if key not in self._reading:
            self._reading[key] = pool.submit(self._resolver.resolve, source, self._bucket)
        return self._reading[key]

    def _end(self, waiting: _Waiting) -> tuple[int, Row | RowError]:
        number, place, row = waiting.placed
        if isinstance(row, RowError) or not waiting.inputs:
            return number, row
        found: dict[str, list[StoredInput]] = {}
        problems: list[tuple[str, str]] = []
        for name, entries in waiting.inputs.items():
            for source, each in entries:
                try:
                    found.setdefault(name, []).append(self._result(source, each))
                except InputError as error:
                    problems.append((name, f"{name} {_shorten(source)} {error}"))
        updates: dict[str, Any] = {}
        if not problems:
            updates, problems = self._check_sizes({**self._defaults, **row.given()}, found)
        if problems:
            text = "\n".join(f"{place}: {problem}" for _, problem in problems)
            return number, RowError(text, problems[0][0], row.id)
        for name, inputs in found.items():
            digests = tuple(each.digest for each in inputs)
            updates[name] = digests if name in SOURCE_LIST_FIELDS else digests[0]
        return number, row.model_copy(update=updates)

    def _result(self, source: str, each: StoredInput | InputError | Future[StoredInput]) -> StoredInput:
        if isinstance(each, InputError):
            raise each
        if isinstance(each, StoredInput):
            return each
        # from here on, the resolver knows it
        self._reading.pop(key_of(source), None)
        return each.result()

    def _check_sizes(
        self, fields: dict[str, Any], found: dict[str, list[StoredInput]]
    ) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Return the sides that a row takes from its image, and problems of sizes by field."""
        [image, mask] = [next(iter(found.get(name, ())), None) for name in SOURCE_FIELDS]
        sides = {} if image is None else {"width": image.width, "height": image.height}
        taken: dict[str, Any] = {name: side for name, side in sides.items() if fields.get(name) is None}
        problems = []
        if image is not None and (bad := [text for name, side in taken.items() if (text := self._misfit(name, side))]):
            width, height = (self._nearest(image, side) for side in (image.width, image.height))
            cure = f"write width and height, such as {width} and {height}, and resize: crop, pad or stretch"
            problems.append(f"image {_shorten(fields['image'])} is {_size(image)}, and {' and '.join(bad)}; {cure}")
        elif image is not None:
            problems += self._mismatches("image", fields, [image], {**fields, **taken})
        if image is not None and mask is not None and mask[1:] != image[1:]:
            problems.append(
                f"mask_image {_shorten(fields['mask_image'])} is {_size(mask)}, and its image is {_size(image)}; "
                "make the mask in the size of the image"
            )
        problems += self._mismatches("control_image", fields, found.get("control_image", []), {**fields, **taken})
        return taken, [(problem.partition(" ")[0], problem) for problem in problems]

    def _mismatches(
        self, name: str, fields: dict[str, Any], inputs: list[StoredInput], sized: dict[str, Any]
    ) -> Iterator[str]:
        """Yield a problem for each input of another size than the job's, if nothing resizes it."""
        native = (self._facts.native_width, self._facts.native_height) if self._facts else (None, None)
        width, height = sized.get("width") or native[0], sized.get("height") or native[1]
        if fields.get("resize") is not None or width is None or height is None:
            return
        for source, found in zip(_listed(fields.get(name)), inputs, strict=True):
            if (found.width, found.height) != (width, height):
                cure = "or remove width and height" if name == "image" else "or an image of that size"
                yield f"{name} {_shorten(source)} is {_size(found)}, and the job is {width}x{height}; {_RESIZE}, {cure}"

    def _misfit(self, name: str, side: int) -> str:
        """Return why the model cannot make an image with this side; empty if it can."""
        if not MIN_SIDE <= side <= MAX_SIDE:
            return f"its {name} is not in {MIN_SIDE} to {MAX_SIDE}"
        return f"its {name} is not a multiple of {self._multiple}" if side % self._multiple else ""

    @property
    def _multiple(self) -> int:
        return lcm(SIDE_MULTIPLE, self._facts.pixel_multiple) if self._facts else SIDE_MULTIPLE

    def _nearest(self, image: StoredInput, side: int) -> int:
        """Return a side that the model can make, of about the image's shape."""
        scale = max(min(1.0, MAX_SIDE / max(image[1:])), MIN_SIDE / min(image[1:]))
        multiple = self._multiple
        near = round(side * scale / multiple) * multiple
        return max(-(-MIN_SIDE // multiple) * multiple, min(near, MAX_SIDE // multiple * multiple))


def _sources_of(fields: Defaults) -> dict[str, tuple[str, ...]]:
    """Return the sources of a row, or of defaults, by field."""
    given = ((name, getattr(fields, name)) for name in _FIELDS)
    return {name: _listed(value) for name, value in given if value is not None}


def _listed(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value or ()


def _size(found: StoredInput) -> str:
    return f"{found.width}x{found.height}"


def _shorten(source: str) -> str:
    # the password of a URL is not repeated
    return "(a URL)" if source.startswith("http") and is_secret(source) else abbreviate(source)
