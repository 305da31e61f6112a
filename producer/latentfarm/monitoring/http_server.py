"""Serve ``/metrics`` for Prometheus, and ``/livez`` and ``/readyz`` for an orchestrator's probes."""

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

#: returns the problem, empty if there is none; it must use local state only
Check = Callable[[], str]

_OK, _UNAVAILABLE, _NOT_FOUND = "200 OK", "503 Service Unavailable", "404 Not Found"


class MetricsServer:
    """Serves a registry and two checks at an address, on its own threads, until ``close``.

    Raises:
        InputError: the address is invalid.
        UnavailableError: the address is in use, or not one of this machine.
    """

    def __init__(self, address: str, registry: CollectorRegistry, *, live: Check, ready: Check) -> None:
        host, port = parse_address(address)
        app = _Application(registry, {"/livez": live, "/readyz": ready})
        try:
            self._server = make_server(host, port, app, _IPv6Server if ":" in host else _Server, _Handler)
        except OSError as error:
            cure = "name an address of this machine, and a port that is free"
            raise UnavailableError(f"cannot serve metrics on {address}: {error.strerror}; {cure}") from error
        self.port = int(self._server.server_port)
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Application:
    def __init__(self, registry: CollectorRegistry, checks: Mapping[str, Check]) -> None:
        self._metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)
        self._checks = checks

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return self._metrics(environ, start_response)
        status, text = _NOT_FOUND, "paths: /metrics, /livez, /readyz"
        if check := self._checks.get(path):
            problem = check()
            status, text = (_UNAVAILABLE, problem) if problem else (_OK, "ok")
        body = f"{text}\n".encode()
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
        return [body]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without a reverse DNS query, which may take seconds."""
        super(WSGIServer, self).server_bind()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _IPv6Server(_Server):
    address_family = AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Log nothing: probes come every few seconds."""
