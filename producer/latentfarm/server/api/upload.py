"""The prompt file of a form, on the disk for as long as its request runs."""

from __future__ import annotations

import fcntl
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

from starlette.requests import Request

from latentfarm.server.context import context_of
from latentfarm.server.http.body import check_length
from latentfarm.server.http.multipart import FormPart, read_form
from latentfarm.server.http.request_error import RequestError

log = logging.getLogger(__name__)

#: bytes that a form may have besides its file: the options, boundaries, headers and names
_FORM_BYTES = 2_000_000
#: bytes of an upload that are written at once
_WRITE_BYTES = 1 << 20
#: bytes of a file's name that are kept: those of its end, which is the format
_NAME_BYTES = 200
_DISK_RETRY_S = 60
_PREFIX = "latentfarm-upload-"
#: seconds in which a folder may not have its lock yet
_LOCKED_S = 60


class Upload:
    """The one file of a form, and the options beside it. What blocks is called on a thread."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # held until the process ends, however that happens
        self._lock: IO[str] = (self._folder / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # the time by the clock of the disk, which may be another machine's
        remove_abandoned(self._folder.parent, now_s=self._folder.stat().st_mtime)
        #: where the file is; None before it has begun
        self.path: Path | None = None
        self.options = bytearray()
        self._ahead = bytearray()

    def begin(self, name: str) -> None:
        """Begin the file, under the end of its name."""
        if self.path is not None:
            raise invalid_form("two files")
        end = name.encode()[-_NAME_BYTES:].decode(errors="ignore")
        # a folder of its own: the file may have any name
        self.path = self._folder / "file" / (end if end.strip(". ") else "upload")

    def add(self, content: bytes) -> bool:
        """Keep a piece; return whether there is enough to be written."""
        self._ahead += content
        return len(self._ahead) >= _WRITE_BYTES

    def write(self) -> None:
        """Write what is kept."""
        if self.path is None:
            raise invalid_form("no file")
        try:
            self.path.parent.mkdir(exist_ok=True)
            with self.path.open("ab") as out:
                out.write(self._ahead)
        except OSError as error:
            log.warning("an upload is refused: %s", error)
            text = "the server's disk has no space for the file; store it in the bucket, and name it as source"
            raise RequestError(503, "unavailable", text, retry_after_s=_DISK_RETRY_S) from None
        self._ahead.clear()

    def remove(self) -> None:
        """Remove the file."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()


@asynccontextmanager
async def read_upload(request: Request) -> AsyncIterator[Upload]:
    """Read a form with a ``file`` and, if there are any, ``options``. The file is on the disk within the block.

    Raises:
        RequestError: 400, 413 or 415; 503 if the disk is full.
    """
    context = context_of(request)
    upload = await context.run(Upload)
    try:
        part: FormPart | None = None
        async for event in read_form(request, context.settings.max_file_bytes + _FORM_BYTES):
            if isinstance(event, FormPart):
                part = event
                if part.name == "file":
                    upload.begin(part.filename or "")
                elif part.name != "options":
                    raise invalid_form(f"a field {part.name[:80]!r}")
            elif part is not None and part.name == "file":
                if upload.add(event):
                    await context.run(upload.write)
            else:
                upload.options += event
                check_length(len(upload.options), context.settings.max_body_bytes)
        await context.run(upload.write)
        yield upload
    finally:
        # in a request that is cancelled, no thread can be waited for; a folder has one file
        upload.remove()


def invalid_form(found: str) -> RequestError:
    """Return the answer to a form that has something else than a file and options."""
    cure = "send the prompt file as `file` and, if you need any, the options as JSON in `options`"
    return RequestError(400, "invalid_request", f"the form has {found}; {cure}", param="file")


def remove_abandoned(parent: Path, *, now_s: float) -> None:
    """Remove the uploads of servers on this machine that were killed: a server holds a lock while it lives."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if now_s - folder.stat().st_mtime < _LOCKED_S:
                continue
            with (folder / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
