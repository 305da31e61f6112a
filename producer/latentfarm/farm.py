"""The Python API: ``Farm`` submits batches, ``Batch`` reports their progress and fetches their images.

::

    farm = Farm.from_env()
    batch = farm.submit(["a red circle", "a blue star"], num_inference_steps=25)
    batch.wait()
    batch.fetch("out")
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from latentfarm.batch import Batch
from latentfarm.batch_kind import BatchKind
from latentfarm.connection import Connection
from latentfarm.errors import NotFoundError
from latentfarm.names import DEFAULT_MODEL, check_batch_name
from latentfarm.settings import Settings

if TYPE_CHECKING:
    from latentfarm.inputs.policy import InputPolicy
    from latentfarm.ledger import Ledger, WorkerRecord
    from latentfarm.model_facts import ModelFacts
    from latentfarm.storage.bucket import Bucket
    from latentfarm.submission.expansion import Expansion
    from latentfarm.submission.prompts import ReadOptions, SourceLike
    from latentfarm.submission.request import Request, SubmitOptions


class Farm:
    """One Redis and one bucket. Methods raise ``UnavailableError`` if one of them does not answer."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @classmethod
    def from_env(cls) -> Farm:
        """Return the farm that the environment configures, else the one that runs in this folder.

        A farm in the folder runs at least until this process ends, unless it is stopped.

        Raises:
            InputError: there is neither.
        """
        return cls.open(Settings.load(use=True))

    @classmethod
    def open(cls, settings: Settings) -> Farm:
        """Return the farm that the settings configure. Nothing is sent yet.

        Raises:
            InputError: the settings name no Redis or no bucket.
        """
        return cls(Connection.open(settings))

    @property
    def settings(self) -> Settings:
        """The settings that the farm was opened with."""
        return self.connection.settings

    @property
    def ledger(self) -> Ledger:
        """The record of all batches and jobs in Redis."""
        return self.connection.ledger

    @property
    def bucket(self) -> Bucket:
        """The bucket of manifests, images and results."""
        return self.connection.bucket

    def submit(
        self,
        source: SourceLike,
        *,
        batch: str | None = None,
        model: str = DEFAULT_MODEL,
        options: SubmitOptions | None = None,
        expansion: Expansion | None = None,
        reading: ReadOptions | None = None,
        inputs: InputPolicy | None = None,
        progress: Callable[[int], None] | None = None,
        **defaults: Any,
    ) -> Batch:
        """Validate the rows, store them as a batch, and wake workers as soon as the first part is stored.

        Args:
            source: the path of a prompt file, ``-`` for standard input, ``s3://bucket/key``, or rows: prompts and
                dictionaries with diffusers' parameter names.
            batch: the batch's name [default: made from the file's name and its content, so that submitting the same
                file with the same options again finds the same batch].
            model: the alias of the model that workers serve.
            options: priority, canary, failure budget, webhook, and how invalid rows are handled.
            expansion: sweeps and dynamic prompts.
            reading: the columns that are read, and the format of a source without a file ending.
            inputs: which sources of input images rows may use [default: all of this machine's user; paths begin at
                the folder of the prompt file].
            progress: called with the number of jobs that can be leased, after each part.
            defaults: fields of rows that do not set them, such as ``num_inference_steps=30``.

        Raises:
            InvalidRowsError: rows are invalid; in a large file, too many. It reports what became of the batch.
            InputError: an option is invalid, or the name belongs to another batch.
        """
        from latentfarm.inputs.policy import InputPolicy
        from latentfarm.submission.request import SubmitOptions
        from latentfarm.submission.validation import make_valid_request

        options = options or SubmitOptions()
        request = make_valid_request(
            source,
            options,
            find_facts=lambda request: self.facts_for(request, batch, kind=options.kind),
            reading=reading,
            model=model,
            expansion=expansion,
            client=self.bucket.client,
            inputs=inputs or InputPolicy.of_user(self.settings, self.bucket, source),
            **defaults,
        )
        return self.enqueue(request, options, batch=batch, progress=progress)

    def enqueue(
        self,
        request: Request,
        options: SubmitOptions | None = None,
        *,
        batch: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Batch:
        """Submit a request whose rows are validated already; see ``submit``."""
        from latentfarm.submission.request import SubmitOptions
        from latentfarm.submission.submit import Submission

        options = options or SubmitOptions()
        submission = Submission(self.ledger, self.bucket, request, options, batch=batch)
        # the ledger signals interactive jobs to the workers; one that misses it finds them at its next housekeeping
        rings = options.kind is not BatchKind.INTERACTIVE
        parts = 0
        with closing(submission.run()) as stored:
            for parts, jobs in enumerate(stored, 1):
                if parts == 1 and rings:
                    # from here on, workers wake each other
                    self.connection.ring(request.model)
                if progress is not None:
                    progress(jobs)
        if parts != 1 and rings:
            self.connection.ring(request.model)
        return Batch(self.connection, submission.batch, rejected=submission.report.reasons, notes=request.notes)

    def facts_for(
        self, request: Request, batch: str | None = None, *, kind: BatchKind = BatchKind.SUBMITTED
    ) -> ModelFacts | None:
        """Return the facts that a batch of the request is checked against and has its defaults from.

        Those of a batch that exists stay what they were; None if no worker has announced any.
        """
        from latentfarm.submission.batch_facts import facts_for

        if kind is BatchKind.INTERACTIVE:
            # its name is new
            return self.ledger.model_facts(request.model)
        return facts_for(self.ledger, self.bucket, request, batch)

    def workers(self, model: str | None = None) -> list[WorkerRecord]:
        """Return the workers, of one model or of all, that sent a heartbeat in the last 15 seconds."""
        return self.ledger.worker_records(model)

    def batches(self) -> list[Batch]:
        """Return every batch, oldest first, but the interactive ones."""
        return [Batch(self.connection, name) for name in self.ledger.batches()]

    def batch(self, name: str) -> Batch:
        """Return one batch.

        Raises:
            NotFoundError: there is no such batch.
            InputError: it is no name of a batch.
        """
        check_batch_name(name)
        try:
            self.ledger.batch(name)
        except NotFoundError as error:
            close = get_close_matches(name, self.ledger.batches(), n=3)
            if not close:
                raise
            raise NotFoundError(f"{error}; did you mean {' or '.join(map(repr, close))}?") from None
        return Batch(self.connection, name)
