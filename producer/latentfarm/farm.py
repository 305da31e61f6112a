"""The Python API: a ``Farm`` takes batches, a ``Batch`` is asked how far it is and gives its pictures.

::

    farm = Farm.from_env()
    batch = farm.submit(["a red circle", "a blue star"], num_inference_steps=25)
    batch.wait()
    batch.fetch("out")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from latentfarm.batch import Batch
from latentfarm.connection import Connection
from latentfarm.job import check_batch_name
from latentfarm.ledger import Ledger, WorkerRecord
from latentfarm.settings import DEFAULT_MODEL, Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.submission.expansion import Expansion
from latentfarm.submission.prompts import ReadOptions, SourceLike
from latentfarm.submission.request import Request, SubmitOptions, make_request
from latentfarm.submission.submit import Submission
from latentfarm.submission.validation import validate

_PLAIN_RULES, _PLAIN_READING, _NO_EXPANSION = SubmitOptions(), ReadOptions(), Expansion.parse()


class Farm:
    """One Redis and one bucket. Methods raise ``UnavailableError`` when either does not answer."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @classmethod
    def from_env(cls) -> Farm:
        """Return the farm that the environment names, else the one that ``latentfarm up`` runs in this folder."""
        return cls.open(Settings.load())

    @classmethod
    def open(cls, settings: Settings) -> Farm:
        """Return the farm that the settings describe. Nothing is sent yet.

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
        """The bucket that holds manifests, images and results."""
        return self.connection.bucket

    def submit(
        self,
        source: SourceLike,
        *,
        batch: str | None = None,
        model: str = DEFAULT_MODEL,
        rules: SubmitOptions = _PLAIN_RULES,
        expansion: Expansion = _NO_EXPANSION,
        reading: ReadOptions = _PLAIN_READING,
        progress: Callable[[int], None] | None = None,
        **defaults: Any,
    ) -> Batch:
        """Number the rows, store them in parts, let workers lease each part as it is stored, ring the doorbell.

        Args:
            source: a prompt file's path, ``-`` for standard input, ``s3://bucket/key``, or prompts and dictionaries
                in diffusers' parameter names.
            batch: the batch's name; by default made of the file's name and its content, so that submitting
                the same file with the same options again finds the batch instead of making another.
            model: the alias under which workers serve the model.
            rules: priority, canary, failure budget, webhook and how wrong rows are met.
            expansion: sweeps and dynamic prompts.
            reading: which columns are read, and the format where the name does not tell it.
            progress: called with the number of jobs that can be leased.
            defaults: what a row leaves open, such as ``num_inference_steps=30``.

        Raises:
            InvalidRowsError: some rows are wrong (in a large file: too many); it says what became of the batch.
            InputError: an option is wrong, or the name belongs to another batch.
        """
        client = self.bucket.client
        request = make_request(source, reading, client=client, model=model, expansion=expansion, **defaults)
        validate(request, rules)
        return self.enqueue(request, rules, batch=batch, progress=progress)

    def enqueue(
        self,
        request: Request,
        rules: SubmitOptions = _PLAIN_RULES,
        *,
        batch: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Batch:
        """Hand in a request that was checked; see ``submit``."""
        rung = False

        def stored(jobs: int) -> None:
            nonlocal rung
            if not rung:
                # the first part wakes the workers; they ring for each other from there on
                rung = True
                self.connection.ring(request.model)
            if progress is not None:
                progress(jobs)

        submission = Submission(self.ledger, self.bucket, request, rules, batch=batch, on_stored=stored)
        submission.run()
        self.connection.ring(request.model)
        return Batch(self.connection, submission.batch, rejected=submission.found.reasons)

    def workers(self, model: str | None = None) -> list[WorkerRecord]:
        """Return the workers that were seen in the last 15 seconds, of one model or of all: how fast, how busy."""
        return self.ledger.worker_records(model)

    def batches(self) -> list[Batch]:
        """Return every batch, oldest first."""
        return [Batch(self.connection, name) for name in self.ledger.batches()]

    def batch(self, name: str) -> Batch:
        """Return one batch.

        Raises:
            InputError: it is not known.
        """
        self.ledger.batch(check_batch_name(name))
        return Batch(self.connection, name)
