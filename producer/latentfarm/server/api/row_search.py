"""Finds jobs by their rows: by a text in the prompt, and by the seed. Only the manifest has them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from latentfarm.parallel import ordered_parallel_map
from latentfarm.server.api.models import JobsQuery
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import part_of
from latentfarm.storage.manifest import ManifestReader


def find_rows(bucket: Bucket, batch: str, indices: Iterable[int], query: JobsQuery) -> list[int]:
    """Return those of the rising indices whose row has the text and the seed of a query.

    The parts are read at the same time, so ``indices`` are of few.
    """
    groups = [list(group) for _, group in groupby(indices, key=part_of)]
    if not groups:
        return []
    # all parts are held: a thread must not drop that of another
    manifest = ManifestReader(bucket, parts=len(groups))
    text = query.prompt.casefold()

    def has(index: int) -> bool:
        entry = manifest.entry(batch, index)
        # an invalid row has neither
        found = text in str(entry.get("prompt", "")).casefold()
        return found and query.seed in {None, entry.get("seed")}

    found = ordered_parallel_map(groups, lambda group: list(filter(has, group)), threads=len(groups), group=1)
    return [index for _, matching in found for index in matching]
