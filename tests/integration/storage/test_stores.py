"""The client of the bucket against a store with faults: every fault ends as UnavailableError, or is not seen at all."""

from __future__ import annotations

import hashlib
import ssl
import time
from collections.abc import Callable, Iterator
from http.client import IncompleteRead
from typing import Any, get_args

import pytest
import urllib3
from tests.support.s3_front import Faults, Kind, front

from latentfarm.errors import InputError, UnavailableError
from latentfarm.job import Defaults, Row
from latentfarm.settings import Settings
from latentfarm.storage import bucket as bucket_module
from latentfarm.storage.batch_control import read_control
from latentfarm.storage.bucket import Bucket, MissingObjectError, error_code
from latentfarm.storage.bucket_check import check_bucket
from latentfarm.storage.keys import control_key, header_key, manifest_key
from latentfarm.storage.manifest import ManifestReader, PartWriter, read_header
from latentfarm.storage.parallel_get import parallel_reader

pytestmark = pytest.mark.integration

#: compressible or not, a half of it is never valid
BODY = bytes(range(256)) * 512
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(scope="module")
def served(servers: Settings) -> Iterator[tuple[Bucket, Faults]]:
    """A client of the front, with short time-outs and one try more; making a client takes a tenth of a second."""
    faults = Faults()
    with pytest.MonkeyPatch.context() as patch, front(servers, faults=faults) as faulty:
        patch.setattr(bucket_module, "_READ_TIMEOUT_S", 0.3)
        patch.setattr(bucket_module, "_MAX_ATTEMPTS", 2)
        found = Bucket.connect(faulty)
        found.head()
        yield found, faults


@pytest.fixture
def faults(served: tuple[Bucket, Faults]) -> Iterator[Faults]:
    fresh = Faults()
    vars(served[1]).update(vars(fresh))
    yield served[1]
    # requests that are still frozen end
    served[1].thawed.set()


@pytest.fixture
def bucket(settings: Settings, served: tuple[Bucket, Faults], faults: Faults) -> Bucket:
    del settings, faults  # they empty the store, and end the faults of the test before
    served[0]._multi_delete = True
    return served[0]


