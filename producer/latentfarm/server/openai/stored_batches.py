"""The records of OpenAI's batches in the bucket.

::

    openai/batches/<id>.json         the request: written before the answer, never changed
    openai/cancellations/<id>.json   when a client cancelled it
    openai/outcomes/<id>.json        how its submission ended: submitted, failed or cancelled

The ledger has everything else: the batch of the same name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict

from latentfarm.server.http.request_error import RequestError
from latentfarm.server.openai.ids import is_batch_id
from latentfarm.server.openai.models import BatchError
from latentfarm.storage.bucket import Bucket, MissingObjectError

_PREFIX = "openai/batches/"
_JSON = "application/json"


class StoredBatch(BaseModel):
    """The request of a client.

    Attributes:
        models: the alias of its model, and the name that the client has for it.
        filename: of the input file, for messages.
        output_expires_s: seconds after its end until it is deleted with its images; None: never.
        owner: name of the key that created it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    models: tuple[str, ...]
    filename: str
    metadata: dict[str, str] | None = None
    output_expires_s: int | None = None
    owner: str = ""


class Outcome(BaseModel):
    """How a submission ended, and when."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    status: Literal["submitted", "failed", "cancelled"]
    at: int
    errors: list[BatchError] = []


def _batch_key(batch: str) -> str:
    return f"{_PREFIX}{batch}.json"


def _cancellation_key(batch: str) -> str:
    return f"openai/cancellations/{batch}.json"


def _outcome_key(batch: str) -> str:
    return f"openai/outcomes/{batch}.json"


def _get(bucket: Bucket, key: str) -> bytes | None:
    try:
        return bucket.get(key)
    except MissingObjectError:
        return None


def write_batch(bucket: Bucket, batch: StoredBatch) -> None:
    """Store the request of a client."""
    bucket.put(_batch_key(batch.id), batch.model_dump_json().encode(), content_type=_JSON)


def read_batch(bucket: Bucket, batch: str) -> StoredBatch | None:
    """Return the request of a client, None if there is no such batch."""
    found = _get(bucket, _batch_key(batch)) if is_batch_id(batch) else None
    return None if found is None else StoredBatch.model_validate_json(found)


def batch_ids(bucket: Bucket, *, after: str = "") -> Iterator[str]:
    """Yield the ids of all batches, newest first; only those after one, if it is given."""
    for key in bucket.keys(_PREFIX, after=_batch_key(after) if after else ""):
        batch = key.removeprefix(_PREFIX).removesuffix(".json")
        if is_batch_id(batch):
            yield batch


def write_outcome(bucket: Bucket, batch: str, outcome: Outcome) -> None:
    """Record how a submission ended."""
    bucket.put(_outcome_key(batch), outcome.model_dump_json().encode(), content_type=_JSON)


def read_outcome(bucket: Bucket, batch: str) -> Outcome | None:
    """Return how a submission ended, None if it has not."""
    found = _get(bucket, _outcome_key(batch))
    return None if found is None else Outcome.model_validate_json(found)


def write_cancellation(bucket: Bucket, batch: str, at: int) -> None:
    """Record that a client cancelled a batch, so that a submission that has not begun or not ended finds it."""
    bucket.put(_cancellation_key(batch), json.dumps({"at": at}).encode(), content_type=_JSON)


def read_cancellation(bucket: Bucket, batch: str) -> int | None:
    """Return when a client cancelled a batch, None if none has."""
    found = _get(bucket, _cancellation_key(batch))
    return None if found is None else int(json.loads(found)["at"])


def remove_batch(bucket: Bucket, batch: str) -> None:
    """Remove every record of a batch, the batch's own last."""
    bucket.delete([_outcome_key(batch), _cancellation_key(batch)])
    bucket.delete([_batch_key(batch)])


def missing_batch(batch: str) -> RequestError:
    """Return the error for a batch that does not exist."""
    return RequestError(404, "not_found", f"No batch found with id {batch[:100]!r}", param="batch_id")
