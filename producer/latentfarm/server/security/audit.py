"""The audit log: one line for each successful change, without prompts, bodies and keys."""

from __future__ import annotations

import logging

from starlette.requests import Request
from starlette.responses import Response

from latentfarm.server.http.operation import Operation
from latentfarm.server.security.access import access_of

log = logging.getLogger("latentfarm.audit")

_MAX_VALUE = 100


def write_audit(request: Request, operation: Operation, answer: Response, address: str) -> None:
    """Write the line of a request, if its operation is audited and has succeeded."""
    if not operation.audited or answer.status_code >= 400:
        return
    subjects = {"batch" if name == "name" else name: value for name, value in request.path_params.items()}
    if created := getattr(request.state, "audited_batch", ""):
        subjects["batch"] = created
    key, status, request_id = access_of(request).name, answer.status_code, request.state.request_id
    parts = {
        "key": key,
        "operation": f"{operation.method} {operation.path}",
        **subjects,
        "from": address,
        "status": status,
        "request": request_id,
    }
    text = " ".join(f"{name}={_plain(value)}" for name, value in parts.items())
    extra = {"key": key, "status": status, "request": request_id}
    log.info("audit %s", text, extra={**extra, "batch": subjects["batch"]} if "batch" in subjects else extra)


def _plain(value: object) -> str:
    """Return a value in one line: a client may put line breaks into a path."""
    text = str(value)[:_MAX_VALUE]
    return text if text.isascii() and text.isprintable() and " " not in text else repr(text)
