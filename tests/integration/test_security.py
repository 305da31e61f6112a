"""A locked farm: Redis users with their permissions, bucket roles, and no prompt or secret outside the bucket.

All tests check one run of a real worker, with a canary in every prompt and secret.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import secrets
import socket
import ssl
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import redis
import trustme
from kombu.exceptions import OperationalError
from tests.conftest import REPOSITORY, until
from tests.support.locked_redis import DOCS, locked_redis
from tests.support.s3_front import Right, front

from latentfarm import doorbell
from latentfarm.farm import Farm
from latentfarm.ledger import Ledger
from latentfarm.local.process import ManagedProcess
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.bucket_check import check_bucket
from latentfarm.storage.keys import image_key, intermediates_key, manifest_key
from latentfarm.storage.part_codec import pack, unpack
from latentfarm.submission.request import SubmitOptions

pytestmark = pytest.mark.integration

#: part of every text of the user
CANARY = "canary-7f3a"
TOKEN = "token-91c2"
SMALL = {"num_inference_steps": 2, "width": 64, "height": 64}
ROLES = ("producer", "worker")


@dataclass
class Run:
    """A farm after one run: its users, and everything that was sent, stored and logged."""

    port: int
    passwords: dict[str, str]
    settings: dict[str, Settings]
    logs: list[Path]
    pickled: Path
    secrets: list[str]
    requests: dict[str, set[Right]] = field(default_factory=lambda: {role: set() for role in ROLES})
    commands: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    webhook: str = ""

    def client(self, user: str) -> Any:
        password = self.passwords[user]
        # a monitor may be silent for long
        return redis.Redis(port=self.port, db=1, username=user, password=password, socket_timeout=None)


class Mark:
    """Creates a file when unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def pickled_message(file: Path) -> str:
    """Return a hostile message: the doorbell's task with a pickled body."""
    headers = {"task": doorbell.TASK_NAME, "id": str(uuid.uuid4()), "lang": "py", "root_id": "x", "parent_id": None}
    properties = {
        "correlation_id": headers["id"],
        "delivery_tag": str(uuid.uuid4()),
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "render.mini"},
        "body_encoding": "base64",
        "priority": 0,
    }
    return json.dumps(
        {
            "body": base64.b64encode(pickle.dumps(Mark(file))).decode(),
            "content-encoding": "binary",
            "content-type": "application/x-python-serialize",
            "headers": headers,
            "properties": properties,
        }
    )


def submit(run: Run) -> None:
    """Submit prompts with the canary: two valid, one that cannot be rendered, two invalid and a forged one."""
    rows: list[dict[str, Any]] = [
        {"prompt": f"{CANARY} one", "negative_prompt": CANARY, "id": f"{CANARY}-1", **SMALL},
        {"prompt": f"{CANARY} two", "note": CANARY, "save_intermediates": True, **SMALL},
        {"prompt": f"{CANARY} three", **SMALL, "scheduler_options": {"nope": 1}},
        {"prompt": f"{CANARY} four", "width": CANARY, CANARY: CANARY},
        {"prompt": CANARY * 500},
        {"prompt": f"{CANARY} six", **SMALL},
    ]
    farm = Farm.open(run.settings["producer"])
    from latentfarm.submission.prompts import ReadOptions

    rules = SubmitOptions(validate_first=False, max_invalid=1.0, webhook=f"https://hooks.invalid/{TOKEN}?t={TOKEN}")
    batch = farm.submit(rows, batch="cats", options=rules, reading=ReadOptions(keep_columns=True))
    forge(farm.bucket, 5, prompt=CANARY * 500)
    # a worker that was lost after its put: the collection of orphans removes what it stored
    ledger = Ledger.connect(run.settings["worker"].redis_url)
    [lost] = ledger.lease("mini", "lost", 1, lease_s=30)
    run.leftovers = [image_key("cats", lost.index, lost.epoch), intermediates_key("cats", lost.index, lost.epoch)]
    for key in run.leftovers:
        farm.bucket.put(key, b"half an image")
    ledger.release([lost])
    run.messages = [str(message) for message in run.client("admin").lrange("render.mini", 0, -1)]
    assert run.messages
    assert batch.status().total == 6


def forge(bucket: Bucket, index: int, **fields: Any) -> None:
    key = manifest_key("cats", 0)
    lines = unpack(bucket.get(key))
    lines[index] |= fields
    bucket.put(key, pack(lines))


def collect(run: Run) -> None:
    """Use an ended batch as its user does."""
    farm = Farm.open(run.settings["producer"])
    batch = farm.batch("cats")
    until(lambda: batch.status().is_final)
    batch.wait(timeout_s=60)
    # the retry opens a flushed part again, so that the next flush has to read it
    assert batch.retry(code="scheduler") == 1
    until(lambda: batch.status().is_final)
    batch.wait(timeout_s=60)
    # orphans are collected a minute after the end of their batch; do not wait for it
    run.client("admin").zadd("lf:orphans", {"cats": 1})
    until(lambda: not run.client("admin").exists("lf:orphans"), timeout_s=60)
    until(lambda: bool(run.client("admin").hget("lf:batch:cats", "webhook_error")), timeout_s=60)
    run.webhook = str(run.client("admin").hget("lf:batch:cats", "webhook_error"))
    run.results = list(batch.results())
    batch.fetch(run.logs[0].parent / "out")
    check_bucket(farm.bucket)
    assert farm.ledger.ping()
    quick, slow = {"prompt": "a", "num_inference_steps": 1}, {"prompt": "a", "num_inference_steps": 500}
    other = farm.submit([quick, *[slow] * 20], batch="dogs")
    until(lambda: other.status().done > 0)
    assert other.status().images_per_s
    other.pause()
    other.resume()
    other.set_priority(3)
    other.cancel()


