"""The user's decisions about a batch, stored in the bucket so that they survive the loss of the ledger."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from latentfarm.batch_state import BatchState, PausedBy
from latentfarm.errors import InputError
from latentfarm.ledger import BatchRecord
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.storage.keys import control_key


class BatchControl(BaseModel):
    """``control.json``. Without it, nothing was decided since the submission."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    paused: str = ""
    paused_by: PausedBy = PausedBy.NOT_PAUSED
    cancelled: bool = False
    priority: int | None = None

    @classmethod
    def of(cls, record: BatchRecord) -> BatchControl:
        """Return the decisions in a batch's record."""
        cancelled = record.state is BatchState.CANCELLED
        return cls(paused=record.paused, paused_by=record.paused_by, cancelled=cancelled, priority=record.priority)

    @model_validator(mode="before")
    @classmethod
    def _name_old_pause(cls, fields: Any) -> Any:
        # files of 0.1.0 have the reason of a pause only
        if isinstance(fields, dict) and fields.get("paused") and "paused_by" not in fields:
            return {**fields, "paused_by": PausedBy.USER}
        return fields


def write_control(bucket: Bucket, batch: str, control: BatchControl) -> None:
    """Store the decisions about a batch."""
    bucket.put(control_key(batch), control.model_dump_json().encode(), content_type="application/json")


def read_control(bucket: Bucket, batch: str) -> BatchControl:
    """Return the decisions about a batch.

    Raises:
        InputError: the object is damaged.
    """
    key = control_key(batch)
    try:
        return BatchControl.model_validate_json(bucket.get(key))
    except MissingObjectError:
        return BatchControl()
    except ValidationError:
        raise InputError(f"{key} is damaged; delete it, and pause or cancel the batch again") from None
