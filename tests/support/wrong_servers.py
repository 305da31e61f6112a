"""Servers that a URL may name by mistake, each on a port of the loopback interface."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from threading import Thread

import trustme

Reply = Callable[[socket.socket], None]


@contextmanager
def listening(reply: Reply) -> Iterator[int]:
    """Serve each connection in a thread; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(connection: socket.socket) -> None:
            with closing(connection), suppress(OSError):
                reply(connection)

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                Thread(target=serve, args=(connection,), daemon=True).start()

        Thread(target=accept, daemon=True).start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)


def be_silent(connection: socket.socket) -> None:
    """Accept and never answer."""
    while connection.recv(4096):
        pass


def hang_up(connection: socket.socket) -> None:
    """Close the connection at the first byte."""
    connection.recv(1)


def speak_http(connection: socket.socket) -> None:
    """Answer as an HTTP server does to what is no HTTP."""
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")


def speak_memcached(connection: socket.socket) -> None:
    """Answer as memcached does to what it does not know."""
    while received := connection.recv(4096):
        connection.sendall(b"ERROR\r\n" * received.count(b"\n"))


def speak_ssh(connection: socket.socket) -> None:
    """Begin with a banner."""
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
    be_silent(connection)


@contextmanager
def tls_port(port: int) -> Iterator[tuple[int, trustme.CA]]:
    """Add TLS to a server; yield the port and the CA."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)

    def pass_on(connection: socket.socket) -> None:
        with (
            context.wrap_socket(connection, server_side=True) as tls,
            socket.create_connection(("127.0.0.1", port)) as behind,
        ):
            Thread(target=copy, args=(behind, tls), daemon=True).start()
            copy(tls, behind)

    with listening(pass_on) as found:
        yield found, authority


def copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
