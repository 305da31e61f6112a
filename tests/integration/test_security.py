"""A locked farm: Redis users with their permissions, bucket roles, and no prompt or secret outside the bucket.

All tests check one run of a real worker, with a canary in every prompt and secret.
"""

from __future__ import annotations

import json
import pickle
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from fnmatch import fnmatchcase
from threading import Thread
from typing import Any

import pytest
import redis
import trustme
from kombu.exceptions import OperationalError
from tests.conftest import REPOSITORY
from tests.support.locked_farm import CANARY, ROLES, TOKEN, Mark, Run, locked_farm
from tests.support.locked_redis import DOCS
from tests.support.s3_front import Right

from latentfarm import doorbell
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def run(servers: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with locked_farm(servers, tmp_path_factory.mktemp("locked")) as found:
        yield found


def test_a_locked_farm_renders_commits_and_flushes(run: Run) -> None:
    states = [line["state"] for line in run.results]
    assert states == ["done", "done", "failed", "failed", "failed", "failed"]
    codes = [line["error"]["code"] for line in run.results[2:]]
    assert codes == ["scheduler", "invalid_row", "invalid_row", "manifest_unreadable"]
    assert [line["request"]["prompt"] for line in run.results[:2]] == [f"{CANARY} one", f"{CANARY} two"]


def test_redis_receives_no_prompt(run: Run) -> None:
    assert len(run.commands) > 100
    assert [command for command in run.commands if CANARY in command] == []


def test_no_key_and_no_value_in_redis_contains_a_prompt_or_a_secret(run: Run) -> None:
    values = dump(run.client("admin"))
    assert any("{lf}:batch:cats" in value for value in values)
    for text in (CANARY, *run.secrets):
        assert [value for value in values if text in value] == []
    # workers need the URL with its token
    assert [value.partition(" ")[0] for value in values if TOKEN in value] == ["{lf}:batch:cats"]


def dump(client: Any) -> list[str]:
    readers = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"set": client.smembers,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"stream": client.xrange,
    }
    return [f"{key.decode()} {readers[client.type(key)](key)}" for key in client.scan_iter()]


def test_a_doorbell_contains_no_data(run: Run) -> None:
    for message in run.messages:
        assert not [text for text in (CANARY, TOKEN, "cats", *run.secrets) if text in message]


def test_logs_contain_no_prompt_no_secret_and_no_token(run: Run) -> None:
    worker, server = (log.read_text() for log in run.logs)
    assert "cats/2 failed: scheduler" in worker
    assert "cats/5 failed: manifest_unreadable" in worker
    for text in (CANARY, TOKEN, *run.secrets):
        assert text not in worker, text
        assert text not in server, text


def test_the_error_of_a_webhook_contains_no_token(run: Run) -> None:
    assert TOKEN not in run.webhook
    assert run.webhook not in {"", "None"}


def test_the_results_have_the_full_error_that_the_ledger_has_not(run: Run) -> None:
    message = run.results[3]["error"]["message"]
    assert "width" in message
    assert CANARY in message


def test_a_pickle_in_the_queue_is_refused(run: Run) -> None:
    assert not run.pickled.exists()
    pickle.loads(pickle.dumps(Mark(run.pickled)))  # noqa: S301 - unpickling would have created it
    assert run.pickled.exists()
    assert "Refusing to deserialize" in run.logs[0].read_text()


def test_a_workers_permissions_suffice_to_remove_orphans(run: Run) -> None:
    for key in run.leftovers:
        assert Right("s3:DeleteObject", key) in run.requests["worker"]
        assert not Bucket.connect(run.settings["producer"]).exists(key)


def test_a_workers_permissions_suffice_for_previews_and_to_delete_what_has_expired(run: Run) -> None:
    previews = {right.key for right in run.requests["worker"] if "/previews/" in right.key}
    assert previews
    for key in (*previews, "batches/interactive-0/batch.json", "batches/interactive-0/manifest/part-00000.jsonl.gz"):
        assert Right("s3:DeleteObject", key) in run.requests["worker"]
        assert not Bucket.connect(run.settings["producer"]).exists(key)


def test_a_workers_permissions_suffice_to_put_images_down_and_take_them_up(run: Run) -> None:
    drafts = {right for right in run.requests["worker"] if "batches/drafts/drafts/" in right.key}
    assert {right.action for right in drafts} == {"s3:PutObject", "s3:GetObject", "s3:DeleteObject"}
    # the preview and the checkpoint of the draft that was finished, and of the one that was discarded
    assert not list(Bucket.connect(run.settings["producer"]).keys("batches/drafts/drafts/"))


# -- Redis -----------------------------------------------------------------------------------------------------

