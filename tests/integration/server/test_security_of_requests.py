"""What no request may do: reach a rebound name, act for another page, exhaust the server, or read others' data."""

from __future__ import annotations

import gzip
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.server.conftest import Serving
from tests.support.http_server import RunningServer

from latentfarm.farm import Farm
from latentfarm.server.app import OPERATIONS
from latentfarm.server.http.operation import Operation
from latentfarm.submission.request import SubmitOptions

pytestmark = pytest.mark.integration

CANARY = "canary in a prompt of another user"
HOSTILE = ("../../etc/passwd", "%2e%2e%2f", "a%00b", "\u732b", "%0d%0aX-Evil:%201", "9" * 40, "a" * 300)

QUERIES = (("", b""), ("?limit=x&cursor=%00&after=../x", b""), ("?limit=1e99&state=x&code=x&cursor=1:theirs", b""))
BODIES = tuple(("", each) for each in (b"", b"{", b"[]", b'{"name": "theirs", "rows": [{"seed": {}}]}'))


def paths_of(operation: Operation) -> Iterator[str]:
    names = re.findall(r"\{[^}]*\}", operation.path)
    if not names:
        yield operation.path
    for value in ("missing", *HOSTILE) if names else ():
        path = operation.path
        for name in names:
            path = path.replace(name, value)
        yield path


