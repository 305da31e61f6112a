"""Models of a hub are downloaded once, go on after an interruption, and need no network when they are in the cache.

The hub is a server on this machine that answers as the Hugging Face hub's API.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars  # type: ignore[attr-defined]
from tests.support.tiny import make_tiny
from tests.support.tiny.refiners import make_refiner, make_xl

from latentfarm.errors import ModelError
from latentfarm_worker.checkpoints import hub

pytestmark = pytest.mark.unit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A hub with one repository, ``org/model``.

    Attributes:
        cut: bytes of a file after which its first download breaks off; 0: none does.
        ranges: the ``Range`` headers of requests for files.
    """

    files: dict[str, bytes]
    cut: int = 0
    url: str = ""
    served: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/org/model/revision/"):
            siblings = [{"rfilename": name, "size": len(body)} for name, body in self.hub.files.items()]
            self._answer(json.dumps({"id": "org/model", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith("/api/models/org/model/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}  # noqa: S324
                for name, body in self.hub.files.items()
            ]
            self._answer(json.dumps(entries).encode())
        elif "/resolve/" in path and path.startswith("/org/model/"):
            self._file(path.split("/resolve/")[1].split("/", 1)[1])
        else:
            self._answer(b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, status=404)

    def _file(self, name: str) -> None:
        body = self.hub.files.get(name)
        if body is None:
            self._answer(b"", {"X-Error-Code": "EntryNotFound"}, status=404)
            return
        headers = {
            "ETag": f'"{hashlib.sha1(body).hexdigest()}"',  # noqa: S324
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if self.command == "GET":
            self.hub.served.append(name)
        wanted = self.headers.get("Range")
        if wanted and self.command == "GET":
            self.hub.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self._answer(body[start:], headers, status=206)
            return
        cut = self.hub.cut if self.command == "GET" and len(body) > self.hub.cut else 0
        self.hub.cut -= cut
        self._answer(body, headers, cut=cut)

    def _answer(
        self, body: bytes, headers: Mapping[str, str] = MappingProxyType({}), *, status: int = 200, cut: int = 0
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut] if cut else body)
        if cut:
            self.close_connection = True


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = make_tiny(tmp_path_factory.mktemp("tiny") / "sd1")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files["README.md"] = b"---\nlicense: openrail++\n---\n"
    files["unet/diffusion_pytorch_model.fp16.safetensors"] = b"half"
    files["unet/diffusion_pytorch_model.bin"] = b"a pickle"
    files["v1.safetensors"] = b"one file"
    found = Hub(files)
    handler = type("Bound", (Handler,), {"hub": found})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        found.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def opened(served: Hub, home: Path, source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Open a checkpoint in a process of its own, since the hub's library reads its variables once."""
    program = (
        # a part of a file is kept by such pieces, of 10 MB
        "import huggingface_hub.constants; huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 10_000; "
        "import logging, sys; logging.basicConfig(level=logging.INFO, format='%(message)s'); "
        "from latentfarm.errors import ModelError; "
        "from latentfarm_worker.checkpoints.opening import open_checkpoint\n"
        f"try: found = open_checkpoint({source!r})\n"
        "except ModelError as error: sys.exit(f'ModelError: {error}')\n"
        "print(found.licence, found.index['_class_name'])"
    )
    return in_process(served, home, program, **environment)


def in_process(served: Hub, home: Path, program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {"HF_ENDPOINT": served.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
                 "PATH": "/usr/bin:/bin", "HOME": str(home)}  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=variables | environment
    )


def test_a_hub_model_is_downloaded_once_and_then_read_from_the_cache(served: Hub, tmp_path: Path) -> None:
    ran = opened(served, tmp_path, "org/model")
    assert ran.stdout.split() == ["openrail++", "StableDiffusionPipeline"], ran.stderr
    # neither pickles nor variants that were not requested
    assert "unet/diffusion_pytorch_model.safetensors" in served.served
    assert not {name for name in served.served if name.endswith(".bin") or "fp16" in name}
    assert "downloaded" in ran.stderr, "progress is in the log"
    served.served.clear()
    again = opened(served, tmp_path, "org/model", HF_HUB_OFFLINE="1")
    assert again.stdout == ran.stdout
    assert served.served == []


def test_a_variant_is_downloaded_instead_of_the_weights_of_the_parts_that_have_it(served: Hub, tmp_path: Path) -> None:
    ran = opened(served, tmp_path, "org/model,variant=fp16")
    assert ran.returncode == 0, ran.stderr
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in served.served
    assert "vae/diffusion_pytorch_model.safetensors" in served.served, "plain weights, as diffusers does"


def test_a_broken_connection_goes_on_where_it_ended(served: Hub, tmp_path: Path) -> None:
    served.cut = 100_000
    ran = opened(served, tmp_path, "org/model")
    assert ran.returncode == 0, ran.stderr
    assert served.ranges, "the rest is requested, not the whole file"
    assert all(int(each.removeprefix("bytes=").split("-")[0]) > 0 for each in served.ranges)


def test_without_the_model_or_a_network_the_error_names_the_cure(served: Hub, tmp_path: Path) -> None:
    ran = opened(served, tmp_path, "org/other")
    assert ran.stderr.splitlines()[-1].startswith("ModelError: org/other: not in the local hub cache"), ran.stderr
    ran = opened(served, tmp_path, "org/model,revision=v2", HF_HUB_OFFLINE="1")
    last = ran.stderr.splitlines()[-1]
    assert "HF_HUB_OFFLINE; without a network, run `hf download org/model --revision v2 --local-dir FOLDER`" in last
    assert ran.returncode == 1


@pytest.mark.parametrize("set_bars", [enable_progress_bars, disable_progress_bars], ids=["first", "later model"])
def test_progress_is_a_line_every_ten_seconds(
    set_bars: Callable[[], None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a model that was loaded before has disabled the bars of the process
    set_bars()
    clock = [0.0]
    monkeypatch.setattr(hub, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    caplog.set_level(logging.INFO)
    with hub._progress_class("org/model")(total=100_000_000, unit="B", unit_scale=True) as bar:
        for second in range(25):
            clock[0] = float(second)
            bar.n = 4_000_000 * second
            bar.display()
    # other threads of the process log too
    lines = [record.message for record in caplog.records if record.name == hub.__name__]
    assert lines == [
        "org/model: downloaded 40 of 100 MB",
        "org/model: downloaded 80 of 100 MB",
        "org/model: downloaded 96 MB",
    ]


def test_the_error_of_a_missing_model_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        hub.snapshot("no-one/nothing", patterns=hub.TEXTS)
    assert "\n" not in str(caught.value)


def test_of_a_refiners_repository_only_the_unet_is_downloaded(served: Hub, tmp_path: Path) -> None:
    folder = make_refiner(tmp_path / "fine", make_xl(tmp_path / "xl"))
    for path in folder.iterdir():
        served.files[f"unet/{path.name}"] = path.read_bytes()
    program = (
        "from latentfarm_worker.adapters.sources import hub_source; "
        "source = hub_source('org/model'); print(source.kind, source.path.name)"
    )
    ran = in_process(served, tmp_path, program)
    assert ran.stdout.split() == ["refiner", "unet"], ran.stderr
    assert {*served.served} == {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"}
    served.served.clear()
    assert in_process(served, tmp_path, program, HF_HUB_OFFLINE="1").stdout == ran.stdout
    assert served.served == []