@pytest.fixture(scope="module")
def run(servers: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("locked")
    # other modules leave batches in the bucket
    list(Bucket.connect(servers).delete_all(""))
    passwords = {user: f"password-{secrets.token_hex(8)}" for user in ("admin", *ROLES)}
    hook_secret = base64.b64encode(secrets.token_bytes(32)).decode()
    seen: dict[str, set[Right]] = {role: set() for role in ROLES}
    with (
        locked_redis(folder, passwords) as port,
        front(servers, {}, seen["producer"]) as for_producer,
        front(servers, {}, seen["worker"]) as for_worker,
    ):
        base = {"producer": for_producer, "worker": for_worker}
        urls = {role: f"redis://{role}:{passwords[role]}@127.0.0.1:{port}/1" for role in ROLES}
        settings = {role: base[role].model_copy(update={"redis_url": urls[role]}) for role in ROLES}
        known = [*passwords.values(), servers.s3_secret_key.get_secret_value(), hook_secret]
        log = folder / "worker.log"
        found = Run(port, passwords, settings, [log, folder / "redis.log"], folder / "pickled", known, seen)
        with found.client("admin").monitor() as monitor:
            found.client("admin").ping()
            watching = Thread(target=record_commands, args=(monitor, found.commands), daemon=True)
            watching.start()
            submit(found)
            found.client("admin").rpush("render.mini", pickled_message(found.pickled))
            environment = settings["worker"].environment() | {
                "LATENTFARM_HOUSEKEEPING_INTERVAL_S": "0.3",
                "LATENTFARM_WEBHOOK_SECRET": f"whsec_{hook_secret}",
            }
            worker = ManagedProcess(
                "worker", [sys.executable, "-m", "latentfarm", "worker"], log=log, env={**os.environ, **environment}
            )
            try:
                collect(found)
            finally:
                worker.terminate()
                worker.wait_or_kill(40)
            delete_all(found)
            found.client("admin").publish("end", "end")
            watching.join(10)
        yield found


def delete_all(run: Run) -> None:
    farm = Farm.open(run.settings["producer"])
    farm.batch("dogs").delete()


def record_commands(monitor: Any, commands: list[str]) -> None:
    """Record every command that Redis receives, with its arguments, until ``PUBLISH end``."""
    for received in monitor.listen():
        commands.append(received["command"])
        if received["command"].upper().startswith("PUBLISH END"):
            return


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
    assert any("lf:batch:cats" in value for value in values)
    for text in (CANARY, *run.secrets):
        assert [value for value in values if text in value] == []
    # workers need the URL with its token
    assert [value.partition(" ")[0] for value in values if TOKEN in value] == ["lf:batch:cats"]


def dump(client: Any) -> list[str]:
    readers = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"set": client.smembers,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"zset": lambda key: client.zrange(key, 0, -1),
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


# -- Redis -----------------------------------------------------------------------------------------------------

FORBIDDEN = [
    "FLUSHALL", "FLUSHDB", "KEYS *", "SCAN 0", "CONFIG GET *", "CONFIG SET dir /", "DEBUG SLEEP 0", "SHUTDOWN NOSAVE",
    "SAVE", "BGREWRITEAOF", "ACL LIST", "ACL WHOAMI", "CLIENT LIST", "MONITOR", "SCRIPT FLUSH", "SLAVEOF NO ONE",
    "MODULE LIST", "EVAL return 0", "RENAME lf:batches lf:b", "MOVE lf:batches 1", "DUMP lf:batches",
    "GET other", "SET other 1", "PUBLISH other 1", "SWAPDB 0 1", "MIGRATE h 1 lf:batches 0 1",
]  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("command", FORBIDDEN)
def test_a_role_cannot_use_other_keys_or_commands(run: Run, role: str, command: str) -> None:
    with closing(run.client(role)) as client, pytest.raises(redis.exceptions.NoPermissionError):
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
    used = {name.removeprefix("cmdstat_").replace("|", " ") for name in run.client("admin").info("commandstats")}
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
    for key in ("batches/cats/manifest/part-00000.jsonl.gz", "batches/cats/batch.json", "batches/cats/control.json"):
        for action in ("s3:PutObject", "s3:DeleteObject"):
            assert not allows("worker", Right(action, key))
            assert allows("producer", Right(action, key))
    assert not allows("worker", Right("s3:GetObject", "other.txt"))
    assert not allows("producer", Right("s3:GetObject", "batches/x"), bucket="OTHER")
