"""A submission request: the row source, its expansion, its defaults and its options."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentfarm.errors import InputError
from latentfarm.job import Defaults, Row, check_model_alias
from latentfarm.ledger.ledger import DEFAULT_BUDGET
from latentfarm.submission.expansion import Expansion
from latentfarm.submission.prompts import ReadOptions, RowError, Source, SourceLike, check_defaults, open_source

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


#: of a larger file, this share of wrong rows stops the submission, looked at after the first 1,000 rows
DEFAULT_MAX_INVALID = 0.01


@dataclass(frozen=True)
class SubmitOptions:
    """How a batch is to run.

    ``canary``: render the first so many jobs, the rest waits for ``resume``; 0 for none. ``failure_budget``: the share
    of failures that pauses the batch; 0 for none. ``webhook``: an https URL that is told of the end. ``check_first``:
    read the whole file before anything is opened; None does so below 100,000 rows. ``max_invalid``: the share of wrong
    rows that stops a submission that was not checked first.
    """

    priority: int = 0
    canary: int = 0
    failure_budget: float = DEFAULT_BUDGET
    webhook: str = ""
    check_first: bool | None = None
    max_invalid: float = DEFAULT_MAX_INVALID


@dataclass(frozen=True)
class Request:
    """What a user hands in: rows, what each becomes, and what they leave open."""

    source: Source
    model: str
    defaults: Defaults
    expansion: Expansion
    reading: ReadOptions

    @property
    def digest(self) -> str:
        """What tells this batch from any other: its content and every option that decides on its jobs.

        Of a stream, which cannot be read twice, it is made of the options only; its parts' digests tell the rest.
        """
        options = [self.model, self.defaults.given(), self.expansion.key, repr(self.reading)]
        content = self.source.digest or "stream"
        return hashlib.sha256(json.dumps([*options, content], sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """A name for the batch: of the same file and options always the same, of a stream always another."""
        stem = Path(self.source.name).name.partition(".")[0]
        slug = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:40].rstrip("-") or "batch"
        return f"{slug}-{self.digest[:8] if self.source.digest else uuid.uuid4().hex[:8]}"

    def rows(self) -> Iterator[tuple[int, Row | RowError]]:
        """Yield each row with its number in the source, after its expansion."""
        plain = self.expansion.is_plain
        for number, found in enumerate(self.source.read()):
            if isinstance(found, RowError):
                yield number, found
            elif plain:
                yield number, found.row
            else:
                try:
                    for row in self.expansion.rows(self._with_negative(found.row), number):
                        yield number, row
                except InputError as error:
                    yield number, RowError(f"{found.place}: {error}", "expansion")

    def _with_negative(self, row: Row) -> Row:
        """Fill in the batch's negative prompt, which may hold choices of its own."""
        negative = self.defaults.negative_prompt
        if negative is None or row.negative_prompt is not None:
            return row
        return row.model_copy(update={"negative_prompt": negative})


def make_request(
    source: SourceLike,
    reading: ReadOptions,
    *,
    model: str,
    expansion: Expansion,
    client: S3Client | None = None,
    **defaults: Any,
) -> Request:
    """Return what is to be handed in; nothing is read yet but what it takes to know the source.

    Raises:
        InputError: the source is not there, or an option is wrong.
    """
    check_model_alias(model)
    opened = open_source(source, reading, client=client)
    return Request(opened, model, check_defaults(defaults), expansion, reading)
