"""What a batch reports about one of its jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from latentfarm.schedulers import write_out


class JobStatus(BaseModel):
    """A job's state, with fields of its receipt or its error."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    state: str
    attempts: int
    seed: int | None
    key: str | None = None
    sha256: str | None = None
    worker: str | None = None
    error: dict[str, str] | None = None
    timings: dict[str, float] | None = None


class PresignedUrl(BaseModel):
    """A URL that gives access to a job's image, without credentials, until ``expires``."""

    model_config = ConfigDict(frozen=True)

    job: str
    url: str
    expires: datetime


def job_status(result: dict[str, Any], entry: dict[str, Any]) -> JobStatus:
    """Return the status of a job with this result line and manifest entry."""
    fields = {**result, "id": result["job"], "seed": entry.get("seed")}
    if "invalid" in entry:
        # the manifest has the whole message; ledger and results have only its code
        fields["error"] = entry["invalid"]
    return JobStatus.model_validate(fields)


def joined_result(result: dict[str, Any], entry: dict[str, Any], decided: dict[str, Any]) -> dict[str, Any]:
    """Return a result line, joined with the job's manifest entry and what was decided about its image."""
    # imported here: a status reads no manifest, and its models take long to build
    from latentfarm.storage.manifest import NOT_THE_REQUEST

    request = {name: value for name, value in entry.items() if name not in NOT_THE_REQUEST}
    joined = {"id": entry.get("id"), "row": entry.get("row"), **result, **decided}
    # the receipt's request has what the worker filled in: the native size, the model's own scheduler
    joined["request"] = {**write_out(request), **result.get("request", {})}
    if "invalid" in entry:
        joined["error"] = entry["invalid"]
    return {**joined, "columns": entry["columns"]} if "columns" in entry else joined
