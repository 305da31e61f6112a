"""OpenAI's files by its own client."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator

import openai
import pytest
from openai.types import FileDeleted, FileObject
from tests.conftest import until
from tests.integration.server.conftest import Serving
from tests.support.http_server import RunningServer
from tests.support.uploads import count_uploads

from latentfarm.farm import Farm
from latentfarm.server.openai import stored_files

pytestmark = pytest.mark.integration

MIB = 2**20


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_file_is_kept_until_it_is_deleted(client: openai.OpenAI, farm: Farm) -> None:
    content = b'{"a": 1}\n{"a": 2}\n'
    file = client.files.create(
        file=("../b\u00e4tch.jsonl", content),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3_600},
    )
    FileObject.model_validate(file.model_dump(), strict=True)
    assert (file.filename, file.bytes, file.purpose) == ("b\u00e4tch.jsonl", len(content), "batch")
    assert file.expires_at == file.created_at + 3_600
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == content
    deleted = client.files.delete(file.id)
    assert FileDeleted.model_validate(deleted.model_dump(), strict=True).deleted
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve(file.id)
    assert caught.value.body == {
        "message": f"No such File object: '{file.id}'",
        "type": "invalid_request_error",
        "param": "id",
        "code": "not_found",
    }
    assert list(farm.bucket.keys("")) == []


def test_files_are_listed_in_pages_newest_first(client: openai.OpenAI, farm: Farm) -> None:
    made = [client.files.create(file=b"x", purpose=purpose).id for purpose in ("batch", "vision", "batch")]
    assert [file.id for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id for file in client.files.list(limit=1, order="asc")] == made
    assert [file.id for file in client.files.list(limit=1, purpose="batch")] == [made[2], made[0]]
    first = client.files.list(limit=2)
    assert (first.has_more, [file.id for file in first.data]) == (True, made[:0:-1])
    # one that has expired, and one whose upload died, do not exist
    record = stored_files.read_record(farm.bucket, made[0], 0)
    assert record is not None
    stored_files.write_record(farm.bucket, record.model_copy(update={"expires_at": 1}))
    farm.bucket.delete([stored_files.record_key(made[1])])
    assert [file.id for file in client.files.list()] == [made[2]]


def test_a_large_file_goes_through_in_parts(client: openai.OpenAI, farm: Farm) -> None:
    # two full parts and a rest
    content = bytes(range(256)) * (17 * MIB // 256) + b"\nend"
    file = client.files.create(file=io.BytesIO(content), purpose="user_data")
    assert client.files.content(file.id).read() == content
    record = stored_files.read_record(farm.bucket, file.id, 0)
    assert record is not None
    assert record.lines == content.count(b"\n") + 1


def test_an_upload_that_breaks_off_leaves_nothing(server: RunningServer, farm: Farm) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(9 * MIB)
    head = "POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(f"{head}Content-Length: {20 * MIB}\r\n\r\n".encode() + body)
        until(lambda: count_uploads(farm) == 1, timeout_s=20)
    until(lambda: count_uploads(farm) == 0, timeout_s=20)
    assert list(farm.bucket.keys("")) == []


def test_an_upload_is_refused_with_its_cure(serving: Serving, farm: Farm) -> None:
    client = serving(max_file_bytes=1_024).client
    form = {"purpose": "batch"}

    def refusal(**request: object) -> tuple[int, str]:
        answer = client.post("/v1/files", **request)  # type: ignore[arg-type]
        return answer.status_code, answer.json()["error"]["message"]

    assert refusal(files={"file": b"x" * 1_025}, data=form) == (
        413,
        "the file is larger than 1024 bytes; split it",
    )
    assert refusal(files={"file": b"x" * 100_000}, data=form)[0] == 413
    assert refusal(data=form, files={"other": b"x"}) == (400, "the form has no file; send one as file")
    assert refusal(files={"file": b"x"}, data={"purpose": "play"})[0] == 400
    assert refusal(files={"file": b"x"}) == (400, "purpose is missing; write it")
    assert refusal(files=[("file", b"x"), ("file", b"y")], data=form)[0] == 400
    assert refusal(json={"file": "x"})[0] == 415
    broken = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx'
    assert refusal(content=broken, headers={"Content-Type": "multipart/form-data; boundary=b"})[0] == 400
    assert list(farm.bucket.keys("")) == []
