"""The models of the answers of ``/api``. The OpenAPI document and its reference are made of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from latentfarm.batch_drafts import DraftReport
from latentfarm.batch_status import BatchStatus
from latentfarm.model_facts import ModelFacts
from latentfarm.server.api.models import JobWord, PickWord, Rating
from latentfarm.submission.estimate import Estimate


class BatchAnswer(BatchStatus):
    """A batch. ``warnings`` are the reasons why its jobs wait, each with its cure."""

    warnings: tuple[str, ...] = ()


class BatchesAnswer(BaseModel):
    """A page of batches, newest first. ``next`` is the cursor of the next page, null if there is none."""

    batches: list[BatchAnswer]
    next: str | None


class SubmitAnswer(BaseModel):
    """The batch of a submission. The same rows with the same options find the batch again.

    ``rejected`` counts invalid rows by reason; they are failed jobs. ``notes`` are numbers of rows by what was mapped,
    dropped or chosen.
    """

    batch: str
    model: str
    total: int
    rejected: dict[str, int]
    notes: dict[str, int]


class PlanAnswer(Estimate):
    """What a submission would enqueue. ``hours`` are of the workers that run now; null if that is unknown."""

    workers: int
    hours: float | None


class RetryAnswer(BaseModel):
    """The number of jobs that run again."""

    retried: int


class JobAnswer(BaseModel):
    """A job: the line of its result.

    ``image``, ``thumbnail`` and ``intermediates``, the strip of intermediate images, are paths on this server; null
    without such an image. Those of a draft are of its preview. A done job and a draft have the fields of their receipt
    as well, see the reference of results. ``pick`` and ``rating`` are there if they are decided about the image that
    the job has.
    """

    model_config = ConfigDict(extra="allow")

    id: str | None
    row: int | None
    job: str
    index: int
    state: JobWord
    attempts: int
    worker: str | None = None
    error: dict[str, str] | None = None
    request: dict[str, Any]
    image: str | None
    thumbnail: str | None
    intermediates: str | None
    pick: PickWord | None = None
    rating: Rating | None = None


class OneJobAnswer(JobAnswer):
    """A job as in a page of jobs, with the ``parameters`` that AUTOMATIC1111's web UI reads; null without an image.

    They are made of the receipt. The image has the same, unless its model's own scheduler config sets options.
    """

    parameters: str | None


class JobsAnswer(BaseModel):
    """A page of jobs. ``next`` is the ``start`` of the next page, null if there is none.

    A page ends early where its jobs are far apart, so it may be short or empty while ``next`` is set.
    """

    jobs: list[JobAnswer]
    next: int | None


class PickCountsAnswer(BaseModel):
    """How many images of a batch are picked, rejected and rated; and how many of the drafts are picked or rejected."""

    picked: int
    rejected: int
    rated: int
    picked_drafts: int
    rejected_drafts: int


class PickAnswer(BaseModel):
    """What was decided about the image of one epoch. It does not count for another image of the job."""

    index: int
    epoch: int
    pick: PickWord | None
    rating: Rating | None


class PicksAnswer(PickCountsAnswer):
    """All decisions about images of a batch, by rising index."""

    picks: list[PickAnswer]


class DraftsAnswer(DraftReport):
    """What a selection of drafts is, costs, or became.

    ``drafts`` counts the drafts of the batch before, ``selected`` those that are selected; ``indices`` are the first
    1,000 of them. ``before`` counts selected jobs that were finished or discarded before. ``changed`` drafts were
    finished or discarded. ``price`` is there if it was queried.
    """


class FailureAnswer(BaseModel):
    """The failed jobs of one error code: their number, the first of them, and the message of the first."""

    code: str
    count: int
    indices: list[int]
    message: str


class FailuresAnswer(BaseModel):
    """Failures by error code, the most frequent first. Indices are of the first parts with failures."""

    failures: list[FailureAnswer]


class WorkerAnswer(BaseModel):
    """A worker that sent a heartbeat in the last 15 seconds, with its rate over the last two minutes."""

    worker: str
    model: str
    device: str
    device_name: str
    dtype: str
    slots: int
    images: int
    images_per_s: float | None
    busy_share: float | None
    draining: bool
    since: datetime
    seen: datetime


class DrainAnswer(BaseModel):
    """The worker that takes no more jobs, and ends when it has ended those it has."""

    worker: str


class WorkersAnswer(BaseModel):
    """The workers."""

    workers: list[WorkerAnswer]


class ModelAnswer(BaseModel):
    """A model that workers serve or batches need, with its jobs that wait and its workers' rate.

    ``facts`` are what its workers have announced: its sizes and its defaults; null if they have not.
    """

    model: str
    workers: int
    pending: int
    images_per_s: float
    facts: ModelFacts | None = None


class ModelsAnswer(BaseModel):
    """The models."""

    models: list[ModelAnswer]


class ErrorBody(BaseModel):
    """What is wrong: ``code`` is a short, stable word, ``message`` has place, value and cure.

    With the code ``invalid_rows``, ``problems`` are the messages of the first 20 rows, ``total`` the number of invalid
    rows, and ``reasons`` their numbers by reason.
    """

    code: str
    message: str
    param: str | None
    problems: list[str] | None = None
    total: int | None = None
    reasons: dict[str, int] | None = None


class ErrorAnswer(BaseModel):
    """An error."""

    error: ErrorBody
