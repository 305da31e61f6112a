"""The preference set of a batch: pairs of images of one prompt, of which its users prefer the first.

Jobs with the same prompt and negative prompt are a group. Of two images of a group, one is preferred if it is picked
and the other rejected; or, unless they are that the other way round, if both are rated and it has more stars. An image
without a decision is in no pair: nothing is known about it.

Two forms: ``preference`` has the columns ``prompt``, ``chosen`` and ``rejected``, the latter two as images of Hugging
Face's ``datasets``. ``pickapic`` has those of Pick-a-Pic, ``caption``, ``jpg_0``, ``jpg_1`` and ``label_0``, which
diffusers' ``train_diffusion_dpo.py`` and ``train_diffusion_dpo_sdxl.py`` (examples/research_projects/diffusion_dpo) and
the code of the Diffusion-DPO paper (SalesforceAIResearch/DiffusionDPO, train.py) read by these names. ``jpg_0`` is the
chosen one, so ``label_0`` is 1; as there, the bytes may be of any format that Pillow reads.
"""

from __future__ import annotations

import io
import json
import math
import sqlite3
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import groupby
from typing import Any, Literal, NamedTuple

from latentfarm.errors import InputError
from latentfarm.fetch.tables import require_parquet
from latentfarm.parallel import ordered_parallel_map
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.parallel_get import ParallelReader, parallel_reader
from latentfarm.storage.pick_state import Pick

PreferenceForm = Literal["preference", "pickapic"]
PREFERENCE_FORMS: tuple[PreferenceForm, ...] = ("preference", "pickapic")
PreferenceImages = Literal["keys", "bytes"]
PREFERENCE_IMAGES: tuple[PreferenceImages, ...] = ("keys", "bytes")

#: pairs of one group. A hundred picked and a hundred rejected images of a prompt would be 10,000 pairs of 200 images
MAX_GROUP_PAIRS = 100
#: rows and bytes of images of a row group, which is held in memory; a row more may exceed the bytes
_GROUP_ROWS, _GROUP_BYTES = 1_000, 16 * 1024 * 1024
#: threads that read images; two pairs are read ahead for each
_THREADS = 4
_CACHE_KIB = 4_000


@dataclass(frozen=True)
class PreferenceOptions:
    """How a preference set is written.

    ``images``: ``bytes`` writes those of the images; ``keys`` their keys in the bucket only.
    """

    images: PreferenceImages = "keys"
    form: PreferenceForm = "preference"

    def __post_init__(self) -> None:
        for value, known in ((self.images, PREFERENCE_IMAGES), (self.form, PREFERENCE_FORMS)):
            if value not in known:
                raise InputError(f"{value!r} is unknown; write one of {', '.join(known)}")
        if self.form == "pickapic" and self.images == "keys":
            raise InputError("the form pickapic has the bytes of images; write images bytes")
        require_parquet("a preference set is Parquet")


class _Rated(NamedTuple):
    """An image about which something was decided."""

    job: int
    key: str
    sha256: str
    pick: str
    rating: int


class _Pair(NamedTuple):
    prompt: str
    negative_prompt: str
    chosen: _Rated
    rejected: _Rated


def preference_set(
    bucket: Bucket, results: Iterable[dict[str, Any]], options: PreferenceOptions
) -> Generator[bytes, None, None]:
    """Yield the pieces of a Parquet file with the pairs of a batch, in order of their groups' first jobs.

    Memory is bounded by a row group, however many images were decided about.

    Args:
        bucket: the store of the images.
        results: those of jobs about whose images something was decided, by rising index.
        options: how it is written.

    Raises:
        UnavailableError: an image does not match its receipt, or the store does not answer.
    """
    table = _Table(options.form)
    with closing(_pairs(results)) as pairs:
        if options.images == "keys":
            for pair in pairs:
                yield from table.add(pair, b"", b"")
        else:
            with (
                parallel_reader(bucket) as read,
                closing(ordered_parallel_map(pairs, _reader(read), threads=_THREADS, group=1)) as found,
            ):
                for pair, (chosen, rejected) in found:
                    yield from table.add(pair, chosen, rejected)
    yield from table.end()


