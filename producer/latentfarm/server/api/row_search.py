"""Finds jobs by their rows: by a text in the prompt, and by the seed. Only the manifest has them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from latentfarm.server.api.models import JobsQuery
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import part_of
from latentfarm.storage.manifest import ManifestReader
from latentfarm.storage.part_reads import read_by_part


def find_rows(bucket: Bucket, batch: str, indices: Iterable[int], query: JobsQuery) -> list[int]:
    """Return those of the rising indices whose row has the text and the seed of a query.

    The parts are read at the same time, so ``indices`` are of few.
    """
    wanted = list(indices)
    # all parts are held: a thread must not drop that of another
    manifest = ManifestReader(bucket, parts=len({part_of(index) for index in wanted}))
    text = query.prompt.casefold()

    def has(index: int) -> bool:
        entry = manifest.entry(batch, index)
        # an invalid row has neither
        found = text in str(entry.get("prompt", "")).casefold()
        return found and query.seed in {None, entry.get("seed")}

    return list(read_by_part(wanted, partial(filter, has)))
