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
    subjects = dict(request.path_params)
    created = getattr(request.state, "audited_batch", "")
    if created:
        subjects["batch"] = created
    parts = {
        "key": access_of(request).name,
        "operation": f"{operation.method} {operation.path}",
        **subjects,
        "from": address,
        "status": answer.status_code,
        "request": request.state.request_id,
    }
    batch = created or request.path_params.get("name", "")
    text = " ".join(f"{name}={_plain(value)}" for name, value in parts.items())
    log.info("audit %s", text, extra={"batch": batch} if batch else None)


def _plain(value: object) -> str:
    """Return a value in one line: a client may put line breaks into a path."""
    text = str(value)[:_MAX_VALUE]
    return text if text.isascii() and text.isprintable() and " " not in text else repr(text)
