"""Find what the jobs of a batch are checked against, and where their defaults come from."""

from __future__ import annotations

from latentfarm.ledger import Ledger
from latentfarm.model_facts import ModelFacts
from latentfarm.names import check_batch_name
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.manifest import Header, read_header
from latentfarm.submission.request import Request


def facts_for(ledger: Ledger, bucket: Bucket, request: Request, batch: str | None = None) -> ModelFacts | None:
    """Return the facts of the model for a submission, None if no worker has announced any.

    Args:
        ledger: what workers have announced.
        bucket: the headers of batches.
        request: what is submitted.
        batch: the name of the batch [default: that of the request].

    A batch that exists keeps those of its first submission, so that it is continued with the same jobs.

    Raises:
        InputError: the header of the batch is damaged, or it is no name of a batch.
    """
    # each request of a stream has another default name
    named = batch is not None or request.source.digest is not None
    name = request.name if batch is None else check_batch_name(batch)
    # the ledger first: a new batch costs no request of the bucket
    header = read_header(bucket, name) if named and ledger.batch_summaries([name]) else None
    return facts_of_header(header, ledger, request)


def facts_of_header(header: Header | None, ledger: Ledger, request: Request) -> ModelFacts | None:
    """Return the facts for a submission whose batch has this header, None if it has none yet.

    Without one, those that the request was checked against, so that its rows need not be checked again.
    """
    if header is not None and header.digest == request.digest:
        return header.model_facts
    return request.facts or ledger.model_facts(request.model)
