"""``/metrics``, ``/livez`` and ``/readyz``: what a process that stays tells Prometheus and an orchestrator's probes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from socket import AF_INET6
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from latentfarm.errors import UnavailableError
from latentfarm.monitoring.listen_address import parse_address

#: says why the answer is no, or nothing; it must not ask anybody over the network
Check = Callable[[], str]

_OK, _NOT_NOW, _NOT_FOUND = "200 OK", "503 Service Unavailable", "404 Not Found"


class MetricsServer:
    """Serves a registry and two checks at an address, from threads of its own, until ``close``.

    Raises:
        InputError: it is no address.
        UnavailableError: it is taken, or not one of this machine.
    """

    def __init__(self, address: str, registry: CollectorRegistry, *, live: Check, ready: Check) -> None:
        host, port = parse_address(address)
        app = _Application(registry, {"/livez": live, "/readyz": ready})
        try:
            self._server = make_server(host, port, app, _ServerOfIPv6 if ":" in host else _Server, _Handler)
        except OSError as error:
            raise UnavailableError(f"cannot serve metrics on {address}: {error}") from error
        self.port = int(self._server.server_port)
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Application:
    """Routes three paths."""

    def __init__(self, registry: CollectorRegistry, checks: Mapping[str, Check]) -> None:
        self._metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)
        self._checks = checks

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return self._metrics(environ, start_response)
        status, told = _NOT_FOUND, "/metrics, /livez and /readyz are here"
        if check := self._checks.get(path):
            problem = check()
            status, told = (_NOT_NOW, problem) if problem else (_OK, "ok")
        body = f"{told}\n".encode()
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
        return [body]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without asking a name server who we are, which may take its time."""
        super(WSGIServer, self).server_bind()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _ServerOfIPv6(_Server):
    address_family = AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing: a probe comes every few seconds."""
