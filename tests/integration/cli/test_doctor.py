"""The check of the bucket and ``doctor``, against the real store and a proxy of it that refuses requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import SecretStr
from tests.conftest import Command
from tests.support.s3_front import Answer, front, s3_error

from latentfarm.errors import UnavailableError
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


def bucket_line(latentfarm: Command, settings: Settings, *options: str) -> dict[str, object]:
    done = latentfarm("doctor", "--json", *options, settings=settings)
    assert done.returncode in {0, 1}, done.stderr
    [line] = [line for line in json.loads(done.stdout) if line["check"] == "bucket"]
    return dict(line)


def test_doctor_probes_the_bucket_and_with_read_only_writes_nothing(latentfarm: Command, settings: Settings) -> None:
    line = bucket_line(latentfarm, settings)
    assert (line["ok"], keys(settings)) == (True, [])
    assert "put, head, get and delete work" in str(line["text"])
    with front(settings, {"PUT": s3_error("AccessDenied")}) as refusing:
        line = bucket_line(latentfarm, refusing, "--read-only")
    assert (line["ok"], "nothing was written" in str(line["text"])) == (True, True)
