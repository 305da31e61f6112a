"""``/v1/files``: uploads, and the output of batches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from latentfarm.farm import Farm
from latentfarm.server.context import ServerContext, context_of
from latentfarm.server.http.multipart import FormPart, read_form
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.openai import stored_batches, stored_files
from latentfarm.server.openai.ids import created_at, new_stem
from latentfarm.server.openai.models import (
    MAX_FILES_PAGE,
    OUTPUT_PURPOSE,
    DeletedAnswer,
    FileAnswer,
    FileForm,
    FileList,
    FileQuery,
    UploadForm,
)
from latentfarm.server.openai.output_files import find_output, output_blocks, output_ids, parse_output_id
from latentfarm.server.openai.stored_files import StoredFile
from latentfarm.server.openai.uploads import Upload, UploadSlots
from latentfarm.server.security.access import access_of
from latentfarm.submission.prompts.s3_object import RANGE_BYTES, S3Object

#: bytes of the fields and headers of an upload beside its file, and of one field
_FORM_BYTES, _FIELD_BYTES = 65_536, 4_096
#: OpenAI's: files of batches are removed after 30 days
_BATCH_EXPIRES_S = 30 * 24 * 3600


async def create_file(request: Request) -> Response:
    """Store an upload while it is received."""
    slots: UploadSlots = request.app.state.uploads
    with slots.take():
        record = await _upload(request)
    return JSONResponse(record.answer().model_dump())


async def _upload(request: Request) -> StoredFile:
    context = context_of(request)
    stem = await context.run(new_stem, context.farm.ledger)
    file = f"file-{stem}"
    upload = Upload(context, stored_files.content_key(file), limit=context.settings.max_file_bytes)
    try:
        filename, form = await _receive(request, upload)
        await upload.finish()
        created = created_at(stem)
        default_s = _BATCH_EXPIRES_S if form.purpose == "batch" else None
        expires_s = form.expires_after.seconds if form.expires_after else default_s
        record = StoredFile(
            id=file,
            bytes=upload.size,
            created_at=created,
            filename=filename,
            purpose=form.purpose,
            expires_at=created + expires_s if expires_s else None,
            lines=upload.lines,
            owner=access_of(request).name,
        )
        await context.run(stored_files.write_record, context.farm.bucket, record)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await upload.abandon()
        raise
    return record


async def _receive(request: Request, upload: Upload) -> tuple[str, FileForm]:
    """Store the form's file; return its name and the other fields."""
    filename: str | None = None
    fields: dict[str, bytearray] = {}
    part: FormPart | None = None
    async for event in read_form(request, context_of(request).settings.max_file_bytes + _FORM_BYTES):
        if isinstance(event, FormPart):
            part = event
            if part.name != "file":
                fields[part.name] = bytearray()
            elif filename is not None:
                raise RequestError(400, "invalid_request", "the form has two files; upload one at once", param="file")
            else:
                filename = part.filename or "file"
        elif part is not None and part.name == "file":
            await upload.write(event)
        elif part is not None:
            fields[part.name] += event
            if len(fields[part.name]) > _FIELD_BYTES:
                raise RequestError(400, "invalid_request", f"{part.name[:60]!r} is too long", param=part.name[:60])
    if filename is None:
        raise RequestError(400, "invalid_request", "the form has no file; send one as file", param="file")
    return filename, _form({name: value.decode("utf-8", "replace") for name, value in fields.items()})


def _form(fields: Mapping[str, str]) -> FileForm:
    """Return the fields of a form, whose nested ones are written as ``expires_after[seconds]``."""
    found: dict[str, object] = {name: value for name, value in fields.items() if name == "purpose"}
    expires = {name: fields[key] for name in ("anchor", "seconds") if (key := f"expires_after[{name}]") in fields}
    if expires:
        found["expires_after"] = expires
    return FileForm.model_validate(found)


async def list_files(request: Request) -> Response:
    """Return a page of files."""
    context, query = context_of(request), FileQuery.model_validate(dict(request.query_params))
    found, more = await context.run(_page, context, query)
    page = FileList(
        data=found, first_id=found[0].id if found else None, last_id=found[-1].id if found else None, has_more=more
    )
    return JSONResponse(page.model_dump())