def _reader(read: ParallelReader) -> Any:
    def both(pair: _Pair) -> tuple[bytes, bytes]:
        return read(pair.chosen.key, pair.chosen.sha256), read(pair.rejected.key, pair.rejected.sha256)

    return both


# -- pairs -----------------------------------------------------------------------------------------------------------


def _pairs(results: Iterable[dict[str, Any]]) -> Generator[_Pair, None, None]:
    """Yield the pairs of all groups. Images are grouped in a temporary file."""
    # an empty path names a temporary database: cached in memory, spilled to an unnamed file
    with closing(sqlite3.connect("", isolation_level=None, check_same_thread=False)) as database:
        database.execute("PRAGMA journal_mode=OFF")
        database.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        database.execute("CREATE TABLE images (prompts BLOB, position INTEGER, fields TEXT)")
        database.execute("BEGIN")
        rows = map(_row_of, results)
        database.executemany("INSERT INTO images VALUES (?, ?, ?)", (row for row in rows if row is not None))
        ordered = database.execute(
            "SELECT prompts, fields FROM images ORDER BY MIN(position) OVER (PARTITION BY prompts), position"
        )
        for _, group in groupby(ordered, key=lambda row: row[0]):
            fields = (json.loads(text) for _, text in group)
            yield from _pairs_of(fields)


def _row_of(result: dict[str, Any]) -> tuple[bytes, int, str] | None:
    pick, rating = result.get("pick"), result.get("rating")
    if not (pick or rating):
        return None
    request = result["request"]
    prompts = request.get("prompt", ""), request.get("negative_prompt") or ""
    digest = blake2b("\0".join(prompts).encode(), digest_size=16).digest()
    image = _Rated(result["index"], result["key"], result["sha256"], pick or "", rating or 0)
    return digest, result["index"], json.dumps([*prompts, *image])


def _pairs_of(group: Iterable[list[Any]]) -> Iterator[_Pair]:
    """Yield the pairs of a group, at most ``MAX_GROUP_PAIRS``, such that its images are used about equally often."""
    classes: dict[tuple[str, int], list[_Rated]] = {}
    prompts = "", ""
    for prompt, negative_prompt, *fields in group:
        prompts, image = (prompt, negative_prompt), _Rated(*fields)
        found = classes.setdefault((image.pick, image.rating), [])
        if len(found) < MAX_GROUP_PAIRS:
            found.append(image)
    ordered = [
        _all_pairs(classes[better], classes[worse])
        for better in classes
        for worse in classes
        if is_better(better, worse)
    ]
    for _, (chosen, rejected) in zip(range(MAX_GROUP_PAIRS), _in_turns(ordered), strict=False):
        yield _Pair(*prompts, chosen, rejected)


def is_better(one: tuple[str, int], other: tuple[str, int]) -> bool:
    """Return whether an image of this pick and rating is preferred to another; an empty text and 0 are none."""
    if (one[0], other[0]) == (Pick.PICKED, Pick.REJECTED):
        return True
    if (one[0], other[0]) == (Pick.REJECTED, Pick.PICKED):
        return False
    return one[1] > other[1] > 0


