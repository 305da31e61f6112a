"""``s3://`` sources against a real S3 server."""

from __future__ import annotations

import gzip
import io
from typing import TYPE_CHECKING, Any

import pytest

from latentfarm.errors import InputError, UnavailableError
from latentfarm.farm import Farm
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.submission.prompts import LocatedRow, ReadOptions, Source, open_source
from latentfarm.submission.prompts.s3_object import RANGE_BYTES, S3Object

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.integration


@pytest.fixture
def bucket(farm: Farm) -> Bucket:
    return farm.bucket


def source_of(bucket: Bucket, key: str, body: bytes, options: ReadOptions | None = None) -> Source:
    bucket.put(key, body)
    return open_source(f"s3://{bucket.name}/{key}", options or ReadOptions(), client=bucket.client)


def prompts(source: Source) -> list[str]:
    rows = list(source.read())
    assert all(isinstance(row, LocatedRow) for row in rows)
    return [row.row.prompt for row in rows if isinstance(row, LocatedRow)]


def test_an_object_is_read_like_a_file_and_again(bucket: Bucket) -> None:
    source = source_of(bucket, "in/prompts.jsonl.gz", gzip.compress(b'{"prompt": "a cat"}\n{"prompt": "a dog"}\n'))
    assert source.name == "prompts.jsonl.gz"
    assert prompts(source) == prompts(source) == ["a cat", "a dog"]
    assert next(iter(source.read())).place == "prompts.jsonl.gz line 1"  # type: ignore[union-attr]


def test_an_object_of_many_ranges_is_read_whole(bucket: Bucket) -> None:
    expected = [f"a photograph of a red cat number {number}" for number in range(150_000)]
    source = source_of(bucket, "big.txt", "\n".join(expected).encode())
    assert prompts(source) == expected


def test_parquet_is_read_from_the_store(bucket: Bucket) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    body = io.BytesIO()
    expected = [f"cat {number}" for number in range(10_000)]
    parquet.write_table(pyarrow.table({"prompt": expected}), body)
    assert prompts(source_of(bucket, "cats.parquet", body.getvalue())) == expected


def test_the_digest_depends_on_the_content_and_needs_no_download(bucket: Bucket) -> None:
    one = source_of(bucket, "one.txt", b"a cat")
    same = source_of(bucket, "same.txt", b"a cat")
    other = source_of(bucket, "other.txt", b"a dog")
    assert one.digest == same.digest != other.digest
    assert one.digest is not None
    assert len(one.digest) == 64


def test_an_object_replaced_while_it_is_read_is_an_error(bucket: Bucket) -> None:
    source = source_of(bucket, "prompts.txt", b"a cat\n")
    assert source.digest
    bucket.put("prompts.txt", b"a dog\n")
    with pytest.raises(InputError, match=r"s3://.*/prompts\.txt changed while it was read; submit it again"):
        list(source.read())


@pytest.mark.parametrize("key", ["none.txt", "none.parquet"])
def test_a_missing_object_is_named(bucket: Bucket, key: str) -> None:
    url = f"s3://{bucket.name}/{key}"
    with pytest.raises(InputError, match=f"{url} is not in the store"):
        list(open_source(url, client=bucket.client).read())
    with pytest.raises(InputError, match=f"{url} is not in the store"):
        assert open_source(url, client=bucket.client).digest


def test_invalid_credentials_and_a_dead_store_are_not_input_errors(bucket: Bucket, settings: Settings) -> None:
    bucket.put("prompts.txt", b"a cat")
    url = f"s3://{bucket.name}/prompts.txt"
    stranger = Bucket.connect(settings.model_copy(update={"s3_access_key": "stranger"}))
    with pytest.raises(UnavailableError, match=r"refuses s3://.*/prompts\.txt"):
        list(open_source(url, client=stranger.client).read())
    nowhere = Bucket.connect(settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"}))
    with pytest.raises(UnavailableError, match="does not answer"):
        list(open_source(url, client=nowhere.client).read())


def test_a_body_that_breaks_off_is_requested_again(bucket: Bucket) -> None:
    body = b"".join(b"cat %d\n" % number for number in range(2_000_000))
    bucket.put("cut.txt", body)

    class Cutting:
        """The client itself, but every third answer's body breaks off."""

        meta = bucket.client.meta
        requests = 0

        def head_object(self, **arguments: Any) -> Any:
            return bucket.client.head_object(**arguments)

        def get_object(self, **arguments: Any) -> Any:
            answer = bucket.client.get_object(**arguments)
            self.requests += 1
            if self.requests % 3 == 0:
                answer["Body"] = io.BytesIO(answer["Body"].read()[:-1])
            return answer

    client: S3Client = Cutting()  # type: ignore[assignment]
    with io.BufferedReader(S3Object(client, f"s3://{bucket.name}/cut.txt"), RANGE_BYTES) as stream:
        assert b"".join(iter(lambda: stream.read(2**18), b"")) == body
