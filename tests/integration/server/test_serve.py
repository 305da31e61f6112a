"""The command ``serve``: its start, its end and its errors."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from tests.conftest import until
from tests.support.scraping import http_get

from latentfarm.cli.serve import serve
from latentfarm.errors import InputError, LatentfarmError, UnavailableError
from latentfarm.farm import Farm
from latentfarm.monitoring import logs
from latentfarm.server.http.process import listen, url_of
from latentfarm.settings import Settings

pytestmark = pytest.mark.integration

#: a server needs none of them, and they are slow to import
UNNEEDED = {"torch", "numpy", "diffusers", "transformers", "celery", "kombu", "latentfarm_worker", "rich", "pyarrow"}
SERVE = """
import atexit, sys
atexit.register(lambda: print("MODULES", *{name.partition(".")[0] for name in sys.modules}, file=sys.stderr))
from latentfarm.cli import main
main()
"""


@contextmanager
def serving_process(settings: Settings) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command; yield the process and its address."""
    environment = {**os.environ, **settings.environment(), "LATENTFARM_LOG_FORMAT": "text"}
    command = [sys.executable, "-c", SERVE, "serve", "--address", "127.0.0.1:0"]
    with (
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process,
        ExitStack() as cleanup,
    ):
        cleanup.callback(process.kill)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("serving http://127.0.0.1:"), line
        yield process, line.split()[1].removeprefix("http://").rstrip(";")


def test_serve_prints_its_address_answers_and_ends_at_a_signal_with_success(settings: Settings) -> None:
    with serving_process(settings) as (process, address):
        assert http_get(address, "/readyz") == (200, "ok\n")
        assert http_get(address, "/api/batches")[0] == 200
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=20)
    assert process.returncode == 0, rest
    *lines, modules = rest.splitlines()
    assert UNNEEDED & set(modules.split()) == set()
    [access] = lines
    assert "server] GET /api/batches 200, " in access


@pytest.mark.usefixtures("rendering")
def test_a_server_that_ends_finishes_the_image_that_a_client_waits_for(farm: Farm, settings: Settings) -> None:
    body = {"prompt": "a red circle", "size": "64x64", "num_inference_steps": 60}

    def leased() -> bool:
        return any(farm.ledger.batch(name).leased for name in farm.ledger.batches(interactive=True))

    with serving_process(settings) as (process, address), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx2.post, f"http://{address}/v1/images/generations", json=body, timeout=60)
        until(leased, timeout_s=30)
        process.send_signal(signal.SIGTERM)
        assert answer.result(60).json()["data"][0]["b64_json"]
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("address", "url"),
    [("localhost:0", "http://127.0.0.1:"), (":0", "http://127.0.0.1:"), ("[::1]:0", "http://[::1]:")],
)
def test_the_printed_address_leads_to_the_server(address: str, url: str) -> None:
    with listen(address) as listener:
        found = urlsplit(url_of(listener))
        assert found.geturl().startswith(url)
        socket.create_connection((str(found.hostname), int(found.port or 0))).close()


def test_what_hinders_a_server_is_an_error_with_the_cure(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    # it would replace the handlers of this process
    monkeypatch.setattr(logs, "configure", lambda *_, **__: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        cases: tuple[tuple[str, type[LatentfarmError], str], ...] = (
            ("7860", InputError, "--address is '7860'; write HOST:PORT"),
            (address, UnavailableError, f"cannot serve {address}: Address already in use; name an address"),
            ("192.0.2.1:7860", InputError, "latentfarm key new"),
            ("no.such.host.invalid:7860", InputError, "latentfarm key new"),
        )
        for given, error, part in cases:
            with pytest.raises(error, match=re.escape(part)):
                serve(given)
    monkeypatch.setenv("LATENTFARM_SERVER_MAX_CONNECTIONS", "100000000")
    with pytest.raises(InputError, match="ulimit -n"):
        serve("127.0.0.1:0")
    without = [sys.executable, "-c", f"import sys; sys.modules['uvicorn'] = None\n{SERVE}", "serve"]
    ended = subprocess.run(without, cwd=tmp_path, capture_output=True, text=True, check=False)
    line = "latentfarm: the server needs uvicorn: pip install 'latentfarm[server]'"
    assert (ended.returncode, ended.stderr.splitlines()[0]) == (2, line)
