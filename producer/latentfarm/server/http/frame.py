"""The frame of every request: its id, its log line, its metrics, its time limits, and the answer to any error."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

import anyio
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentfarm.server.http.error_answer import error_answer
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.metrics import ServerMetrics

log = logging.getLogger(__name__)
access_log = logging.getLogger("latentfarm.server.access")

#: seconds that a client may take to send more of its body
_BODY_PAUSE_S = 30.0
#: after so many seconds of waiting, bytes a second that a body must bring
_BODY_GRACE_S, _BODY_RATE = 30.0, 512
#: of a request
MAX_HEADER_BYTES = 32_768
#: nginx's status of a request whose client hung up; no client sees it
_HUNG_UP = 499
#: they come every few seconds, and an answer 503 to them would have the server restarted
_PROBES = frozenset({"/livez", "/readyz", "/metrics"})
_UNKNOWN = "unknown"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(eq=False)
class RunningRequest:
    """One request from its header to the end of its answer.

    Attributes:
        headers: of every answer, whichever room gives it.
    """

    scope: Scope
    receive: Receive
    send: Send
    request_id: str
    headers: Mapping[str, str]
    began: float = field(default_factory=time.monotonic)
    status: int = 0
    sent: int = 0
    #: seconds that the server waited for the body, and its bytes so far
    waited_s: float = 0.0
    received: int = 0
    body_ended: bool = False
    cancelled: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    async def receive_timed(self) -> Message:
        """Return the next message. A client that sends its body too slowly is answered 408."""
        if self.body_ended:
            return await self.receive()
        began = time.monotonic()
        message: Message | None = None
        with anyio.move_on_after(_BODY_PAUSE_S):
            message = await self.receive()
        self.waited_s += time.monotonic() - began
        if message is not None and message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            self.body_ended = not message.get("more_body", False)
        late = self.waited_s > _BODY_GRACE_S and self.received < _BODY_RATE * self.waited_s
        if message is None or (late and not self.body_ended):
            raise RequestError(408, "body_too_slow", "the body came too slowly; send it again", retry_after_s=1)
        return message

    async def send_counted(self, message: Message) -> None:
        """Send a message of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            for name, value in self.headers.items():
                headers.setdefault(name, value)
        else:
            self.sent += len(message.get("body", b""))
        await self.send(message)

    @property
    def operation(self) -> str:
        """The pattern of the path."""
        return getattr(self.scope.get("route"), "path", _UNKNOWN)

    def end(self, metrics: ServerMetrics) -> None:
        """Count the request and write its log line."""
        status = self.status or _HUNG_UP
        seconds = time.monotonic() - self.began
        method = self.scope["method"] if self.scope["method"] in _METHODS else "other"
        metrics.requests.labels(method, self.operation, str(status)).inc()
        metrics.duration.labels(method, self.operation).observe(seconds)
        if self.operation in _PROBES:
            return
        # neither the query nor a path that is none of ours: a client may put a prompt into them
        path = self.scope["raw_path"].decode("ascii", "replace") if self.operation != _UNKNOWN else _UNKNOWN
        facts = {
            "key": self.scope["state"].get("key_name", ""),
            "request": self.request_id,
            "status": status,
            "seconds": round(seconds, 4),
        }
        text = f"{method} {path} {status}, {self.sent} bytes in {seconds:.3f} s, request {self.request_id}"
        access_log.info("%s", text, extra=facts)


class RequestFrame:
    """Wraps the application.

    Args:
        app: the application.
        metrics: counts the requests.
        running: the requests that run now.
        max_requests: requests that run at once; a further one is answered 503.
        headers: added to every answer that lacks them.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: ServerMetrics,
        running: set[RunningRequest],
        max_requests: int,
        headers: Mapping[str, str],
    ) -> None:
        self._running = running
        self._app = app
        self._metrics = metrics
        self._max_requests = max_requests
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        running = RunningRequest(scope, receive, send, request_id, self._headers)
        try:
            with self._metrics.running.track_inprogress(), running.cancelled:
                self._running.add(running)
                await self._answer(running)
            if running.cancelled.cancelled_caught and not running.status:
                await self._refuse(running, _ending())
        finally:
            self._running.discard(running)
            running.end(self._metrics)

    async def _answer(self, running: RunningRequest) -> None:
        try:
            if len(self._running) > self._max_requests and running.scope["path"] not in _PROBES:
                raise _full()
            if sum(len(name) + len(value) for name, value in running.scope["headers"]) > MAX_HEADER_BYTES:
                raise RequestError(431, "header_too_large", f"the header has more than {MAX_HEADER_BYTES} bytes")
            await self._app(running.scope, running.receive_timed, running.send_counted)
        except ClientDisconnect:
            # the client gets no answer any more
            pass
        except Exception as error:
            if running.status:
                # the connection is cut, so that the client sees that the answer is not whole
                log.error("request %s failed in its answer", running.request_id, exc_info=error)
                return
            await self._refuse(running, error)

    async def _refuse(self, running: RunningRequest, error: Exception) -> None:
        answer = error_answer(Request(running.scope), error)
        await answer(running.scope, running.receive, running.send_counted)


def _ending() -> RequestError:
    return RequestError(503, "server_ending", "the server is ending; send the request again", retry_after_s=1)


def _full() -> RequestError:
    return RequestError(503, "server_full", "the server answers too many requests at once", retry_after_s=1)