def _page(context: ServerContext, query: FileQuery) -> tuple[list[FileAnswer], bool]:
    farm, limit, now = context.farm, min(query.limit, MAX_FILES_PAGE), context.farm.ledger.now_s()
    ids = list(stored_files.file_ids(farm.bucket))
    if query.purpose in {"", OUTPUT_PURPOSE}:
        ids += [file for batch in stored_batches.batch_ids(farm.bucket) for file in output_ids(batch)]
    ids.sort(reverse=query.order == "asc")
    if query.after:
        ids = [file for file in ids if (file > query.after) == (query.order == "desc") and file != query.after]
    found: list[FileAnswer] = []
    with ThreadPoolExecutor(8, thread_name_prefix="files") as pool:
        for at in range(0, len(ids), limit + 1):
            answers = pool.map(lambda file: find_file(farm, file, now), ids[at : at + limit + 1])
            found += [answer for answer in answers if answer is not None and query.purpose in {"", answer.purpose}]
            if len(found) > limit:
                break
    return found[:limit], len(found) > limit


def find_file(farm: Farm, file: str, now: int) -> FileAnswer | None:
    """Return an uploaded file, or an output of a batch, None if there is none at the time ``now``."""
    if parse_output_id(file):
        return find_output(farm, file, now)
    record = stored_files.read_record(farm.bucket, file, now)
    return record.answer() if record is not None else None


def _require(farm: Farm, file: str) -> FileAnswer:
    found = find_file(farm, file, farm.ledger.now_s())
    if found is None:
        raise stored_files.missing_file(file, param="id")
    return found


async def get_file(request: Request) -> Response:
    """Return a file's record."""
    context = context_of(request)
    found = await context.run(_require, context.farm, request.path_params["id"])
    return JSONResponse(found.model_dump())


async def delete_file(request: Request) -> Response:
    """Remove an uploaded file."""
    context = context_of(request)
    file = request.path_params["id"]
    found = await context.run(_require, context.farm, file)
    if found.purpose == OUTPUT_PURPOSE:
        cure = "delete its batch, or create batches with output_expires_after"
        raise RequestError(400, "invalid_request", f"the file is made of a batch's results; {cure}", param="id")
    await context.run(stored_files.delete_file, context.farm.bucket, file)
    return JSONResponse(DeletedAnswer(id=file).model_dump())


async def file_content(request: Request) -> Response:
    """Return a file's bytes."""
    context = context_of(request)
    file = request.path_params["id"]
    found = await context.run(_require, context.farm, file)
    headers = {"Content-Disposition": "attachment"}
    if found.purpose == OUTPUT_PURPOSE:
        blocks = output_blocks(context.farm, file, expires_s=context.settings.url_expires_s)
        return StreamingResponse(_blocks(context, blocks), media_type="application/jsonl", headers=headers)
    content = await context.run(stored_files.open_content, context.farm.bucket, file)
    headers["Content-Length"] = str(found.bytes)
    return StreamingResponse(_pieces(context, content), media_type="application/octet-stream", headers=headers)


async def _pieces(context: ServerContext, content: S3Object) -> AsyncIterator[bytes]:
    """Yield an object's bytes, a range at a time, as fast as the client reads them."""
    while piece := await context.run(content.read, RANGE_BYTES):
        yield piece


async def _blocks(context: ServerContext, blocks: Generator[bytes, None, None]) -> AsyncIterator[bytes]:
    """Yield an output's blocks, each made when the client has read the one before."""
    try:
        while (block := await context.run(next, blocks, None)) is not None:
            yield block
    finally:
        with anyio.CancelScope(shield=True):
            await context.run(blocks.close)


OPERATIONS = (
    Operation(
        "POST",
        "/v1/files",
        create_file,
        Scope.SUBMIT,
        "Upload a file",
        audited=True,
        form=UploadForm,
        answer=FileAnswer,
    ),
    Operation("GET", "/v1/files", list_files, Scope.READ, "List files", query=FileQuery, answer=FileList),
    Operation("GET", "/v1/files/{id}", get_file, Scope.READ, "Describe a file", answer=FileAnswer),
    Operation(
        "DELETE", "/v1/files/{id}", delete_file, Scope.SUBMIT, "Delete a file", audited=True, answer=DeletedAnswer
    ),
    Operation(
        "GET",
        "/v1/files/{id}/content",
        file_content,
        Scope.READ,
        "Read a file",
        media_type="application/octet-stream",
    ),
)
