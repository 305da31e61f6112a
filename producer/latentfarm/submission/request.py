"""A submission request: the row source, its expansion, its defaults and its options."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from latentfarm.batch_kind import BatchKind
from latentfarm.errors import InputError
from latentfarm.inputs.policy import InputPolicy
from latentfarm.inputs.resolver import InputResolver
from latentfarm.job import Defaults, Row
from latentfarm.ledger.constants import DEFAULT_BUDGET
from latentfarm.model_facts import ModelFacts
from latentfarm.names import check_model_alias
from latentfarm.submission.edit_rows import check_edits
from latentfarm.submission.expansion import Expansion
from latentfarm.submission.input_rows import InputRows, PlacedRow
from latentfarm.submission.lora_tags import take_loras
from latentfarm.submission.model_fit import check_defaults_fit, misfits
from latentfarm.submission.prompt_weights import check_default_weights, check_weights
from latentfarm.submission.prompts import (
    Notes,
    ReadOptions,
    RowError,
    Source,
    SourceLike,
    check_defaults,
    open_source,
)
from latentfarm.submission.syntax_notes import note_syntax, note_unknown_embeddings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from latentfarm.storage.bucket import Bucket

#: the default of ``SubmitOptions.max_invalid``
DEFAULT_MAX_INVALID = 0.01


@dataclass(frozen=True)
class SubmitOptions:
    """Options of a submission.

    ``priority``: batches of a higher priority run first.
    ``canary``: run this many jobs, then pause until ``resume``; 0: no canary.
    ``failure_budget``: pause the batch when this share of its jobs has failed; 0: never.
    ``webhook``: an https URL, called when the batch is complete or cancelled.
    ``validate_first``: True validates every row before anything is stored, False none; None: files below 100,000
    rows, and the first 100,000 rows of larger ones.
    ``max_invalid``: a submission stops when more than this share of its rows is invalid. It is checked from the 1,000th
    row on.
    ``kind``: what the batch is submitted for.
    ``owner``: name of the API key that submits it; empty: none.
    ``keep_s``: seconds after which the batch is deleted, in any state; 0: never.
    ``preempt``: its jobs take the place of running images of other batches, which go on later from where they are.
    """

    priority: int = 0
    canary: int = 0
    failure_budget: float = DEFAULT_BUDGET
    webhook: str = ""
    validate_first: bool | None = None
    max_invalid: float = DEFAULT_MAX_INVALID
    kind: BatchKind = BatchKind.SUBMITTED
    owner: str = ""
    keep_s: int = 0
    preempt: bool = False


@dataclass(frozen=True)
class Request:
    """A batch to be submitted: the row source, its expansion and the defaults of its rows."""

    source: Source
    model: str
    defaults: Defaults
    expansion: Expansion
    reading: ReadOptions
    #: what was mapped in the options
    option_notes: Notes = field(default_factory=Notes)
    #: what workers have announced of the model. Rows are checked against it; the digest does not depend on it
    facts: ModelFacts | None = None
    #: finds the rows' input images; the digest does not depend on them, but those of the parts do
    inputs: InputResolver = field(default_factory=lambda: InputResolver(InputPolicy()))

    @property
    def notes(self) -> dict[str, int]:
        """Numbers of rows by sentence: what was mapped, dropped or chosen. Complete once all rows have been read."""
        dynamic = {} if self.expansion.dynamic is None else self.expansion.dynamic.notes
        return {**self.option_notes, **self.source.notes, **dynamic}

    @property
    def digest(self) -> str:
        """Sha256 of the content and of every option that changes a job, in hex.

        A stream can be read only once, so its digest covers the options only. Its parts have digests of their own.
        """
        options = [self.model, to_jsonable_python(self.defaults.given()), self.expansion.key, self.reading.key]
        content = self.source.digest or "stream"
        return hashlib.sha256(json.dumps([*options, content], sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Default name of the batch. The same file and options give the same name; each stream gets a new one."""
        stem = Path(self.source.name).name.partition(".")[0]
        slug = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:40].rstrip("-") or "batch"
        return f"{slug}-{self.digest[:8] if self.source.digest else uuid.uuid4().hex[:8]}"

    def with_facts(self, facts: ModelFacts | None) -> Request:
        """Return the request of which this is known of its model.

        Raises:
            InputError: a default does not fit the model.
        """
        if facts is not None:
            check_defaults_fit(self.defaults, facts)
        return replace(self, facts=facts)

    def rows(self, bucket: Bucket | None = None) -> Generator[tuple[int, Row | RowError], None, None]:
        """Yield each expanded row, or its error, with the number of its row in the source, from 0.

        Sources of input images are replaced by their digests. The images are stored in ``bucket`` before the row is
        yielded; without a bucket they are checked only.

        Raises:
            InputError: the source cannot be read.
            UnavailableError: a store does not answer.
        """
        return InputRows(self.inputs, bucket, self.defaults, self.facts).resolve(self._placed_rows())

    def _placed_rows(self) -> Iterator[PlacedRow]:
        plain, dynamic = self.expansion.is_plain, self.expansion.dynamic is not None
        if self.expansion.dynamic is not None:
            # as the source's notes, they are of one reading
            self.expansion.dynamic.notes.clear()
        for number, found in enumerate(self.source.read()):
            if isinstance(found, RowError):
                yield PlacedRow(number, "", found)
                continue
            note_syntax(found.row, self.defaults, self.source.notes, dynamic=dynamic)
            note_unknown_embeddings(found.row, self.facts, self.source.notes)
            expanded = (found.row,) if plain else self.expansion.rows(self._with_negative(found.row), number)
            try:
                for swept in expanded:
                    row = take_loras(swept, self.defaults)
                    check_weights(row, self.defaults)
                    check_edits(row, self.defaults, self.facts, self.source.notes)
                    yield PlacedRow(number, found.place, self._fitting(row, found.place))
            except InputError as error:
                reason = error.field or ("prompt" if plain else "expansion")
                yield PlacedRow(number, found.place, RowError(f"{found.place}: {error}", reason))

    def _fitting(self, row: Row, place: str) -> Row | RowError:
        """Return a row, or its error if it does not fit the model."""
        problems = [] if self.facts is None else misfits(row, self.facts)
        if not problems:
            return row
        return RowError("\n".join(f"{place}: {text}" for _, text in problems), problems[0][0], row.id)

    def _with_negative(self, row: Row) -> Row:
        """Fill in the batch's negative prompt before the expansion: it may have dynamic prompts too."""
        negative = self.defaults.negative_prompt
        if negative is None or row.negative_prompt is not None:
            return row
        return row.model_copy(update={"negative_prompt": negative})


def make_request(
    source: SourceLike,
    reading: ReadOptions | None = None,
    *,
    model: str,
    expansion: Expansion | None = None,
    client: S3Client | None = None,
    inputs: InputPolicy | None = None,
    **defaults: Any,
) -> Request:
    """Return a request. No row is read yet.

    Args:
        source: see ``Farm.submit``.
        reading: how prompts are read.
        model: the alias of the model.
        expansion: sweeps and dynamic prompts.
        client: the S3 client for ``s3://`` sources.
        inputs: which sources of input images rows may use [default: data URLs].
        defaults: fields of rows that do not set them, such as ``num_inference_steps=30``; None: not set.

    Raises:
        InputError: the source does not exist, or an option is invalid.
    """
    check_model_alias(model)
    reading = reading or ReadOptions()
    opened, notes = open_source(source, reading, client=client), Notes()
    checked = check_defaults(defaults, notes)
    check_default_weights(checked)
    return Request(
        opened,
        model,
        checked,
        expansion or Expansion.parse(),
        reading,
        notes,
        inputs=InputResolver(inputs or InputPolicy()),
    )