FORBIDDEN = [
    "FLUSHALL", "FLUSHDB", "KEYS *", "SCAN 0", "CONFIG GET *", "CONFIG SET dir /", "DEBUG SLEEP 0", "SHUTDOWN NOSAVE",
    "SAVE", "BGREWRITEAOF", "ACL LIST", "ACL WHOAMI", "CLIENT LIST", "MONITOR", "SCRIPT FLUSH", "SLAVEOF NO ONE",
    "MODULE LIST", "EVAL return 0", "RENAME {lf}:batches {lf}:b", "MOVE {lf}:batches 1", "DUMP {lf}:batches",
    "GET other", "SET other 1", "PUBLISH other 1", "SWAPDB 0 1", "MIGRATE h 1 {lf}:batches 0 1",
]  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("command", FORBIDDEN)
def test_a_role_cannot_use_other_keys_or_commands(run: Run, role: str, command: str) -> None:
    # Valkey refuses DEBUG to every user
    refused = pytest.raises(redis.ResponseError, match=r"permission|DEBUG command not allowed")
    with closing(run.client(role)) as client, refused:
        client.execute_command(*command.split(" "))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("body", ["redis.call('FLUSHALL')", "redis.call('KEYS', '*')", "redis.call('GET', 'else')"])
def test_a_script_has_only_its_users_permissions(run: Run, role: str, body: str) -> None:
    with closing(run.client(role)) as client, pytest.raises(redis.ResponseError, match=r"can't run|can't access|ACL"):
        client.register_script(f"return {body}")()


def test_a_connection_without_a_password_is_refused(run: Run) -> None:
    with closing(redis.Redis(port=run.port)) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_every_permission_in_redis_is_used(run: Run) -> None:
    used = {name.removeprefix("cmdstat_").partition("|")[0] for name in run.client("admin").info("commandstats")}
    scripts = "".join(file.read_text() for file in (REPOSITORY / "producer/latentfarm/ledger/scripts").glob("*.lua"))
    for line in (DOCS / "redis-acl.txt").read_text().splitlines():
        granted = [word[1:] for word in line.split() if word.startswith("+")]
        idle = [name for name in granted if name.partition("|")[0] not in used and f"'{name.upper()}'" not in scripts]
        assert idle == [], line.split()[1]


def test_a_doorbell_over_tls_sends_no_password_to_an_untrusted_server() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, closing(connection):
                    try:
                        with context.wrap_socket(connection, server_side=True) as tls:
                            received.append(tls.recv(1000))
                    except OSError:
                        received.append(b"")

        Thread(target=listen, daemon=True).start()
        app = doorbell.make_app(f"rediss://:hunter2@127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises((OperationalError, redis.ConnectionError)), app.connection_for_write() as connection:
            connection.default_channel.client.ping()
        server.shutdown(socket.SHUT_RDWR)
    assert received
    assert b"hunter2" not in b"".join(received)


# -- the bucket ------------------------------------------------------------------------------------------------


def statements(role: str) -> Iterator[tuple[str, str]]:
    """Yield each pair of action and resource in a published policy."""
    policy = json.loads((DOCS / f"s3-{role}.json").read_text())
    for statement in policy["Statement"]:
        assert statement.keys() == {"Sid", "Effect", "Action", "Resource"}
        assert statement["Effect"] == "Allow"
        actions, resources = (
            [value] if isinstance(value, str) else value for value in (statement["Action"], statement["Resource"])
        )
        for action in actions:
            for resource in resources:
                yield action, resource


def allows(role: str, request: Right, bucket: str = "BUCKET") -> bool:
    place = f"arn:aws:s3:::{bucket}" + (f"/{request.key}" if request.key else "")
    return any(action == request.action and fnmatchcase(place, resource) for action, resource in statements(role))


@pytest.mark.parametrize("role", ROLES)
def test_a_policy_allows_every_request_of_its_role(run: Run, role: str) -> None:
    assert len(run.requests[role]) > 10
    assert [each for each in run.requests[role] if not allows(role, each)] == []


@pytest.mark.parametrize("role", ROLES)
def test_every_permission_of_a_policy_is_used(run: Run, role: str) -> None:
    for action, resource in statements(role):
        assert "*" not in action
        places = [f"arn:aws:s3:::BUCKET/{a.key}".rstrip("/") for a in run.requests[role] if a.action == action]
        assert any(fnmatchcase(place, resource) for place in places), (action, resource)


def test_a_worker_cannot_change_manifests_headers_and_decisions() -> None:
    for key in ("manifest/part-00000.jsonl.gz", "batch.json", "control.json"):
        assert not allows("worker", Right("s3:PutObject", f"batches/interactive-0/{key}"))
    for key in ("batches/cats/manifest/part-00000.jsonl.gz", "batches/cats/batch.json", "batches/cats/control.json"):
        for action in ("s3:PutObject", "s3:DeleteObject"):
            assert not allows("worker", Right(action, key))
            assert allows("producer", Right(action, key))
    assert not allows("worker", Right("s3:GetObject", "other.txt"))
    assert not allows("producer", Right("s3:GetObject", "batches/x"), bucket="OTHER")