CALLS: dict[str, Callable[[Bucket], object]] = {
    "put": lambda bucket: bucket.put("new", BODY),
    "get": lambda bucket: bucket.get("k"),
    "exists": lambda bucket: bucket.exists("k"),
    "keys": lambda bucket: list(bucket.keys("")),
    "folders": lambda bucket: list(bucket.folders("")),
    "delete": lambda bucket: bucket.delete(["gone"]),
    "delete_all": lambda bucket: list(bucket.delete_all("gone")),
    "head": lambda bucket: bucket.head(),
}
#: requests whose answer has no body lose nothing by a fault of the body
BODILESS = {
    *(("exists", kind) for kind in ("truncate", "freeze_body", "error_in_200", "page_in_200", "empty_200")),
    *(("head", kind) for kind in ("truncate", "freeze_body", "error_in_200", "page_in_200", "empty_200")),
    *(("put", kind) for kind in ("truncate", "freeze_body")),
    # an object may be a page, or empty: that its sha256 differs is seen where it is used
    *(("get", kind) for kind in ("page_in_200", "empty_200")),
}


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("name", CALLS)
def test_every_fault_of_an_answer_is_an_unavailable_store(
    bucket: Bucket, faults: Faults, name: str, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("k", BODY)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # boto3 waits between its tries
    faults.kind = kind
    if (name, kind) in BODILESS:
        CALLS[name](bucket)
    else:
        with pytest.raises(UnavailableError) as caught:
            CALLS[name](bucket)
        assert caught.value.cause == "store"
        assert not isinstance(caught.value, MissingObjectError)
    assert faults.met[kind] >= 1
    faults.kind = None
    CALLS[name](bucket)


@pytest.mark.parametrize("kind", ["reset", "truncate", "error_in_200"])
@pytest.mark.parametrize("name", CALLS)
def test_a_fault_that_passes_is_not_seen_by_the_caller(bucket: Bucket, faults: Faults, name: str, kind: Kind) -> None:
    bucket.put("k", BODY)
    faults.kind, faults.times = kind, 1
    CALLS[name](bucket)


def test_a_cut_body_is_read_again_and_never_returned_in_part(bucket: Bucket, faults: Faults) -> None:
    bucket.put("k", BODY)
    faults.kind, faults.times = "truncate", 2
    assert bucket.get("k") == BODY
    faults.times = 3
    with pytest.raises(UnavailableError) as caught:
        bucket.get("k")
    assert error_code(caught.value) in {"IncompleteReadError", "ResponseStreamingError"}


def test_a_frozen_body_ends_in_its_time_out_and_is_not_read_again(bucket: Bucket, faults: Faults) -> None:
    bucket.put("k", BODY)
    faults.kind = "freeze_body"
    with pytest.raises(UnavailableError) as caught:
        bucket.get("k")
    assert (error_code(caught.value), faults.met["freeze_body"]) == ("ReadTimeoutError", 1)


@pytest.mark.parametrize(
    "error",
    [
        urllib3.exceptions.SSLError("bad record"),
        urllib3.exceptions.DecodeError("bad gzip"),
        urllib3.exceptions.PoolError(urllib3.HTTPConnectionPool("h"), "closed"),
        ssl.SSLEOFError(8, "EOF occurred"),
        ConnectionResetError(104, "reset by peer"),
        TimeoutError(),
        IncompleteRead(b""),
        ValueError("Invalid header value"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_that_boto3_lets_through_are_translated(
    bucket: Bucket, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("k", BODY)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("botocore.response.StreamingBody.read", fail)
    with pytest.raises(UnavailableError) as caught:
        bucket.get("k")
    assert caught.value.cause == "store"
    assert caught.value.__cause__ is error


def test_a_store_without_deleteobjects_receives_single_deletions(bucket: Bucket, faults: Faults) -> None:
    names = [f"many/{n}" for n in range(40)]
    for name in names:
        bucket.put(name, b"x")
    faults.refuses = frozenset({"POST"})
    bucket.delete([*names[:20], "many/missing"])
    assert list(bucket.keys("many/")) == sorted(names[20:])
    assert list(bucket.delete_all("many/")) == [20]
    check_bucket(bucket)
    assert list(bucket.keys("")) == []


def test_a_store_that_refuses_both_deletions_is_unavailable(bucket: Bucket, faults: Faults) -> None:
    bucket.put("k", BODY)
    faults.refuses = frozenset({"POST", "DELETE"})
    with pytest.raises(UnavailableError, match="NotImplemented"):
        bucket.delete(["k"])


def test_a_clock_five_minutes_off_harms_nothing_and_an_hour_is_named(bucket: Bucket, faults: Faults) -> None:
    for faults.skew_s in (-300, 300):
        check_bucket(bucket)
    faults.skew_s = 3600
    with pytest.raises(UnavailableError, match="set this machine's by NTP"):
        check_bucket(bucket)


def test_a_proxys_page_is_named_by_the_check(bucket: Bucket, faults: Faults) -> None:
    faults.kind = "page_in_200"
    with pytest.raises(UnavailableError, match=r"put of probe/.* failed: .*without an ETag.*correct AWS_ENDPOINT_URL"):
        check_bucket(bucket)


def stored_batch(bucket: Bucket) -> None:
    writer = PartWriter("b", Defaults())
    list(writer.add(Row(prompt="a dog", num_images_per_prompt=3), 1))
    for part in writer.flush():
        part.store(bucket, "b")


def test_a_part_that_was_missing_or_damaged_is_read_again_at_the_next_call(
    settings: Settings, bucket: Bucket, faults: Faults
) -> None:
    reader, key = ManifestReader(bucket), manifest_key("b", 0)
    stored_batch(bucket)
    whole = bucket.get(key)
    store = Bucket.connect(settings)
    faults.missing_s = 1000
    with pytest.raises(MissingObjectError):
        reader.job("b", 0)
    faults.missing_s = 0
    faults.kind = "truncate"
    with pytest.raises(UnavailableError):
        reader.job("b", 0)
    faults.kind = "page_in_200"
    with pytest.raises(InputError, match="cut or damaged"):
        reader.job("b", 0)
    faults.kind = None
    stored_part = PartWriter("b", Defaults())
    list(stored_part.add(Row(prompt="a dog"), 1))
    for part in stored_part.flush():
        part.store(store, "b")
    assert reader.job("b", 0).prompt == "a dog"
    with pytest.raises(InputError, match="not in the manifest"):
        reader.job("b", 2)
    store.put(key, whole)
    assert reader.job("b", 2).prompt == "a dog"


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b'{"batch": 1}', b"<html></html>", b"\xff\xfe"])
def test_a_damaged_header_or_control_file_is_an_input_error(bucket: Bucket, damaged: bytes) -> None:
    bucket.put(header_key("b"), damaged)
    bucket.put(control_key("b"), b'{"priority": "high"}' if damaged.startswith(b"{") else damaged)
    for read in (read_header, read_control):
        with pytest.raises(InputError, match=r"batches/b/.*json is damaged"):
            read(bucket, "b")


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_parallel_reader_returns_the_object_or_an_unavailable_store(
    bucket: Bucket, faults: Faults, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentfarm.storage.parallel_get._TIMEOUT_S", 0.3)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    bucket.put("k", BODY)
    with parallel_reader(bucket) as read:
        faults.kind = kind
        with pytest.raises(UnavailableError) as caught:
            read("k", SHA256)
        assert caught.value.cause == "store"
        faults.times = 1
        assert read("k", SHA256) == BODY
        faults.kind = None
        assert read("k", SHA256) == BODY


@pytest.mark.parametrize("kind", sorted({*get_args(Kind)} - {"page_in_200", "empty_200"}))
def test_a_parallel_reader_returns_whole_objects_whose_sha256_is_unknown(
    bucket: Bucket, faults: Faults, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentfarm.storage.parallel_get._TIMEOUT_S", 0.3)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    bucket.put("k", BODY)
    with parallel_reader(bucket) as read:
        faults.kind, faults.times = kind, 1
        assert read("k") == BODY


@pytest.mark.parametrize("pause_s", [0.0, 1000.0])
def test_a_parallel_reader_that_failed_too_often_leaves_objects_to_boto3_until_later(
    bucket: Bucket, faults: Faults, pause_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentfarm.storage.parallel_get._PAUSE_S", pause_s)
    bucket.put("k", BODY)
    with parallel_reader(bucket) as read:
        for _ in range(8):
            # a connection that broke is tried once more
            faults.kind, faults.times = "reset", 2
            assert read("k", SHA256) == BODY
        monkeypatch.setattr(Bucket, "get", lambda *_: b"of boto3")
        assert read("k") == (b"of boto3" if pause_s else BODY)


def test_missing_objects_do_not_make_a_parallel_reader_slow(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("k", BODY)
    with parallel_reader(bucket) as read:
        for _ in range(20):
            with pytest.raises(MissingObjectError):
                read("missing")
        monkeypatch.setattr(Bucket, "get", None)
        assert read("k") == BODY
