"""Who is admitted: keys, scopes, sessions, rates and the audit log."""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from tests.integration.server.conftest import Serving
from tests.support.http_server import RunningServer

from latentfarm.errors import InputError
from latentfarm.farm import Farm
from latentfarm.server import dashboard
from latentfarm.server.app import OPERATIONS
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.security.keys import new_key
from latentfarm.server.settings import ServerSettings

pytestmark = pytest.mark.integration

KEYS = {name: new_key(name, name) for name in ("read", "submit", "admin")}
PROTECTED = [operation for operation in OPERATIONS if operation.scope is not Scope.NONE]


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text("".join(f"{key.line}\n" for _, key in KEYS.values()))
    return file


@pytest.fixture(scope="module")
def shared_keyed(connected: Farm, keys_file: Path) -> Iterator[RunningServer]:
    with RunningServer(connected, ServerSettings(address="0.0.0.0:0", api_keys_file=keys_file)) as server:
        yield server


@pytest.fixture
def keyed(shared_keyed: RunningServer, farm: Farm) -> RunningServer:
    """A server with keys, on every interface."""
    assert shared_keyed.app.state.context.farm is farm
    return shared_keyed


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name][0]}"}


def path_of(operation: Operation) -> str:
    return operation.path.replace("{name}", "cats").replace("{index}", "0").replace("{", "").replace("}", "")


def test_t16_a_server_for_other_machines_does_not_start_without_keys(connected: Farm, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="latentfarm key new NAME --append"):
        RunningServer(connected, ServerSettings(address="0.0.0.0:0"))
    broken = tmp_path / "keys.txt"
    broken.write_text("alice:secret:read\n")
    with pytest.raises(InputError, match=r"keys\.txt line 1.*latentfarm key new"):
        RunningServer(connected, ServerSettings(address="127.0.0.1:0", api_keys_file=broken))


def test_t17_no_operation_runs_without_a_key_of_its_scope(keyed: RunningServer) -> None:
    assert {operation.path for operation in OPERATIONS if operation.scope is Scope.NONE} == {
        *("/livez", "/readyz", "/metrics", "/api/session"),
        # the files of the package: the page has nothing of the farm before a session begins
        *(operation.path for operation in dashboard.OPERATIONS),
    }
    assert {operation.method for operation in dashboard.OPERATIONS} == {"GET"}
    lower = {Scope.SUBMIT: "read", Scope.ADMIN: "submit"}
    for operation in PROTECTED:
        path = path_of(operation)
        answer = keyed.client.request(operation.method, path)
        assert answer.status_code == 401, (operation, answer.text)
        # a browser prompts its user for a password only where clients use one
        scheme = "Basic" if path.startswith("/sdapi/") else "Bearer"
        assert answer.headers["www-authenticate"].startswith(scheme)
        if operation.scope in lower:
            answer = keyed.client.request(operation.method, path, headers=bearer(lower[operation.scope]))
            assert answer.status_code == 403, (operation, answer.text)
            assert f"scope {operation.scope}" in answer.text


def test_t18_a_key_is_sent_in_any_of_three_headers(keyed: RunningServer) -> None:
    secret = KEYS["submit"][0]
    basic = b64encode(f"anybody:{secret}".encode()).decode()
    for headers in (
        {"Authorization": f"Bearer {secret}"},
        {"Authorization": f"bearer  {secret}"},
        {"X-API-Key": secret},
        {"Authorization": f"Basic {basic}"},
    ):
        answer = keyed.client.get("/api/session", headers=headers)
        assert answer.json() == {
            "name": "submit",
            "scopes": ["read", "submit"],
            "csrf_token": "",
            "expires_at": None,
        }
    for value in (f"Bearer {secret}x", "Bearer", f"Basic {secret}", "Basic", f"Digest {secret}", "Bearer \xff"):
        answer = keyed.client.get("/api/session", headers=[(b"authorization", value.encode("latin-1"))])
        assert answer.status_code == 401, value
    # a wrong key is not made good by another way
    headers = {"Authorization": "Bearer x", "X-API-Key": secret}
    assert keyed.client.get("/api/session", headers=headers).status_code == 401


