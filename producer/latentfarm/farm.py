"""The Python API: a ``Farm`` takes batches, a ``Batch`` is asked how far it is and gives its pictures.

::

    farm = Farm.from_env()
    batch = farm.submit(["a red circle", "a blue star"], num_inference_steps=25)
    batch.wait()
    batch.fetch("out")
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from celery import Celery

from latentfarm import doorbell
from latentfarm.batch import Batch
from latentfarm.bucket import Bucket
from latentfarm.errors import InputError
from latentfarm.job import Defaults, Job, check_batch_name, check_model_alias, jobs_of
from latentfarm.ledger import Ledger
from latentfarm.manifest import Digest, Header, read_header, write_manifest
from latentfarm.prompts import PlacedRow, Problem, check_all, check_defaults, read_file, read_rows
from latentfarm.settings import DEFAULT_MODEL, Settings

Source = str | Path | Iterable[str | dict[str, Any]]


class Farm:
    """One Redis and one bucket. Methods raise ``UnavailableError`` when either does not answer."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.require()
        self.ledger = Ledger.connect(settings.redis_url)
        self.bucket = Bucket.connect(settings)

    @classmethod
    def from_env(cls) -> Farm:
        """Return the farm that the environment names, else the one that ``latentfarm up`` runs in this folder."""
        return cls(Settings.load())

    @cached_property
    def _celery(self) -> Celery:
        return doorbell.make_app(self.settings.redis_url)

    def submit(
        self,
        source: Source,
        *,
        batch: str | None = None,
        model: str = DEFAULT_MODEL,
        priority: int = 0,
        progress: Callable[[int, int], None] | None = None,
        **defaults: Any,
    ) -> Batch:
        """Check every row, store the manifest, open the batch and ring the doorbell.

        Args:
            source: a prompt file's path, or prompts, or dictionaries in diffusers' parameter names.
            batch: the batch's name; by default made of the file's name and its content, so that submitting
                the same file with the same options again finds the batch instead of making another.
            model: the alias under which workers serve the model.
            priority: batches of a higher one are leased first.
            progress: called with (jobs stored, jobs in all).
            defaults: what a row leaves open, such as ``num_inference_steps=30``.

        Raises:
            InvalidRowsError: some rows are wrong; nothing was enqueued.
            InputError: an option is wrong, or the name belongs to another batch.
        """
        check_model_alias(model)
        filled = check_defaults(defaults)
        where, rows = _repeatable(source)
        check_all(rows(), where=where)
        name = check_batch_name(batch) if batch else _name_for(where, rows(), model, filled)
        digest = Digest(model)
        for job in _jobs(rows(), name, filled):
            digest.add(job)
        header = Header(batch=name, model=model, total=digest.total, digest=digest.hexdigest(), priority=priority)
        self._store(header, _jobs(rows(), name, filled), progress)
        self.ring(model)
        return Batch(self, name)

    def _store(self, header: Header, jobs: Iterator[Job], progress: Callable[[int, int], None] | None) -> None:
        asked = read_header(self.bucket, header.batch)
        if asked is not None and asked.digest != header.digest:
            raise InputError(
                f"batch {header.batch!r} lies in the bucket with other content (its digest is {asked.digest[:12]}, "
                f"yours {header.digest[:12]}); choose another --batch name"
            )
        self.ledger.reserve(
            header.batch,
            digest=header.digest,
            model=header.model,
            total=header.total,
            priority=header.priority,
        )
        if asked is None:
            for stored in write_manifest(self.bucket, header, jobs):
                if progress is not None:
                    progress(stored, header.total)
        # only now may a worker see the batch: its manifest is whole
        self.ledger.open(header.batch)

    def ring(self, model: str) -> int:
        """Wake workers of the model, as far as jobs wait; return how many doorbells were sent."""
        return doorbell.ring(self.ledger.redis, self._celery, model, self.ledger.waiting(model))

    def batches(self) -> list[Batch]:
        """Return every batch, oldest first."""
        return [Batch(self, name) for name in self.ledger.batches()]

    def batch(self, name: str) -> Batch:
        """Return one batch.

        Raises:
            InputError: it is not known.
        """
        self.ledger.batch(check_batch_name(name))
        return Batch(self, name)


def _repeatable(source: Source) -> tuple[str, Callable[[], Iterator[PlacedRow | Problem]]]:
    """Return the source's name and a function that reads it from its beginning."""
    if isinstance(source, str | Path):
        path = Path(source)
        return path.name, lambda: read_file(path)
    rows = list(source)
    return "rows", lambda: read_rows(rows)


def _jobs(rows: Iterable[PlacedRow | Problem], batch: str, defaults: Defaults) -> Iterator[Job]:
    index = 0
    for number, found in enumerate(rows):
        if isinstance(found, Problem):
            # the whole file was good a moment ago
            raise InputError(f"{found.text}\nthe file changed while it was read; submit it again")
        jobs = jobs_of(found.row.with_defaults(defaults), batch=batch, row_number=number, first_index=index)
        yield from jobs
        index += len(jobs)


def _name_for(where: str, rows: Iterable[PlacedRow | Problem], model: str, defaults: Defaults) -> str:
    content = hashlib.sha256(f"{model}\n{defaults.model_dump_json()}\n".encode())
    for found in rows:
        if isinstance(found, PlacedRow):
            content.update(found.row.model_dump_json().encode() + b"\n")
    slug = re.sub(r"[^a-z0-9]+", "-", Path(where).stem.lower()).strip("-")[:40].rstrip("-") or "batch"
    return f"{slug}-{content.hexdigest()[:8]}"