def _all_pairs(ones: list[_Rated], others: list[_Rated]) -> Iterator[tuple[_Rated, _Rated]]:
    """Yield each pair once, such that the first ones have all images before any image has two more than another."""
    period = math.lcm(len(ones), len(others))
    for at in range(len(ones) * len(others)):
        yield ones[at % len(ones)], others[(at + at // period) % len(others)]


def _in_turns(sources: list[Iterator[tuple[_Rated, _Rated]]]) -> Iterator[tuple[_Rated, _Rated]]:
    while sources:
        left = []
        for source in sources:
            found = next(source, None)
            if found is not None:
                yield found
                left.append(source)
        sources = left


# -- Parquet ---------------------------------------------------------------------------------------------------------


def _text(name: str) -> tuple[str, str, dict[str, str]]:
    return name, "string", {"dtype": "string", "_type": "Value"}


def _number(name: str, kind: str) -> tuple[str, str, dict[str, str]]:
    return name, kind, {"dtype": kind, "_type": "Value"}


#: name, Arrow type and feature of ``datasets`` of each column
_COLUMNS: Mapping[PreferenceForm, tuple[tuple[str, str, dict[str, str]], ...]] = {
    "preference": (
        _text("prompt"),
        ("chosen", "image", {"_type": "Image"}),
        ("rejected", "image", {"_type": "Image"}),
        _text("negative_prompt"),
        _number("chosen_index", "int64"),
        _number("rejected_index", "int64"),
    ),
    "pickapic": (
        _text("caption"),
        # the scripts open the bytes themselves: an image of `datasets` would reach them decoded
        ("jpg_0", "binary", {"dtype": "binary", "_type": "Value"}),
        ("jpg_1", "binary", {"dtype": "binary", "_type": "Value"}),
        _number("label_0", "float64"),
        _text("negative_prompt"),
        _number("chosen_index", "int64"),
        _number("rejected_index", "int64"),
    ),
}


@dataclass
class _Table:
    """A Parquet file that is written in row groups of bounded bytes; what is written is taken out piece by piece."""

    form: PreferenceForm
    _rows: list[tuple[Any, ...]] = field(default_factory=list)
    _size_bytes: int = 0

    def __post_init__(self) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        types = {
            **{name: getattr(pa, name)() for name in ("string", "int64", "float64", "binary")},
            "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        }
        columns = _COLUMNS[self.form]
        features = {"info": {"features": {name: feature for name, _, feature in columns}}}
        schema = pa.schema([(name, types[kind]) for name, kind, _ in columns])
        self._schema = schema.with_metadata({"huggingface": json.dumps(features)})
        self._arrow, self._opened = pa, _Pieces()
        # images are compressed already
        self._writer = parquet.ParquetWriter(self._opened, self._schema, compression="zstd", use_dictionary=False)

    def add(self, pair: _Pair, chosen: bytes, rejected: bytes) -> Iterator[bytes]:
        """Append a pair; yield what is written of the file, if anything is. Empty bytes are null."""
        images: tuple[Any, ...] = chosen, rejected
        if self.form == "preference":
            images = tuple(
                {"bytes": body or None, "path": image.key}
                for body, image in ((chosen, pair.chosen), (rejected, pair.rejected))
            )
        label = () if self.form == "preference" else (1.0,)
        indices = pair.chosen.job, pair.rejected.job
        self._rows.append((pair.prompt, *images, *label, pair.negative_prompt, *indices))
        self._size_bytes += len(chosen) + len(rejected)
        if len(self._rows) == _GROUP_ROWS or self._size_bytes >= _GROUP_BYTES:
            self._flush()
            yield self._opened.take()

    def _flush(self) -> None:
        arrays = [
            self._arrow.array(values, column.type)
            for values, column in zip(zip(*self._rows, strict=True), self._schema, strict=True)
        ]
        self._writer.write_batch(self._arrow.record_batch(arrays, schema=self._schema))
        self._rows, self._size_bytes = [], 0

    def end(self) -> Iterator[bytes]:
        """Yield the rest of the file."""
        if self._rows:
            self._flush()
        self._writer.close()
        yield self._opened.take()


class _Pieces(io.RawIOBase):
    """A file that only grows; what was written since is taken out of memory."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any, /) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        self._size += len(piece)
        return len(piece)

    def take(self) -> bytes:
        """Return what was written since the last call."""
        found, self._pieces = b"".join(self._pieces), []
        return found
