"""The command ``serve``: its start, its end and its errors."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support.scraping import http_get

from latentfarm.cli.serve import serve
from latentfarm.errors import InputError, LatentfarmError, UnavailableError
from latentfarm.monitoring import logs
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


def test_serve_prints_its_address_answers_and_ends_at_a_signal_with_success(settings: Settings, tmp_path: Path) -> None:
    environment = {**os.environ, **settings.environment(), "LATENTFARM_LOG_FORMAT": "text"}
    command = [sys.executable, "-c", SERVE, "serve", "--address", "127.0.0.1:0"]
    with (
        subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process,
        ExitStack() as cleanup,
    ):
        cleanup.callback(process.kill)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("serving http://127.0.0.1:"), line
        address = line.split()[1].removeprefix("http://").rstrip(";")
        assert http_get(address, "/readyz") == (200, "ok\n")
        assert http_get(address, "/api/batches")[0] == 200
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=20)
    assert process.returncode == 0, rest
    *lines, modules = rest.splitlines()
    assert UNNEEDED & set(modules.split()) == set()
    [access] = lines
    assert "server] GET /api/batches 200, " in access


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
