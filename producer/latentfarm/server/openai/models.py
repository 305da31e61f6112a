"""Bodies, queries and answers of files and batches, as OpenAI's reference has them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
#: of the output of batches
OUTPUT_PURPOSE = "batch_output"
#: files in a page. OpenAI's clients read further pages by themselves, so one may have fewer files than their limit
MAX_FILES_PAGE, MAX_BATCHES_PAGE = 1_000, 100
_HOUR_S, _MONTH_S = 3_600, 2_592_000
_MAX_PAIRS, _MAX_KEY, _MAX_VALUE = 16, 64, 512


class ExpiresAfter(BaseModel):
    """When something is removed: so many seconds after its creation."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=_HOUR_S, le=_MONTH_S)]


class FileQuery(BaseModel):
    """The query of a list of files."""

    after: str = ""
    limit: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"
    purpose: str = ""


class FileForm(BaseModel):
    """The fields of an upload beside ``file``."""

    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class UploadForm(FileForm):
    """The form of an upload."""

    file: bytes


class FileAnswer(BaseModel):
    """A file. ``bytes`` of a batch's output is 0: it is made when it is read."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: str | None = None
    expires_at: int | None = None


class DeletedAnswer(BaseModel):
    """A file that was deleted."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchQuery(BaseModel):
    """The query of a list of batches."""

    after: str = ""
    limit: Annotated[int, Field(ge=1, le=MAX_BATCHES_PAGE)] = 20


class BatchBody(BaseModel):
    """A batch to create."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None

    @field_validator("metadata")
    @classmethod
    def _check_metadata(cls, metadata: dict[str, str] | None) -> dict[str, str] | None:
        pairs = metadata or {}
        if len(pairs) > _MAX_PAIRS:
            raise ValueError(f"it has {len(pairs)} pairs; send at most {_MAX_PAIRS}")
        for key, value in pairs.items():
            if len(key) > _MAX_KEY or len(value) > _MAX_VALUE:
                raise ValueError(f"a key has at most {_MAX_KEY} characters and a value {_MAX_VALUE}; shorten them")
        return metadata


class RequestCounts(BaseModel):
    """Images of a batch: one for each ``n`` of a line."""

    total: int
    completed: int
    failed: int


class BatchError(BaseModel):
    """Why a batch has failed."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(BaseModel):
    """Why a batch has failed."""

    object: Literal["list"] = "list"
    data: list[BatchError]


BatchStatusWord = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]


class BatchAnswer(BaseModel):
    """A batch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatusWord
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    usage: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None


class BatchList(BaseModel):
    """A page of batches."""

    object: Literal["list"] = "list"
    data: list[BatchAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool
