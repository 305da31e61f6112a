"""Fetch images into a folder, or by URL: atomic files, names, resuming, checks against receipts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import trustme
from botocore.credentials import Credentials
from pydantic import SecretStr
from tests.conftest import Command, read_lines, until
from tests.support.fetching import image_bytes, key_of, names_in, stored, work

from latentfarm import Farm, InputError, JobState, UnavailableError
from latentfarm.fetch import FetchOptions, FetchReport, Layout, OutputFolder, Owner, fetch_batch
from latentfarm.local.process import ManagedProcess
from latentfarm.local.s3_server import find_rclone
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.parallel_get import parallel_reader
from latentfarm.submission.prompts import ReadOptions

pytestmark = pytest.mark.integration


def test_fetch_resumes_checks_and_writes_one_line_per_job(farm: Farm, tmp_path: Path) -> None:
    batch = farm.submit([{"prompt": "a", "id": "x"}, "b", "c"], batch="cats")
    work(farm, batch, fail=frozenset({1}))
    first = batch.fetch(tmp_path)
    assert (first.downloaded, first.present, first.states) == (2, 0, {"done": 2, "failed": 1})
    assert names_in(tmp_path) == {"000000.png", "000002.png", "results.jsonl", "metadata.jsonl"}
    (tmp_path / "000002.png").write_bytes(b"cut")
    second = batch.fetch(tmp_path)
    assert (second.downloaded, second.present, second.size_bytes) == (1, 1, len(image_bytes(2)))
    assert (tmp_path / "000002.png").read_bytes() == image_bytes(2)
    lines = read_lines(tmp_path / "results.jsonl")
    assert [(line["id"], line["state"], line["file"]) for line in lines] == [
        ("x", "done", "000000.png"),
        (None, "failed", None),
        (None, "done", "000002.png"),
    ]
    assert lines[1]["error"]["code"] == "nan"
    assert {"job", "index", "row", "key", "sha256", "prompt", "seed", "guidance_scale"} <= lines[0].keys()
    assert first.images == [(tmp_path / "000000.png", "a"), (tmp_path / "000002.png", "c")]


def test_an_object_with_another_sha256_than_its_receipt_is_an_error(farm: Farm, tmp_path: Path) -> None:
    batch = farm.submit(["a"], batch="cats")
    work(farm, batch)
    farm.bucket.put(key_of(batch, 0), b"forged")
    with pytest.raises(UnavailableError, match="its sha256 differs"):
        batch.fetch(tmp_path)
    assert names_in(tmp_path) == set()


def test_a_missing_object_is_an_error_and_the_old_results_stay(farm: Farm, tmp_path: Path) -> None:
    batch = farm.submit(["a", "b"], batch="cats")
    work(farm, batch, count=1)
    batch.fetch(tmp_path)
    before = (tmp_path / "results.jsonl").read_bytes()
    work(farm, batch)
    farm.bucket.client.delete_object(Bucket=farm.bucket.name, Key=key_of(batch, 1))
    with pytest.raises(UnavailableError, match=r"cats/1.png is not in the store"):
        batch.fetch(tmp_path)
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_objects_that_the_fast_client_cannot_read_are_read_by_boto3(
    farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = farm.submit(["a"] * 40, batch="cats")
    work(farm, batch)
    # the fast client has a wrong secret; boto3's client, which exists already, keeps the right one
    assert farm.bucket.client
    monkeypatch.setattr(farm.bucket, "credentials", Credentials("someone", "wrong"))
    assert batch.fetch(tmp_path).downloaded == 40


@pytest.mark.parametrize("layout", ["files", "webdataset"])
def test_a_fetch_takes_bounded_memory(farm: Farm, tmp_path: Path, layout: Layout) -> None:
    sha256 = stored(farm.bucket, "one.png", b"image")["sha256"]

    def results(count: int) -> Iterator[dict[str, Any]]:
        # one image in a hundred: lines, if any, would fill the memory
        for index in range(count):
            job = {"job": f"cats/{index}", "index": index, "request": {"prompt": f"prompt {index} " * 10}}
            done = {"state": "done", "key": "one.png", "sha256": sha256}
            yield {**job, **done} if index % 100 == 0 else {**job, "state": "failed"}

    def peak(count: int) -> int:
        tracemalloc.start()
        folder = tmp_path / f"{count}"
        fetch_batch(farm.bucket, lambda: results(count), folder, Owner("b", ""), options=FetchOptions(layout=layout))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(10)
    small, large = peak(2_000), peak(20_000)
    assert large < small + 500_000, f"{small} bytes, then {large}"
    [table] = (tmp_path / "20000").rglob("results.jsonl")
    assert len(read_lines(table)) == 20_000


def test_the_fast_client_reads_a_store_behind_tls_if_its_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    (tmp_path / "s3" / "b").mkdir(parents=True)
    (tmp_path / "s3" / "b" / "ä 1.png").write_bytes(b"image")
    pem = str(tmp_path / "server.pem")
    command = [find_rclone(), "serve", "s3", str(tmp_path / "s3"), "--addr", "127.0.0.1:0", "--cert", pem, "--key", pem]
    keys = {"RCLONE_AUTH_KEY": '"someone,secret"', "RCLONE_CONFIG": "/dev/null"}
    log = tmp_path / "log"
    server = ManagedProcess("the S3 server", command, log=log, env=keys)
    try:
        until(lambda: re.search(r"https://127.0.0.1:\d+", log.read_text()) is not None)
        [address] = re.findall(r"https://127.0.0.1:\d+", log.read_text())
        fields = {"bucket": "b", "s3_endpoint_url": address, "s3_access_key": "someone"}
        settings = Settings().model_copy(update={**fields, "s3_secret_key": SecretStr("secret")})
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        for trusted in (True, False):
            bucket = Bucket.connect(settings)
            with parallel_reader(bucket) as read:
                signed_get = read._signed_get
                assert signed_get is not None
                assert [signed_get.get("ä 1.png") for _ in range(3)] == [b"image" if trusted else None] * 3
                assert signed_get.get("none.png") is None
            monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    finally:
        server.terminate()
        server.wait_or_kill(5)


def test_an_interrupted_fetch_leaves_complete_files_and_the_next_continues(farm: Farm, tmp_path: Path) -> None:
    batch = farm.submit(["a"] * 300, batch="cats")
    work(farm, batch)

    def interrupt(fetched: FetchReport) -> None:
        if fetched.jobs == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch.fetch(tmp_path, progress=interrupt)
    found = names_in(tmp_path)
    assert len(found) >= 100
    assert all((tmp_path / name).read_bytes() == image_bytes(int(name.removesuffix(".png"))) for name in found)
    again = batch.fetch(tmp_path)
    assert (again.downloaded, again.present) == (300 - len(found), len(found))
    assert len(read_lines(tmp_path / "results.jsonl")) == 300


def test_a_fetch_ended_by_a_signal_leaves_only_complete_files(farm: Farm, settings: Settings, tmp_path: Path) -> None:
    batch = farm.submit(["a"] * 3000, batch="cats")
    work(farm, batch)
    command = [sys.executable, "-m", "latentfarm", "fetch", "cats", "-o", "out"]
    environment = {**os.environ, **settings.environment()}
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    until((tmp_path / "out" / "000040.png").exists)
    running.send_signal(signal.SIGINT)
    _, output = running.communicate(timeout=60)
    assert running.returncode == 130, output
    assert "run the same command again" in output
    found = names_in(tmp_path / "out")
    # several are fetched at once, so a few before the one that was waited for may be missing
    assert 20 < len(found) < 3000
    assert all((tmp_path / "out" / name).read_bytes() == image_bytes(int(name[:6])) for name in found)


def test_skip_fetched_skips_fetched_images_even_if_their_files_were_moved(farm: Farm, tmp_path: Path) -> None:
    batch = farm.submit(["a", "b", "c"], batch="cats")
    work(farm, batch, count=2)
    batch.fetch(tmp_path)
    (tmp_path / "000000.png").unlink()
    work(farm, batch)
    fetched = batch.fetch(tmp_path, skip_fetched=True)
    assert (fetched.downloaded, fetched.present, fetched.skipped) == (1, 0, 2)
    assert [line["file_name"] for line in read_lines(tmp_path / "metadata.jsonl")] == ["000001.png", "000002.png"]
    assert batch.fetch(tmp_path).downloaded == 1, "a fetch without skip_fetched fetches missing files"


def test_skip_fetched_fetches_another_image_under_the_same_index(farm: Farm, tmp_path: Path) -> None:
    skipped = []
    for name, offset in (("cats", 0), ("same-cats", 0), ("dogs", 50)):
        batch = farm.submit(["a"], batch=name)
        work(farm, batch, offset=offset)
        skipped.append(batch.fetch(tmp_path, skip_fetched=True, force=True).skipped)
    assert skipped == [0, 0, 0]
    assert (tmp_path / "000000.png").read_bytes() == image_bytes(50)


def test_only_jobs_in_the_selected_states_appear(farm: Farm, tmp_path: Path) -> None:
    batch = farm.submit(["a", "b", "c", "d"], batch="cats")
    work(farm, batch, count=3, fail=frozenset({1}))
    fetched = batch.fetch(tmp_path / "failed", states={JobState.FAILED, JobState.PENDING})
    assert (fetched.downloaded, fetched.states) == (0, {"failed": 1, "pending": 1})
    assert batch.fetch(tmp_path / "done", states={JobState.DONE}).states == {"done": 2}


def test_names_come_from_the_template_and_duplicates_are_refused_before_the_first_download(
    farm: Farm, tmp_path: Path
) -> None:
    batch = farm.submit([{"prompt": "a", "id": "x", "seed": 1}, {"prompt": "b", "id": "y", "seed": 1}], batch="cats")
    work(farm, batch, intermediates=True)
    batch.fetch(tmp_path / "good", name_template="{id}-{seed}.png")
    assert names_in(tmp_path / "good") == {"x-1.png", "y-1.png", "intermediates", "results.jsonl", "metadata.jsonl"}
    assert names_in(tmp_path / "good" / "intermediates") == {"x-1.png", "y-1.png"}
    assert [line["intermediates"] for line in read_lines(tmp_path / "good" / "results.jsonl")] == [
        "intermediates/x-1.png",
        "intermediates/y-1.png",
    ]
    with pytest.raises(InputError, match=r"jobs cats/0 and cats/1 would both be the file '1.png'.*add \{index\}"):
        batch.fetch(tmp_path / "clash", name_template="{seed}.png")
    assert not (tmp_path / "clash").exists()


def test_an_id_that_would_leave_the_folder_is_refused_before_the_first_download(farm: Farm, tmp_path: Path) -> None:
    batch = farm.submit([{"prompt": "a", "id": "ok"}, {"prompt": "b", "id": "../../evil"}], batch="cats")
    work(farm, batch)
    with pytest.raises(InputError, match=r"job cats/1: its file name '../../evil.png'.*use \{index\}"):
        batch.fetch(tmp_path / "out", name_template="{id}.png")
    assert list(tmp_path.iterdir()) == []


def test_metadata_has_only_done_images_with_flat_columns_of_one_type(farm: Farm, tmp_path: Path) -> None:
    rows: list[str | dict[str, Any]] = [
        {"prompt": "a", "id": "x", "guidance_scale": 4},
        "b",
        {"prompt": "c", "class": 3},
    ]
    batch = farm.submit(rows, batch="cats", reading=ReadOptions(keep_columns=True))
    work(farm, batch, fail=frozenset({1}), intermediates=True)
    batch.fetch(tmp_path)
    lines = read_lines(tmp_path / "metadata.jsonl")
    assert [(line["file_name"], line["text"], line["id"]) for line in lines] == [
        ("000000.png", "a", "x"),
        ("000002.png", "c", ""),
    ]
    assert all((tmp_path / line["file_name"]).is_file() for line in lines)
    assert len({tuple((name, type(value)) for name, value in line.items()) for line in lines}) == 1


def test_presigned_urls_are_read_without_credentials(farm: Farm) -> None:
    batch = farm.submit(["a", "b"], batch="cats")
    work(farm, batch, fail=frozenset({0}))
    [found] = batch.presigned(expires_s=60)
    assert found.job == "cats/1"
    assert timedelta(seconds=50) < found.expires - datetime.now(UTC) <= timedelta(seconds=60)
    with urlopen(found.url) as answer:  # noqa: S310
        assert answer.read() == image_bytes(1)
    with pytest.raises(HTTPError) as caught:
        urlopen(found.url.replace("cats/1", "cats/0"))  # noqa: S310
    caught.value.close()
    assert caught.value.code == 403
    for invalid in (0, 604_801):
        with pytest.raises(InputError, match=r"write 1 to 604800"):
            next(batch.presigned(expires_s=invalid))


def test_the_command_fetches_and_lists_urls(farm: Farm, settings: Settings, latentfarm: Command) -> None:
    batch = farm.submit([{"prompt": "a", "id": "x"}, "b"], batch="cats")
    work(farm, batch, fail=frozenset({1}))
    fetched = latentfarm("fetch", "cats", "-o", "out", "--state", "done", "--json", settings=settings)
    assert fetched.returncode == 0, fetched.stderr
    assert json.loads(fetched.stdout)["states"] == {"done": 1}
    assert latentfarm("fetch", "cats", "-o", "out", settings=settings).returncode == 1, "a job has failed"
    listed = latentfarm("fetch", "cats", "--presign", "--expires", "9", "--json", settings=settings)
    assert listed.returncode == 0, listed.stderr
    assert json.loads(listed.stdout).keys() == {"job", "url", "expires"}
    plain = latentfarm("fetch", "cats", "--presign", settings=settings).stdout
    assert plain.startswith("http")
    assert plain.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("fetch", "cats"), "write -o DIR, or --presign"),
        (("fetch", "cats", "-o", "file"), "file cannot be written"),
        (("fetch", "cats", "-o", "out", "--format", "zip"), "--format 'zip': write one of files, webdataset"),
        (("fetch", "cats", "-o", "out", "--state", "done,lost"), "--state 'lost': write one of pending"),
        (("fetch", "cats", "-o", "out", "--name-template", "{prompt}.png"), "{prompt} is not known"),
        (("fetch", "cats", "--presign", "--expires", "604801"), "write 1 to 604800 seconds"),
        (("results", "cats", "--format", "xml"), "--format 'xml': write one of jsonl, csv, parquet"),
        (("results", "cats", "--format", "parquet"), "write -o FILE"),
        (("results", "cats", "-o", "no/where.csv"), "where.csv cannot be written"),
        (("results", "cats", "-o", "."), ". cannot be written: Is a directory"),
        (("fetch", "cats", "-o", "folder"), "folder has the images of batch dogs"),
        (("fetch", "cats", "-o", "folder", "--image-format", "gif"), "write one of png, webp, jpeg"),
        (("submit", "p.txt", "--canary", "1", "-o", "file"), "file cannot be written"),
        (("submit", "p.txt", "--canary", "1", "-o", "folder"), "folder has the images of batch dogs"),
        (("results", "dogs"), "dogs"),
    ],
)
def test_an_invalid_command_fails_with_its_cure_and_writes_nothing(
    farm: Farm, settings: Settings, latentfarm: Command, tmp_path: Path, arguments: tuple[str, ...], error: str
) -> None:
    work(farm, farm.submit(["a"], batch="cats"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "p.txt").write_text("a cat")
    OutputFolder(tmp_path / "folder", Owner("dogs", ""), FetchOptions()).claim()
    result = latentfarm(*arguments, settings=settings)
    assert result.returncode == 2, result.stderr
    assert error in result.stderr
    assert "Traceback" not in result.stderr
    assert names_in(tmp_path) == {"file", "folder", "p.txt"}
    assert names_in(tmp_path / "folder") == set()
    assert farm.ledger.batches() == ["cats"]
