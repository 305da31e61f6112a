"""Measure the HTTP server: what it adds to an image, its CPU with many clients, and its memory.

    python -m tests.bench.bench_server            # print the table
    python -m tests.bench.bench_server --write    # also write it into docs/explanation/benchmarks.md

One worker has loaded the bundled model. Clients, worker and servers share the cores. The overhead of an image is the
time of its request less what the engine itself needs: text, denoising and decoding, as its receipt has them.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median, quantiles

from tests.bench.servers import farm_servers, temporary_folder, until, workers
from tests.bench.table import Conditions, Line, parse_arguments, process_cpu_s, report

from latentfarm.farm import Farm
from latentfarm.local.http_server import LocalServer
from latentfarm.settings import Settings

_POLLERS, _LISTENERS = 200, 50
#: each client polls once a second, another path each
_POLLED = ("/api/batches", "/api/workers", "/sdapi/v1/progress", "/v1/models")
#: small requests of every protocol, some of them wrong
_SMALL = (
    ("GET", "/livez", b""),
    ("GET", "/api/batches", b""),
    ("GET", "/v1/models", b""),
    ("GET", "/sdapi/v1/options", b""),
    ("POST", "/v1/images/generations", b'{"prompt": 1}'),
    ("POST", "/v1/images/generations", b"no JSON"),
    ("GET", "/nothing", b""),
    ("GET", "/metrics", b""),
)
_MIB = 1024 * 1024


@contextmanager
def http_server(settings: Settings, folder: Path) -> Iterator[tuple[str, int]]:
    """Run ``latentfarm serve``; yield its address and its process id."""
    server = LocalServer(settings, "127.0.0.1:0", log=folder / "server.log")
    try:
        yield server.wait_for_url().removeprefix("http://"), server.process.pid
    finally:
        server.process.terminate()
        server.process.wait_or_kill(40)


def overhead_ms(farm: Farm, address: str, rounds: int) -> list[float]:
    """Request one image after the other; return the overhead of each."""
    found = []
    connection = HTTPConnection(address, timeout=120)
    for number in range(rounds):
        body = {"prompt": f"a red circle {number}", "model": "mini", "num_inference_steps": 20}
        began = time.perf_counter()
        connection.request(
            "POST", "/v1/images/generations", json.dumps(body), headers={"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        text = answer.read()
        took_s = time.perf_counter() - began
        if answer.status != 200:
            raise RuntimeError(f"an image was answered {answer.status}: {text[:500].decode()}")
        [name] = farm.ledger.batches(interactive=True)
        timings = farm.batch(name).job(0).timings or {}
        found.append(1000 * (took_s - sum(timings[stage] for stage in ("text", "denoise", "decode"))))
        farm.batch(name).delete()
    connection.close()
    return found


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, head: str, body: bytes) -> int:
    """Send a request on a connection that is kept; return the status of its answer."""
    kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    writer.write(f"{head} HTTP/1.1\r\nHost: 127.0.0.1\r\n{kind}\r\n".encode() + body)
    header = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(header.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return int(header.split()[1])


@asynccontextmanager
async def _connection(address: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


async def _poll(address: str, place: int, seconds: float, answers: list[int]) -> None:
    async with _connection(address) as (reader, writer):
        await asyncio.sleep(place / _POLLERS)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            path = _POLLED[place % len(_POLLED)]
            answers.append(await _request(reader, writer, head=f"GET {path}", body=b""))
            await asyncio.sleep(1)


async def _listen(address: str, seconds: float, events: list[bytes]) -> None:
    async with _connection(address) as (reader, writer):
        writer.write(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        try:
            async with asyncio.timeout(seconds):
                while line := await reader.readline():
                    if line.startswith(b"data:"):
                        events.append(line)
        except TimeoutError:
            pass


async def _many_clients(address: str, seconds: float) -> tuple[list[int], list[bytes]]:
    answers: list[int] = []
    events: list[bytes] = []
    await asyncio.gather(
        *(_poll(address, place, seconds, answers) for place in range(_POLLERS)),
        *(_listen(address, seconds, events) for _ in range(_LISTENERS)),
    )
    return answers, events


async def _small_requests(address: str, count: int) -> None:
    async def send(place: int) -> None:
        async with _connection(address) as (reader, writer):
            for number in range(count // 20):
                method, path, body = _SMALL[(place + number) % len(_SMALL)]
                await _request(reader, writer, head=f"{method} {path}", body=body)

    await asyncio.gather(*(send(place) for place in range(20)))


def measure(settings: Settings, folder: Path, *, quick: bool) -> list[Line]:
    """Measure one server after the other thing."""
    farm = Farm.open(settings)
    with http_server(settings, folder) as (address, pid):
        overhead_ms(farm, address, 3)
        overheads = overhead_ms(farm, address, 5 if quick else 100)

        # a batch that is rendered meanwhile changes what is polled and sends progress to the listeners
        batch = farm.submit([{"prompt": f"p{n}", "num_inference_steps": 4} for n in range(5_000)], batch="background")
        seconds = 5 if quick else 60
        before, began = process_cpu_s(pid), time.monotonic()
        answers, events = asyncio.run(_many_clients(address, seconds))
        share = (process_cpu_s(pid) - before) / (time.monotonic() - began)
        batch.cancel()
        print(f"{len(answers)} answers, of them 200: {answers.count(200)}; {len(events)} events", flush=True)
        if set(answers) != {200} or len(events) < _LISTENERS:
            raise RuntimeError(f"clients were refused: {set(answers)}, {len(events)} events")

        asyncio.run(_small_requests(address, 500 if quick else 5_000))
        resident = resident_bytes(pid)
        asyncio.run(_small_requests(address, 10_000))
        growth = (resident_bytes(pid) - resident) / _MIB
    return [
        Line(f"one image: overhead over the engine, median of {len(overheads)}", median(overheads), "ms", 60),
        Line("one image: overhead, slowest of twenty", quantiles(overheads, n=20)[-1], "ms"),
        Line(f"{_POLLERS} clients that poll each second, {_LISTENERS} listeners: CPU", 100 * share, "% of a core", 25),
        Line("server's memory", resident / _MIB, "MiB"),
        Line("growth of the server's memory over 10,000 small requests", growth, "MiB", 1),
    ]


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__)
    # one client sends all requests
    os.environ["LATENTFARM_SERVER_REQUESTS_PER_MINUTE"] = "10000000"
    with temporary_folder() as folder, farm_servers(folder / "farm") as settings:
        conditions = Conditions(Farm.open(settings).ledger.ping())
        with workers(settings, 1, folder / "logs"):
            until(lambda: bool(Farm.open(settings).workers()), "the worker")
            lines = measure(settings, folder, quick=arguments.quick)
    return report("server", lines, conditions, write=arguments.write)


if __name__ == "__main__":
    raise SystemExit(main())
