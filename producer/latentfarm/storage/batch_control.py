"""What its user has decided about a batch, kept beside it in the bucket, so that it outlasts the ledger."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from latentfarm.ledger import BatchRecord
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.keys import control_key


class BatchControl(BaseModel):
    """``control.json``: the last decisions; where there is none, everything is as it was submitted."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    paused: str = ""
    cancelled: bool = False
    priority: int | None = None

    @classmethod
    def of(cls, record: BatchRecord) -> BatchControl:
        """Return the decisions that a batch's record shows."""
        return cls(paused=record.paused, cancelled=record.state == "cancelled", priority=record.priority)


def write_control(bucket: Bucket, batch: str, control: BatchControl) -> None:
    """Keep the decisions about a batch."""
    bucket.put(control_key(batch), control.model_dump_json().encode(), content_type="application/json")


def read_control(bucket: Bucket, batch: str) -> BatchControl:
    """Return the decisions about a batch."""
    try:
        return BatchControl.model_validate_json(bucket.get(control_key(batch)))
    except MissingObjectError:
        return BatchControl()