def first_line(server: RunningServer, head: str) -> str:
    """Send a header as it is and return the first line of the answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head.encode())
        return connection.recv(65_536).decode().partition("\r\n")[0]


def test_t23_only_names_of_this_server_reach_it(server: RunningServer, serving: Serving) -> None:
    for host in ("localhost", "127.0.0.1:1", "[::1]:7860"):
        assert server.client.get("/v1/files", headers={"Host": host}).status_code == 200
    for operation in OPERATIONS:
        path = next(paths_of(operation))
        answer = server.client.request(operation.method, path, headers={"Host": "evil.example"})
        assert answer.status_code == 421, operation
        assert "LATENTFARM_SERVER_ALLOWED_HOSTS" in answer.text
    named = serving(allowed_hosts="farm.example")
    assert named.client.get("/v1/files", headers={"Host": "farm.example"}).status_code == 200
    # a proxy must not open a server without keys to its clients
    refused = named.client.get("/v1/files", headers={"Host": "farm.example", "X-Forwarded-For": "1.2.3.4"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "keys_required")


def test_t24_a_page_of_another_site_changes_and_reads_nothing(server: RunningServer, farm: Farm) -> None:
    body = {"name": "cats", "rows": ["a cat"]}
    for headers in (
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
    ):
        for operation in OPERATIONS:
            if operation.method != "GET":
                path = next(paths_of(operation))
                answer = server.client.request(operation.method, path, headers=headers)
                assert (answer.status_code, "foreign_origin" in answer.text) == (403, True), operation
        assert server.client.post("/api/batches", json=body, headers=headers).status_code == 403
    # what a form or a script can send without a permission that only CORS gives
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = server.client.post("/api/batches", content=b'{"rows": ["a cat"]}', headers={"Content-Type": kind})
        assert answer.status_code == 415, kind
    assert farm.ledger.batches() == []
    embedded = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    assert server.client.get("/v1/files", headers=embedded).status_code == 403
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = server.client.options("/api/batches", headers=preflight)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_t25_every_answer_has_the_headers_that_protect_a_page(server: RunningServer, farm: Farm) -> None:
    origin = farm.settings.s3_endpoint_url.rstrip("/")
    answers = [
        server.client.get("/v1/files"),
        server.client.get("/livez"),
        server.client.get("/nothing"),
        server.client.put("/v1/files"),
        server.client.get("/v1/files/missing"),
        server.client.get("/v1/files", headers={"Host": "evil.example"}),
        server.client.post("/api/batches", content=b"x", headers={"Content-Encoding": "gzip"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 404, 405, 404, 421, 415]
    for answer in answers:
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert policy["img-src"].split()[-1] == policy["connect-src"].split()[-1] == origin
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "server" not in answer.headers


def test_t26_bodies_are_bounded_however_they_are_packed(server: RunningServer, serving: Serving) -> None:
    bomb = gzip.compress(b"[" * 10_000_000)
    for operation in OPERATIONS:
        if operation.method != "GET":
            path = next(paths_of(operation))
            for encoding in ("gzip", "br", "identity, deflate"):
                answer = server.client.request(
                    operation.method, path, content=bomb, headers={"Content-Encoding": encoding}
                )
                assert answer.status_code == 415, operation
    # a file may be compressed: it is unpacked a block at a time, and no line may be long
    for name, content in (
        ("a.txt.gz", gzip.compress(b"0" * 30_000_000)),
        ("a.txt.gz", b"\x1f\x8b"),
        ("a.parquet", b"P"),
    ):
        for path in ("/api/batches", "/api/plan"):
            answer = server.client.post(path, files={"file": (name, content)})
            assert answer.status_code in {400, 422}, answer.text
            assert "latentfarm-upload" not in answer.text
    small = serving(max_body_bytes=2_000, max_file_bytes=5_000)
    rows = {"rows": ["x" * 100] * 100}
    assert small.client.post("/api/batches", json=rows).status_code == 413
    chunks = (b"x" * 1_000 for _ in range(4))
    answer = small.client.post("/api/batches", content=chunks, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    file = {"file": ("a.jsonl", b"x" * 80_000)}
    assert small.client.post("/v1/files", files=file, data={"purpose": "batch"}).status_code == 413
    # nothing of the length is believed
    for length in ("99999999999999999999", "-1", "1e3"):
        head = f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
        assert re.match(r"HTTP/1.1 4\d\d ", first_line(small, head)), length


@pytest.mark.parametrize(
    "form",
    [
        b"",
        b"--b",
        b"--b\r\n",
        b"--b--\r\n",
        b"no boundary at all",
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nbody',
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nbody\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: attachment; name="file"\r\n\r\nbody\r\n--b--\r\n',
        b"--b\r\n" + b"X: y\r\n" * 5_000 + b"\r\n\r\n--b--\r\n",
        b"--b\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n' * 1_000 + b"--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n' + b"y" * 100_000 + b"\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="\xff\x00"\r\n\r\n\xff\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\nContent-Transfer-Encoding: base64\r\n\r\n'
        b"eA==\r\n--b--\r\n",
    ],
)
def test_t27_hostile_forms_are_refused_and_leave_nothing(server: RunningServer, farm: Farm, form: bytes) -> None:
    for path in sorted({each.path for each in OPERATIONS if each.form is not None}):
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = server.client.post(path, content=form, headers=headers)
        assert 400 <= answer.status_code < 500, (path, answer.text)
        assert len(answer.text) < 1_000
    assert list(farm.bucket.keys("")) == []
    assert farm.ledger.batches() == []


def test_t28_errors_name_no_path_host_or_prompt(server: RunningServer, farm: Farm) -> None:
    rows: list[str | dict[str, Any]] = [{"prompt": CANARY}, {"prompt": CANARY, "num_inference_steps": -1}]
    farm.submit(rows, batch="theirs", model="none", options=SubmitOptions(validate_first=False))
    settings = farm.settings
    secrets = [CANARY, settings.redis_url, settings.s3_endpoint_url, settings.s3_secret_key.get_secret_value()]
    secrets += ["Traceback", "redis.sock", "site-packages", "lf}:"]
    statuses = set()
    for operation in OPERATIONS:
        if "events" in operation.path:
            # a stream without an end
            continue
        for path in paths_of(operation):
            for query, body in QUERIES if operation.method == "GET" else BODIES:
                headers = {"Content-Type": "application/json"} if body else {}
                answer = server.client.request(operation.method, path + query, content=body, headers=headers)
                statuses.add(answer.status_code)
                assert answer.status_code < 500, (operation, path, body, answer.text)
                found = [each for each in secrets if each in answer.text]
                assert answer.status_code < 400 or not found, (operation, path, body, answer.text)
    assert {400, 404} <= statuses
    # the other one's batch is as it was
    assert farm.batch("theirs").status().total == 2
