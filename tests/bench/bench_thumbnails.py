"""Measure a page of thumbnails that was never requested before, and the same page again.

    python -m tests.bench.bench_thumbnails            # print the table
    python -m tests.bench.bench_thumbnails --write    # also write it into docs/explanation/benchmarks.md

The images are PNGs of 512 x 512 pixels with as much detail as photographs, half a megabyte each, in the S3 server of
this machine. The client sends its requests on six connections, as browsers do. Client, server, Redis and S3 server
share the cores.
"""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from tests.bench.bench_server import http_server
from tests.bench.servers import farm_servers, temporary_folder
from tests.bench.table import Conditions, Line, parse_arguments, process_cpu_s, report

from latentfarm.farm import Farm
from latentfarm.settings import Settings
from latentfarm.storage.keys import image_key
from latentfarm_worker.images.png import encode_png

_PAGE, _SIDE, _CONNECTIONS = 60, 512, 6
_BAR_S = 1.0


def detailed_pixels(seed: int) -> NDArray[np.uint8]:
    """Return an image whose detail falls with its fineness as that of photographs does: 1/f in amplitude, and a bit."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(_SIDE), np.fft.fftfreq(_SIDE)))
    frequency[0, 0] = 1

    def plane() -> NDArray[np.float64]:
        found = np.fft.ifft2(np.fft.fft2(random.standard_normal((_SIDE, _SIDE))) / frequency**1.3).real
        normal: NDArray[np.float64] = found / found.std()
        return normal

    light = plane()
    colours = np.stack([0.8 * light + 0.2 * plane() for _ in range(3)], axis=-1)
    return np.clip(128 + 55 * colours, 0, 255).astype(np.uint8)


def rendered_pages(farm: Farm, pages: int) -> list[list[str]]:
    """Return the paths of thumbnails that were never made, by page."""
    farm.submit([f"a landscape, number {number}" for number in range(pages * _PAGE)], batch="pages", model="bench")
    # the pixels repeat; the server does not know it
    bodies = [encode_png(detailed_pixels(seed), text={}) for seed in range(12)]
    paths = []
    for lease in farm.ledger.lease("bench", "bench", pages * _PAGE, lease_s=600):
        body, key = bodies[lease.index % len(bodies)], image_key("pages", lease.index, lease.epoch)
        farm.bucket.put(key, body)
        sha256 = hashlib.sha256(body).hexdigest()
        farm.ledger.commit([(lease, {"key": key, "sha256": sha256, "bytes": len(body), "worker": "bench"})])
        paths.append(f"/api/batches/pages/thumbnails/{lease.index}?epoch={lease.epoch}&format=png")
    return [paths[at : at + _PAGE] for at in range(0, len(paths), _PAGE)]


def request_all(address: str, paths: list[str]) -> None:
    """Request the paths on six connections, and wait for all answers."""

    def send(own: list[str]) -> None:
        connection = HTTPConnection(address, timeout=60)
        for path in own:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200 or not body.startswith(b"RIFF"):
                raise RuntimeError(f"a thumbnail was answered {answer.status}: {body[:500]!r}")
        connection.close()

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(send, (paths[place::_CONNECTIONS] for place in range(_CONNECTIONS))))


def measure(settings: Settings, folder: Path, *, rounds: int) -> list[Line]:
    """Return the table's lines."""
    warming, *pages = rendered_pages(Farm.open(settings), rounds + 1)
    cold, warm, used = [], [], []
    with http_server(settings, folder) as (address, pid):
        # the first image that a server reads makes its client of S3
        request_all(address, warming[:1])
        for paths in pages:
            before, began = process_cpu_s(pid), time.perf_counter()
            request_all(address, paths)
            cold.append(time.perf_counter() - began)
            used.append(process_cpu_s(pid) - before)
            began = time.perf_counter()
            request_all(address, paths)
            warm.append(time.perf_counter() - began)
    return [
        Line(f"{_PAGE} thumbnails that are made, median of {rounds} pages", median(cold), "s", _BAR_S),
        Line(f"{_PAGE} thumbnails that are made, slowest page", max(cold), "s"),
        Line("the server's CPU for a thumbnail that is made", 1000 * median(used) / _PAGE, "ms"),
        Line(f"{_PAGE} thumbnails that were made before", median(warm), "s"),
    ]


def main() -> int:
    """Return 1 if a bar is missed."""
    arguments = parse_arguments(__doc__)
    with temporary_folder() as folder, farm_servers(folder / "farm") as settings:
        os.environ["LATENTFARM_SERVER_THUMBNAIL_CACHE"] = str(folder / "thumbnails")
        conditions = Conditions(Farm.open(settings).ledger.ping())
        lines = measure(settings, folder, rounds=1 if arguments.quick else 5)
    return report("thumbnails", lines, conditions, write=arguments.write)


if __name__ == "__main__":
    raise SystemExit(main())
