"""Uploaded files in the bucket.

::

    files/<id>/content       the bytes
    files/<id>/file.json     the record, written last: without it there is no file
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import groupby

from pydantic import BaseModel, ConfigDict

from latentfarm.errors import InputError
from latentfarm.farm import Farm
from latentfarm.inputs.policy import InputPolicy
from latentfarm.limits import MAX_INPUT_BYTES
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.openai.ids import is_file_id
from latentfarm.server.openai.models import FileAnswer, Purpose
from latentfarm.storage.bucket import Bucket, MissingObjectError
from latentfarm.submission.prompts.s3_object import S3Object

PREFIX = "files/"
_RECORD = "/file.json"


class StoredFile(BaseModel):
    """The record of a file. ``lines`` is the number of its lines; ``owner`` is the name of the key that uploaded it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: Purpose
    expires_at: int | None = None
    lines: int = 0
    owner: str = ""

    def expired(self, now: int) -> bool:
        """Return whether its time has passed."""
        return self.expires_at is not None and self.expires_at <= now

    def answer(self) -> FileAnswer:
        """Return the file in OpenAI's shape."""
        return FileAnswer.model_validate(self.model_dump(exclude={"lines", "owner"}))


def content_key(file: str) -> str:
    """Return the key of a file's bytes."""
    return f"{PREFIX}{file}/content"


def record_key(file: str) -> str:
    """Return the key of a file's record."""
    return f"{PREFIX}{file}{_RECORD}"


def write_record(bucket: Bucket, file: StoredFile) -> None:
    """Let a file exist whose bytes are stored."""
    bucket.put(record_key(file.id), file.model_dump_json().encode(), content_type="application/json")


def read_record(bucket: Bucket, file: str, now: int) -> StoredFile | None:
    """Return a file's record; None if there is no such file, or it has expired at the time ``now``."""
    if not is_file_id(file):
        return None
    try:
        found = StoredFile.model_validate_json(bucket.get(record_key(file)))
    except MissingObjectError:
        return None
    return None if found.expired(now) else found


def missing_file(file: str, *, param: str) -> RequestError:
    """Return the error for a file that does not exist."""
    return RequestError(404, "not_found", f"No such File object: {file[:100]!r}", param=param)


def open_content(bucket: Bucket, file: str) -> S3Object:
    """Return a file's bytes as a stream.

    Raises:
        RequestError: 404, it has just been deleted.
    """
    try:
        return S3Object(bucket.client, f"s3://{bucket.name}/{content_key(file)}")
    except InputError:
        raise missing_file(file, param="id") from None


def delete_file(bucket: Bucket, file: str) -> None:
    """Remove a file, its record first: if this is interrupted, there is no file whose bytes are missing."""
    bucket.delete([record_key(file)])
    bucket.delete([content_key(file)])


def file_ids(bucket: Bucket) -> Iterator[str]:
    """Yield the ids of all files, newest first, also of those that have expired."""
    yield from (file for file, whole in all_files(bucket) if whole)


def all_files(bucket: Bucket) -> Iterator[tuple[str, bool]]:
    """Yield the ids in the bucket, and whether each has a record. It has none while it is uploaded."""
    keys = (key.removeprefix(PREFIX) for key in bucket.keys(PREFIX))
    for file, group in groupby(keys, key=lambda key: key.partition("/")[0]):
        if is_file_id(file):
            yield file, f"{file}{_RECORD}" in list(group)


def input_policy(farm: Farm) -> InputPolicy:
    """Return which sources of input images the rows of clients may name: uploaded files among them."""
    return InputPolicy.of_server(farm.settings, farm.bucket, read_file=partial(_read_input, farm))


def _read_input(farm: Farm, file: str) -> bytes:
    """Return the bytes of an uploaded image.

    Raises:
        InputError: there is none, or it is too large. The text is problem and cure.
    """
    record = read_record(farm.bucket, file, farm.ledger.now_s())
    if record is None:
        raise InputError("is no file of this server, or it has expired; upload the image again")
    if record.bytes > MAX_INPUT_BYTES:
        raise InputError(f"has {record.bytes:,} bytes; at most {MAX_INPUT_BYTES:,} are allowed: upload a smaller image")
    try:
        return farm.bucket.get(content_key(file), max_bytes=MAX_INPUT_BYTES)
    except MissingObjectError:
        raise InputError("was deleted; upload the image again") from None