def test_t19_wrong_keys_are_limited_by_address_and_no_key_is_logged(
    serving: Serving, keys_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = serving(api_keys_file=keys_file)
    with caplog.at_level(logging.INFO):
        answers = [server.client.get("/v1/files", headers={"X-API-Key": f"canary-{n}"}) for n in range(25)]
        assert [answer.status_code for answer in answers] == [401] * 20 + [429] * 5
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 4
        # one client behind a proxy does not lock out the others
        assert server.client.get("/v1/files", headers=bearer("read")).status_code == 200
    assert len([record for record in caplog.records if "wrong key" in record.getMessage()]) == 20
    assert "canary" not in caplog.text
    assert KEYS["read"][0] not in caplog.text
    assert "127.0.0.1" in caplog.text


def test_t20_a_key_has_a_rate(serving: Serving, keys_file: Path) -> None:
    server = serving(api_keys_file=keys_file, requests_per_minute=3)
    answers = [server.client.get("/v1/files", headers=bearer("read")) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[-1].json()["error"]["type"] == "rate_limit_error"
    assert (answers[-1].headers["x-should-retry"], int(answers[-1].headers["retry-after"])) == ("true", 20)
    assert server.client.get("/v1/files", headers=bearer("submit")).status_code == 200


def test_t20_images_have_a_rate_of_their_own(serving: Serving, keys_file: Path) -> None:
    server = serving(api_keys_file=keys_file, requests_per_minute=2, images_per_minute=3)
    paths = ["images/0", "thumbnails/0", "previews/0?epoch=1&number=0&format=png", "images/1"]
    answers = [server.client.get(f"/api/batches/none/{path}", headers=bearer("read")) for path in paths]
    assert [answer.status_code for answer in answers] == [404, 404, 404, 429]
    assert int(answers[-1].headers["retry-after"]) == 20
    answers = [server.client.get("/api/workers", headers=bearer("read")) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]


def test_t21_a_session_is_a_cookie_with_a_token_that_every_server_knows(
    serving: Serving, tmp_path: Path, farm: Farm
) -> None:
    secret, key = new_key("alice", "submit")
    file = tmp_path / "keys.txt"
    file.write_text(f"{key.line}\n")
    first, second = serving(api_keys_file=file), serving(api_keys_file=file)
    begun = first.client.post("/api/session", json={"key": secret})
    assert begun.status_code == 201, begun.text
    set_cookie = begun.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(set_cookie.split("; "))
    assert "Secure" not in set_cookie
    assert secret not in set_cookie
    cookie, token = set_cookie.partition(";")[0], begun.json()["csrf_token"]
    with httpx2.Client(base_url=second.url, headers={"Cookie": cookie}) as browser:
        assert browser.get("/api/session").json() == begun.json()
        path = "/v1/files/file-1"
        for wrong in ({}, {"X-CSRF-Token": token[:-1]}, {"X-CSRF-Token": ""}):
            refused = browser.delete(path, headers=wrong)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "csrf_token")
        assert browser.delete(path, headers={"X-CSRF-Token": token}).status_code == 404
        # a page on another port has the cookie, too
        foreign = {"X-CSRF-Token": token, "Sec-Fetch-Site": "same-site"}
        assert browser.delete(path, headers=foreign).json()["error"]["code"] == "foreign_origin"
        forged = cookie.replace("alice", "admin")
        assert browser.get("/api/session", headers={"Cookie": forged}).status_code == 401
        # the key is replaced: its sessions end
        file.write_text(f"{new_key('alice', 'submit')[1].line}\n")
        second.app.state.guard._file._checked_at = 0.0
        assert browser.get("/api/session").status_code == 401
    ended = first.client.delete("/api/session")
    assert (ended.status_code, ended.headers.get_list("set-cookie")[1].partition(";")[0]) == (204, 'latentfarm=""')
    stored = farm.ledger.redis.get("{lf}:session_secret")
    assert isinstance(stored, bytes)
    assert len(stored) == 32


def test_t21_behind_https_the_cookie_is_of_https_only(keyed: RunningServer) -> None:
    origin = f"https://127.0.0.1:{keyed.port}"
    body = {"key": KEYS["read"][0]}
    begun = keyed.client.post("/api/session", json=body, headers={"Origin": origin})
    assert begun.headers["set-cookie"].startswith("__Host-latentfarm=")
    assert "Secure" in begun.headers["set-cookie"].split("; ")
    keyed.client.cookies.clear()
    # a page of another site cannot begin a session of its own key
    refused = keyed.client.post("/api/session", json=body, headers={"Origin": "https://evil.example"})
    assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)
    wrong = keyed.client.post("/api/session", json={"key": "canary"})
    assert (wrong.status_code, "canary" in wrong.text) == (401, False)


def test_t22_every_change_has_an_audit_line_without_prompts_and_keys(
    keyed: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    # these refuse every request, or change nothing
    without = {"/v1/images/variations", "/api/plan"}
    silent = {each.path for each in OPERATIONS if each.method != "GET" and not each.audited}
    assert silent - without == {"/api/session"}
    with caplog.at_level(logging.INFO):
        rows = {"name": "cats", "model": "none", "rows": ["canary"]}
        created = keyed.client.post("/api/batches", json=rows, headers=bearer("submit"))
        assert created.status_code == 201
        assert keyed.client.post("/api/batches/cats/pause", headers=bearer("submit")).status_code == 200
        # neither a refused change nor a read is one
        assert keyed.client.post("/api/batches/cats/pause", headers=bearer("read")).status_code == 403
        assert keyed.client.get("/api/batches/cats", headers=bearer("read")).status_code == 200
        assert keyed.client.post("/api/batches/a%0Aaudit/pause", headers=bearer("submit")).status_code >= 400
    lines = [record for record in caplog.records if record.name == "latentfarm.audit"]
    assert lines[0].getMessage() == (
        "audit key=submit operation='POST /api/batches' batch=cats from=127.0.0.1 status=201 "
        f"request={created.headers['x-request-id']}"
    )
    assert len(lines) == 2
    assert "batch=cats from=127.0.0.1" in lines[1].getMessage()
    assert vars(lines[1])["batch"] == "cats"
    assert "canary" not in caplog.text
    assert KEYS["submit"][0] not in caplog.text
    assert all("\n" not in record.getMessage() for record in caplog.records)
