"""The models of queries and bodies of ``/api``. The OpenAPI document and its reference are made of them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from latentfarm.batch_kind import BatchKind
from latentfarm.batch_state import BatchState
from latentfarm.draft_ranking import HASH_BITS
from latentfarm.image_formats import IMAGE_FORMATS
from latentfarm.job import Defaults
from latentfarm.job_state import JobState
from latentfarm.ledger.constants import CHUNK_JOBS, DEFAULT_BUDGET
from latentfarm.limits import MAX_SEED
from latentfarm.storage.pick_state import MAX_RATING, MIN_RATING
from latentfarm.submission.request import DEFAULT_MAX_INVALID

#: jobs in a page; each is read with its prompt and its receipt
MAX_PAGE_JOBS = 500
#: decisions in a body: those of a page, and more
MAX_PICKS = 1_000
#: batches in a page
MAX_PAGE_BATCHES = 200
#: states in an answer: one string of the ledger
MAX_STATES = CHUNK_JOBS
MAX_INDEX = 2**53 - 1
#: of a priority, either way
_MAX_PRIORITY = 1_000
#: rows in a JSON body, which the limit of bodies bounds as well
_MAX_ROWS = 100_000
_ROWS_SCHEMA = {"type": "array", "maxItems": _MAX_ROWS, "items": {"description": "prompts or objects"}}

#: fields of a submission's defaults. No client waits for its images, so none has partial ones
DEFAULT_FIELDS = frozenset(Defaults.model_fields) - {"partial_images"}
_DEFAULTS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        name: schema for name, schema in Defaults.model_json_schema()["properties"].items() if name in DEFAULT_FIELDS
    },
    "additionalProperties": False,
}

_FLAGS = {"1": True, "true": True, "0": False, "false": False}


def _read_flag(value: object) -> object:
    return _FLAGS.get(value, value) if isinstance(value, str) else value


Index = Annotated[int, Field(ge=0, le=MAX_INDEX)]
Flag = Annotated[
    bool, BeforeValidator(_read_flag), Field(strict=True), WithJsonSchema({"type": "string", "enum": [*_FLAGS]})
]
Text = Annotated[str, Field(max_length=200)]
ImageFormatWord = StrEnum("ImageFormatWord", {name: name for name in IMAGE_FORMATS})  # type: ignore[misc]
JobWord = StrEnum("JobWord", {state.name: state.word for state in JobState})  # type: ignore[misc]


PickWord = Literal["picked", "rejected"]
PickFilter = Annotated[tuple[Literal["picked", "rejected", "none"], ...], Field(max_length=10)]
Rating = Annotated[int, Field(ge=MIN_RATING, le=MAX_RATING)]
Top = Annotated[float, Field(ge=0, le=MAX_INDEX, allow_inf_nan=False)]
Distinct = Annotated[int, Field(ge=0, le=HASH_BITS)]


class Query(BaseModel):
    """A query. An unknown parameter is an error: ignored, a misspelled filter would select everything."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Body(BaseModel):
    """A JSON body. Numbers are not read from texts, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class EmptyQuery(Query):
    """No parameters."""


# -- queries ---------------------------------------------------------------------------------------------------


class BatchesQuery(Query):
    """Which batches, newest first: all but interactive ones, unless ``kind`` is that.

    ``owner`` is the name of an API key. ``cursor`` is ``next`` of the page before.
    """

    kind: BatchKind | None = None
    owner: Text | None = None
    state: Annotated[tuple[BatchState, ...], Field(max_length=10)] = ()
    model: Text = ""
    cursor: Text = ""
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE_BATCHES)] = 50


class JobsQuery(Query):
    """Which jobs, by rising index from ``start``.

    ``code``: only failed jobs with this error code. ``prompt``: only jobs whose prompt, as their row has it, contains
    this text, in capitals or not. ``seed``: only jobs with this seed. ``pick``: only jobs whose image is this, where
    ``none`` is neither picked nor rejected. ``rating``: only jobs whose image has at least this one.
    """

    state: Annotated[tuple[JobWord, ...], Field(max_length=10)] = ()
    code: Text = ""
    prompt: Annotated[str, Field(max_length=1_000)] = ""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    pick: PickFilter = ()
    rating: Rating | None = None
    start: Index = 0
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE_JOBS)] = 100


class ResultsQuery(Query):
    """``state``: only jobs in these states. ``pick``: only jobs whose image is this, see the query of jobs."""

    state: Annotated[tuple[JobWord, ...], Field(max_length=10)] = ()
    pick: PickFilter = ()


class PreferencesQuery(Query):
    """``images``: whether the images are in the file, or only their keys in the bucket.

    ``form``: with the columns prompt, chosen and rejected; or with those of Pick-a-Pic, which has ``bytes``.
    """

    images: Literal["keys", "bytes"] = "keys"
    form: Literal["preference", "pickapic"] = "preference"


class StatesQuery(Query):
    """The jobs ``start`` to ``stop - 1``, at most a million [default: all from ``start`` on]."""

    start: Index = 0
    stop: Index | None = None


class ThumbnailQuery(Query):
    """Of which image: with ``epoch`` the answer never changes, and with ``format`` as well no receipt is read for it.

    ``draft``: the preview of a draft; without it, the image of a done job.
    """

    epoch: Index | None = None
    format: ImageFormatWord | None = None
    draft: Flag = False


class ImageQuery(ThumbnailQuery):
    """Which image, see the query of thumbnails. ``redirect``: answer with a URL of the bucket."""

    redirect: Flag = False


class IntermediatesQuery(Query):
    """Of which image: with ``epoch`` the answer never changes, and no receipt is read for it."""

    epoch: Index | None = None


class PreviewQuery(Query):
    """Of which image, and which of its previews, counted from 0."""

    epoch: Index
    number: Annotated[int, Field(ge=0, le=100)]
    format: ImageFormatWord


class EventsQuery(Query):
    """Which events: of all batches but interactive ones, unless ``kind`` is that, and of workers.

    ``batch``: only those of one batch. ``after``: the id of the last event that the client has; the header
    ``Last-Event-ID`` is the same. ``progress``: also the counters of active batches, or of ``batch``, at most twice
    a second. ``live``: also steps and previews of jobs that clients wait for. ``states``: also the states of the
    jobs of ``batch`` from this index on, at most a million, and their changes at most twice a second. ``worker``:
    also the slots of these workers, with a preview of each image, about once a second; at most 16.
    """

    kind: BatchKind | None = None
    batch: Text = ""
    after: Annotated[str, Field(pattern=r"^([0-9]{1,20}-[0-9]{1,20})?$")] = ""
    live: Flag = False
    progress: Flag = True
    states: Index | None = None
    worker: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(max_length=16)] = ()


class DraftsQuery(Query):
    """Which drafts: those that fit every criterion that is set; without any, all.

    ``indices``: only these jobs. ``pick``: only drafts that are picked, or that are rejected.
    ``top``: only the best, as a share such as 0.1 or a number; ``by`` is the number of a result that makes a draft
    better, such as ``scores.clip``, or the name of a scorer. ``distinct``: no draft whose perceptual hash is within so
    many bits of that of a better one.
    """

    indices: Annotated[tuple[Index, ...], Field(max_length=MAX_PICKS)] = ()
    pick: PickWord | None = None
    top: Top = 0
    by: Text = ""
    distinct: Distinct | None = None


class PlanQuery(Query):
    """``keep``: the share of the drafts that is finished, if rows stop as drafts."""

    keep: Annotated[float, Field(ge=0, le=1)] = 1.0


class ModelQuery(Query):
    """``model``: only of this model."""

    model: Text = ""


# -- bodies ----------------------------------------------------------------------------------------------------


class SubmitOptionsBody(Body):
    """Options of a submission.

    ``defaults`` are fields of rows that do not set them. ``format`` is that of the source [default: by its name].
    ``columns`` has the column of a field. ``keep_columns`` copies unknown columns to the results: all, or those named.
    ``preempt``: the jobs take the place of running images of other batches, which go on later from where they are.
    """

    name: Annotated[str, Field(max_length=64)] | None = None
    model: Annotated[str, Field(max_length=64)] | None = None
    priority: Annotated[int, Field(ge=-_MAX_PRIORITY, le=_MAX_PRIORITY)] = 0
    preempt: bool = False
    canary: Annotated[int, Field(ge=0, le=10_000)] = 0
    failure_budget: Annotated[float, Field(ge=0, le=1)] = DEFAULT_BUDGET
    max_invalid: Annotated[float, Field(ge=0, le=1)] = DEFAULT_MAX_INVALID
    validate_first: bool | None = None
    webhook: Annotated[str, Field(max_length=2_000)] = ""
    defaults: Annotated[dict[str, Any], WithJsonSchema(_DEFAULTS_SCHEMA)] = {}
    format: Annotated[str, Field(max_length=20)] | None = None
    prompt_column: Annotated[str, Field(max_length=200)] | None = None
    columns: dict[str, Annotated[str, Field(max_length=200)]] = {}
    keep_columns: bool | list[Annotated[str, Field(max_length=200)]] = False
    sweeps: Annotated[list[Annotated[str, Field(max_length=10_000)]], Field(max_length=16)] = []
    dynamic_prompts: bool = False
    dynamic_prompts_seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0


class SubmitBody(SubmitOptionsBody):
    """Rows to submit, or the object that has them, with the options: exactly one of ``rows`` and ``source``.

    ``rows`` are prompts, or objects with diffusers' parameter names. ``source`` is ``s3://BUCKET/KEY`` or a key in the
    farm's bucket.
    """

    # the reader of rows reports those that are neither, each with its number
    rows: Annotated[list[Any], Field(max_length=_MAX_ROWS), WithJsonSchema(_ROWS_SCHEMA)] | None = None
    source: Annotated[str, Field(min_length=1, max_length=1_100)] | None = None


class SubmitForm(BaseModel):
    """A prompt file to submit, with the options as JSON."""

    file: Annotated[bytes, WithJsonSchema({"type": "string", "contentMediaType": "application/octet-stream"})]
    options: SubmitOptionsBody = SubmitOptionsBody()


class EmptyBody(Body):
    """No fields."""


class PauseBody(Body):
    """``reason`` is shown with the batch. ``now``: running images are parked, instead of rendered to their end."""

    reason: Annotated[str, Field(max_length=500)] = ""
    now: bool = False


class RetryBody(Body):
    """``code``: only jobs that failed with it [default: all failed jobs but those of invalid rows]."""

    code: Annotated[str, Field(max_length=200)] | None = None


class PickBody(Body):
    """A decision about the image of a job. A field that is left out stays, null removes its value.

    ``epoch``: that of the image that was seen; if the job has another one by now, the answer is 409.
    """

    index: Index
    pick: PickWord | None = None
    rating: Rating | None = None
    epoch: Index | None = None


class PicksBody(Body):
    """Decisions, at most one about an image. If one cannot be made, none is."""

    picks: Annotated[list[PickBody], Field(max_length=MAX_PICKS)]


class DraftsBody(Body):
    """Which drafts, see the query of their price. ``all``: all of them, which no criterion may narrow then.

    A job in ``indices`` that is no draft is an error, unless it was finished or discarded before.
    """

    indices: Annotated[list[Index], Field(max_length=_MAX_ROWS)] | None = None
    pick: PickWord | None = None
    top: Top = 0
    by: Text = ""
    distinct: Distinct | None = None
    all: bool = False


class PriorityBody(Body):
    """Batches of a higher priority run first."""

    priority: Annotated[int, Field(ge=-_MAX_PRIORITY, le=_MAX_PRIORITY)]
