"""``doctor``: the bucket against the real store and a proxy that refuses requests, Redis against real servers."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.conftest import REPOSITORY, Command
from tests.support.refusing_redis import RefusingRedis
from tests.support.s3_front import Answer, front, s3_error

from latentfarm.errors import UnavailableError
from latentfarm.ledger import Ledger
from latentfarm.ledger.server_check import check_server
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.bucket_check import check_bucket

pytestmark = pytest.mark.integration


def keys(settings: Settings) -> list[str]:
    return list(Bucket.connect(settings).keys(""))


def test_a_probe_of_a_good_bucket_leaves_nothing_behind(settings: Settings) -> None:
    check_bucket(Bucket.connect(settings))
    with front(settings, {}) as passed_on:
        check_bucket(Bucket.connect(passed_on))
    assert keys(settings) == []


CASES = [
    ("PUT", s3_error("AccessDenied"), "put", "allow s3:PutObject on probe/*"),
    ("HEAD", s3_error("AccessDenied"), "head", "allow s3:GetObject on probe/*"),
    ("HEAD", (404, b""), "head", "the object is missing"),
    ("GET", s3_error("AccessDenied"), "get", "allow s3:GetObject on probe/*"),
    ("GET", (200, b"other bytes"), "get", "the store returned other bytes"),
    ("POST", s3_error("AccessDenied"), "delete", "allow s3:DeleteObject on probe/*"),
    (
        "POST",
        (
            200,
            b"<DeleteResult><Error><Key>k</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>",
        ),
        "delete",
        "allow s3:DeleteObject on probe/*",
    ),
    ("PUT", s3_error("RequestTimeTooSkewed"), "put", "this machine's clock and the store's are too far apart"),
    ("PUT", s3_error("XAmzContentChecksumMismatch", 400), "put", "does not accept a sha256 checksum"),
    ("PUT", s3_error("NotImplemented", 501), "put", "does not accept a sha256 checksum"),
    ("PUT", s3_error("NoSuchBucket", 404), "put", "there is no such bucket"),
    ("PUT", s3_error("AuthorizationHeaderMalformed", 400), "put", "set AWS_DEFAULT_REGION"),
    ("PUT", s3_error("ExpiredToken", 400), "put", "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
]


@pytest.mark.parametrize(("method", "answer", "verb", "cure"), CASES)
def test_a_probe_names_the_verb_that_is_refused_and_the_cure(
    settings: Settings, method: str, answer: Answer, verb: str, cure: str
) -> None:
    with front(settings, {method: answer}) as refusing, pytest.raises(UnavailableError) as caught:
        check_bucket(Bucket.connect(refusing))
    assert str(caught.value).startswith(f"{verb} of probe/")
    assert cure in str(caught.value)
    # an object that could be put does not stay, wherever it may be removed
    assert (keys(settings) == []) == (method != "POST")


def closed(settings: Settings) -> dict[str, object]:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return {"s3_endpoint_url": f"http://127.0.0.1:{server.server_port}", "bucket": settings.bucket}


@pytest.mark.parametrize(
    ("change", "cure"),
    [
        (lambda _: {"bucket": "no-such-bucket"}, "there is no such bucket; create it, or correct LATENTFARM_BUCKET"),
        (lambda _: {"s3_secret_key": SecretStr("wrong")}, "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (lambda _: {"s3_access_key": "wrong"}, "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (closed, "correct AWS_ENDPOINT_URL or the network"),
    ],
)
def test_an_error_of_the_real_store_is_reported_with_its_cure(
    settings: Settings, change: Callable[[Settings], dict[str, object]], cure: str
) -> None:
    wrong = settings.model_copy(update=change(settings))
    with pytest.raises(UnavailableError) as caught:
        check_bucket(Bucket.connect(wrong))
    assert cure in str(caught.value)
    assert settings.s3_secret_key.get_secret_value() not in str(caught.value)


def line_of(check: str, latentfarm: Command, settings: Settings, *options: str) -> dict[str, object]:
    # with a dtype, it does not time the model
    done = latentfarm("doctor", "--json", *options, settings=settings.model_copy(update={"dtype": "float32"}))
    assert (done.returncode in {0, 1}, done.stderr) == (True, "")
    [line] = [line for line in json.loads(done.stdout) if line["check"] == check]
    return dict(line)


def test_doctor_probes_the_bucket_and_with_read_only_writes_nothing(latentfarm: Command, settings: Settings) -> None:
    line = line_of("bucket", latentfarm, settings)
    assert (line["ok"], keys(settings)) == (True, [])
    assert "put, head, get and delete work" in str(line["text"])
    with front(settings, {"PUT": s3_error("AccessDenied")}) as refusing:
        line = line_of("bucket", latentfarm, refusing, "--read-only")
    assert (line["ok"], "nothing was written" in str(line["text"])) == (True, True)


# -- Redis -----------------------------------------------------------------------------------------------------


def test_doctor_writes_to_redis_and_leaves_nothing(
    latentfarm: Command, settings: Settings, refusing: RefusingRedis
) -> None:
    line = line_of("redis", latentfarm, settings.model_copy(update={"redis_url": refusing.url}))
    assert line["ok"], line
    assert "writes work" in str(line["text"])
    assert "0 workers and 0 pending jobs for mini" in str(line["text"])
    assert refusing.client.keys("*") == []


@pytest.mark.parametrize(
    ("cause", "parts"),
    [
        ("OOM", ("raise maxmemory", "MiB of memory used, the limit is 0.0 MiB")),
        ("READONLY", ("its primary is 127.0.0.1:{peer}, and the link to it is up",)),
        pytest.param(
            "MISCONF", ("last snapshot: err, last write to the append-only file: ok",), marks=pytest.mark.slow
        ),
        pytest.param(
            "NOPERM",
            ("may not run del, expire, hdel,", "zadd, zrem; give the user the permissions in"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_doctor_names_why_redis_refuses_writes_and_reads_nevertheless(
    cause: str, parts: tuple[str, ...], latentfarm: Command, settings: Settings, refusing: RefusingRedis
) -> None:
    settings = settings.model_copy(update={"redis_url": refusing.url})
    with refusing.refusing(cause):
        line = line_of("redis", latentfarm, settings)
        reading = line_of("redis", latentfarm, settings, "--read-only")
    assert not line["ok"]
    for part in parts:
        assert part.format(peer=refusing.peer_port) in str(line["text"])
    assert (reading["ok"], "nothing was written" in str(reading["text"])) == (True, True)
    assert refusing.client.keys("*") == []


def problem_of(url: str) -> str:
    with pytest.raises(UnavailableError) as caught:
        check_server(Ledger.connect(url), queue_keys=["render.mini:probe"])
    return str(caught.value)


def published_user(refusing: RefusingRedis, role: str, *changes: str) -> str:
    """Return the URL for a user of docs/security with changed rules."""
    acl = (REPOSITORY / "docs/security/redis-acl.txt").read_text()
    [rules] = [line.split()[1:] for line in acl.splitlines() if line.startswith(f"user {role} ")]
    refusing.client.execute_command("ACL", "SETUSER", *rules, *changes)
    return f"redis://{role}:{role.upper()}_PASSWORD@127.0.0.1:{refusing.port}/0"


def test_the_published_users_suffice_for_the_check_and_a_missing_permission_is_named(refusing: RefusingRedis) -> None:
    for role, limit in (("producer", "may not render, as it may not run"), ("worker", "may not serve, as it may not")):
        found = check_server(Ledger.connect(published_user(refusing, role)), queue_keys=["render.mini:probe"])
        assert limit in found
        problem = problem_of(published_user(refusing, role, "-hset", "-zadd"))
        assert "its user may not run hset, zadd; give the user" in problem
        problem = problem_of(published_user(refusing, role, "resetkeys", "~{lf}:*"))
        assert problem.endswith("the key was render.mini:probe")
    assert "may not run info" in check_server(Ledger.connect(published_user(refusing, "worker", "~render.*", "-info")))


def test_submit_names_the_cause_and_prints_no_traceback(
    latentfarm: Command, settings: Settings, refusing: RefusingRedis, tmp_path: Path
) -> None:
    (tmp_path / "rows.txt").write_text("a cat\n")
    settings = settings.model_copy(update={"redis_url": refusing.url})
    for cause in ("OOM", "READONLY", "MISCONF", "NOPERM"):
        with refusing.refusing(cause):
            ran = latentfarm("submit", "rows.txt", "--batch", "cats", settings=settings)
        assert ran.returncode == 3, ran.stderr
        assert "Traceback" not in ran.stderr
        assert f"Redis at {refusing.url} cannot be used now: " in ran.stderr.splitlines()[-1]
