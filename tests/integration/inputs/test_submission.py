"""Input images of a submission are read, checked and stored once, and the manifest has their digests."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.support.endpoints import Endpoint
from tests.support.image_sources import data_url, image_bytes

from latentfarm import Farm, InputError, InvalidRowsError
from latentfarm.errors import UnavailableError
from latentfarm.inputs import resolver, store
from latentfarm.inputs.collection import collect_inputs
from latentfarm.inputs.policy import InputPolicy
from latentfarm.inputs.sources import read_source
from latentfarm.model_facts import ModelFacts
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import input_key
from latentfarm.storage.manifest import ManifestReader, read_header
from latentfarm.storage.object_age import age_of
from latentfarm.submission.estimate import make_estimate
from latentfarm.submission.request import SubmitOptions, make_request

pytestmark = pytest.mark.integration

STREAMED = SubmitOptions(validate_first=False)


class CountingBucket(Bucket):
    """The real store; counts the puts of inputs, and can refuse one part of a manifest."""

    def __init__(self, real: Bucket, *, refused: str = "none") -> None:
        super().__init__(real.name, where=real.where, open_session=lambda: (real.client, real.credentials))
        self.puts: Counter[str] = Counter()
        self.refused = refused

    def put(self, key: str, body: bytes, *, content_type: str = "application/octet-stream") -> None:
        if key.startswith("inputs/"):
            self.puts[key] += 1
        if f"/manifest/{self.refused}" in key:
            raise UnavailableError("the store is gone")
        super().put(key, body, content_type=content_type)


def with_bucket(farm: Farm, bucket: Bucket) -> Farm:
    return Farm(replace(farm.connection, bucket=bucket))


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def prompt_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often each source is read."""
    counts: Counter[str] = Counter()

    def counted(source: str, policy: InputPolicy) -> bytes:
        counts[source] += 1
        return read_source(source, policy)

    monkeypatch.setattr(resolver, "read_source", counted)
    return counts


def test_a_file_beside_the_prompt_file_is_stored_as_it_is(farm: Farm, tmp_path: Path) -> None:
    data = image_bytes(size=(128, 64), kind="JPEG")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cat.jpg").write_bytes(data)
    mask = image_bytes(255, (128, 64), mode="L")
    (tmp_path / "mask.png").write_bytes(mask)
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "image": "in/cat.jpg", "mask_image": str(tmp_path / "mask.png")},
        {"prompt": "b", "image": "in/cat.jpg", "width": 256, "height": 256, "resize": "pad"},
        {"prompt": "c"},
    ]
    batch = farm.submit(prompt_file(tmp_path, rows), batch="cats")

    jobs = [ManifestReader(farm.bucket).job(batch.name, index) for index in range(3)]
    assert [(job.width, job.height) for job in jobs] == [(128, 64), (256, 256), (None, None)]
    assert [job.input_digests for job in jobs] == [(digest_of(data), digest_of(mask)), (digest_of(data),), ()]
    assert farm.bucket.get(input_key(digest_of(data))) == data
    assert sorted(farm.bucket.keys("inputs/")) == sorted(map(input_key, jobs[0].input_digests))
    header = read_header(farm.bucket, "cats")
    assert header is not None
    assert header.inputs


def test_every_kind_of_source_gives_the_same_input(farm: Farm, endpoint: Endpoint, tmp_path: Path) -> None:
    data = image_bytes("blue")
    (tmp_path / "a.png").write_bytes(data)
    farm.bucket.put("photos/a.png", data)
    farm.bucket.put(input_key(digest_of(data)), data)

    def reply(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(data)

    endpoint.replies = [reply]
    sources = [
        "a.png",
        str(tmp_path / "a.png"),
        f"s3://{farm.bucket.name}/photos/a.png",
        f"https://localhost:{endpoint.port}/a.png",
        data_url("blue"),
        digest_of(data),
    ]
    allowed = farm.settings.model_copy(update={"input_hosts": "*.example.org, localhost", "input_allow_private": True})
    policy = InputPolicy.of_user(allowed, farm.bucket, tmp_path / "prompts.jsonl")
    batch = farm.submit([{"prompt": "a", "image": source} for source in sources], inputs=policy)
    jobs = [ManifestReader(farm.bucket).job(batch.name, index) for index in range(len(sources))]
    assert {job.image for job in jobs} == {digest_of(data)}
    # read once over the network, for the validation and for the submission
    assert len(endpoint.received) == 1


def test_many_rows_that_share_inputs_read_and_store_each_once(farm: Farm, tmp_path: Path, reads: Counter[str]) -> None:
    images = [f"{number}.png" for number in range(100)]
    for number, name in enumerate(images):
        (tmp_path / name).write_bytes(image_bytes((number, 0, 0)))
    file = prompt_file(tmp_path, [{"prompt": f"p{row}", "image": images[row * 7 % 100]} for row in range(20_000)])
    bucket = CountingBucket(farm.bucket)
    batch = with_bucket(farm, bucket).submit(file, options=STREAMED)
    assert reads == Counter(images)
    assert len(bucket.puts) == 100
    assert set(bucket.puts.values()) == {1}
    reader = ManifestReader(farm.bucket)
    for index in (0, 1, 9_999, 19_999):
        job = reader.job(batch.name, index)
        assert (job.prompt, job.row) == (f"p{index}", index)
        assert job.image == digest_of((tmp_path / images[index * 7 % 100]).read_bytes())

    again = CountingBucket(farm.bucket)
    with_bucket(farm, again).submit(file, batch="again", options=STREAMED)
    assert again.puts == Counter()


def test_distinct_inputs_keep_the_order_of_rows(farm: Farm, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(300):
        if number % 3:
            (tmp_path / f"{number}.png").write_bytes(image_bytes((number % 256, number // 256, 7)))
            rows.append({"prompt": f"p{number}", "image": f"{number}.png"})
        else:
            rows.append({"prompt": f"p{number}"})
    batch = farm.submit(prompt_file(tmp_path, rows), options=STREAMED)
    reader = ManifestReader(farm.bucket)
    jobs = [reader.job(batch.name, index) for index in range(300)]
    assert [job.prompt for job in jobs] == [row["prompt"] for row in rows]
    assert len({job.image for job in jobs}) == 201


def test_an_invalid_input_is_an_error_of_its_row_and_nothing_is_stored(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(image_bytes())
    (tmp_path / "cut.png").write_bytes(image_bytes(Image.effect_noise((64, 64), 50).getpixel((1, 1)))[:60])
    rows = [
        {"prompt": "a", "image": "good.png"},
        {"prompt": "b", "image": "cut.png", "id": "own"},
        {"prompt": "c", "image": "gone.png"},
        {"prompt": "d", "image": f"s3://{farm.bucket.name}/gone.png"},
        {"prompt": "e", "image": "sha256:" + "0" * 64},
    ]
    with pytest.raises(InvalidRowsError) as raised:
        farm.submit(prompt_file(tmp_path, rows))
    lines = str(raised.value).splitlines()
    assert "prompts.jsonl line 2: image 'cut.png' is truncated or damaged" in lines[0]
    assert (
        "prompts.jsonl line 3: image 'gone.png' cannot be read (No such file or directory); paths begin at" in lines[1]
    )
    assert "line 4: image" in lines[2]
    assert "is not in the store; correct bucket and key" in lines[2]
    assert "is not stored in the farm's bucket; write where the image is" in lines[3]
    assert raised.value.reasons == {"image": 4}
    assert list(farm.bucket.keys("")) == []


def test_invalid_inputs_count_for_max_invalid_and_become_failed_jobs(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(image_bytes())
    rows = [{"prompt": "a", "image": "good.png" if row % 500 else "gone.png"} for row in range(2_000)]
    file = prompt_file(tmp_path, rows)
    batch = farm.submit(file, options=STREAMED)
    assert batch.status().failed == 4
    with pytest.raises(InvalidRowsError, match="batch strict is paused with its first 1,000 jobs"):
        farm.submit(file, batch="strict", options=replace(STREAMED, max_invalid=0.0001))


def test_a_killed_submission_continues_and_a_changed_image_is_a_conflict(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image_bytes())
    file = prompt_file(tmp_path, [{"prompt": f"p{row}", "image": "a.png"} for row in range(3_500)])
    with pytest.raises(UnavailableError, match="the store is gone"):
        with_bucket(farm, CountingBucket(farm.bucket, refused="part-00002")).submit(
            file, batch="cats", options=STREAMED
        )
    before = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(image_bytes("blue"))
    assert farm.ledger.batch("cats").total == 2_000
    with pytest.raises(InputError, match="exists with other content, input images or options"):
        farm.submit(file, batch="cats", options=STREAMED)
    (tmp_path / "a.png").write_bytes(before)
    assert farm.submit(file, batch="cats", options=STREAMED).status().total == 3_500
    # a batch that is whole is found again, unless an image has changed
    assert farm.submit(file, batch="cats").status().total == 3_500
    (tmp_path / "a.png").write_bytes(image_bytes("blue"))
    with pytest.raises(InputError, match="exists with other content, input images or options"):
        farm.submit(file, batch="cats")
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match="batch cats, which was submitted before, is unchanged"):
        farm.submit(file, batch="cats", options=STREAMED)
    assert farm.ledger.batch("cats").state == "open"


def test_estimates_check_inputs_and_store_nothing(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image_bytes(size=(128, 256)))
    rows = [{"prompt": "a", "image": "a.png"}, {"prompt": "b", "image": "gone.png"}]
    policy = InputPolicy.of_user(farm.settings, farm.bucket, tmp_path / "x.jsonl")
    found = make_estimate(make_request(rows, model="mini", inputs=policy), throughput=None, count_tokens=None)
    assert (found.invalid, found.jobs) == (1, 1)
    assert list(farm.bucket.keys("")) == []


def test_the_server_reads_no_file_and_no_other_bucket(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image_bytes())
    policy = InputPolicy.of_server(farm.settings, farm.bucket)
    for source, problem in {
        str(tmp_path / "a.png"): "is a file of your own machine; write a data URL",
        "../a.png": "is a file of your own machine",
        "s3://other/a.png": "is in another bucket than the farm's",
        "https://example.org/a.png": "LATENTFARM_INPUT_HOSTS is empty",
        "file:///etc/passwd": "has an unknown scheme",
        "file-" + "0" * 24: "is a file of your own machine",
    }.items():
        [(_, row)] = make_request([{"prompt": "a", "image": source}], model="mini", inputs=policy).rows()
        assert problem in str(getattr(row, "text", ""))
    stored = replace(policy, read_file=lambda _: image_bytes())
    request = make_request([{"prompt": "a", "image": "file-" + "0" * 24}], model="mini", inputs=stored)
    [(_, row)] = request.rows()
    assert getattr(row, "image", "") == digest_of(image_bytes())


def test_control_images_have_the_size_of_the_model_or_are_resized(farm: Farm) -> None:
    facts = ModelFacts(pipeline="P", model_digest="d", native_width=512, native_height=512)
    nets = {"controlnet": ["edges", "depth"], "control_image": [data_url(size=(512, 512)), data_url(size=(64, 512))]}
    rows = [{"prompt": "a", **nets}, {"prompt": "b", "resize": "crop", **nets}]
    policy = InputPolicy(bucket=farm.bucket)
    found = [row for _, row in make_request(rows, model="m", inputs=policy).with_facts(facts).rows(farm.bucket)]
    assert "is 64x512, and the job is 512x512; write resize: crop, pad or stretch" in str(getattr(found[0], "text", ""))
    assert len(getattr(found[1], "control_image", ())) == 2


def test_inputs_are_collected_once_no_batch_names_them(farm: Farm) -> None:
    red, blue, old = image_bytes("red"), image_bytes("blue"), image_bytes("green")
    farm.submit([{"prompt": "a", "image": data_url("red")}], batch="one")
    farm.submit([{"prompt": "a", "image": data_url("red")}, {"prompt": "b", "image": data_url("blue")}], batch="two")
    farm.submit(["plain"], batch="three")
    farm.bucket.put(input_key(digest_of(old)), old)
    assert collect_inputs(farm.bucket) == 0
    assert collect_inputs(farm.bucket, grace_s=-3600) == 1
    farm.batch("two").delete()
    # deleting a batch deletes no input of another
    assert farm.bucket.get(input_key(digest_of(red))) == red
    assert farm.bucket.get(input_key(digest_of(blue))) == blue
    assert collect_inputs(farm.bucket, grace_s=-3600) == 1
    assert list(farm.bucket.keys("inputs/")) == [input_key(digest_of(red))]


def test_an_old_input_that_is_used_again_is_written_again(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    row = [{"prompt": "a", "image": data_url("red")}]
    puts = []
    # the part that names it may be stored much later, and a collection must not come between
    for oldest_s in (3600, 3600, -3600):
        monkeypatch.setattr(store, "_REFRESH_S", oldest_s)
        bucket = CountingBucket(farm.bucket)
        assert [getattr(found, "image", "") for _, found in make_request(row, model="mini").rows(bucket)]
        puts.append(bucket.puts.total())
    assert puts == [1, 0, 1]
    age_s = age_of(farm.bucket, input_key(digest_of(image_bytes("red"))))
    assert age_s == pytest.approx(0, abs=60)
    assert age_of(farm.bucket, input_key("sha256:" + "0" * 64)) is None


def test_nothing_is_collected_if_a_part_is_damaged(farm: Farm) -> None:
    farm.submit([{"prompt": "a", "image": data_url("red")}], batch="one")
    [part] = farm.bucket.keys("batches/one/manifest/")
    farm.bucket.put(part, b"damaged")
    farm.bucket.put(input_key(digest_of(b"x")), b"x")
    with pytest.raises(InputError, match="no input is deleted"):
        collect_inputs(farm.bucket, grace_s=-3600)
    assert len(list(farm.bucket.keys("inputs/"))) == 2


def test_the_command_collects_inputs(farm: Farm, latentfarm: Callable[..., Any]) -> None:
    farm.bucket.put(input_key(digest_of(b"x")), b"x")
    assert latentfarm("gc", "--inputs", settings=farm.settings).stdout == "0 inputs deleted\n"
    refused = latentfarm("gc", settings=farm.settings)
    assert (refused.returncode, "gc needs either BATCH or --inputs" in refused.stderr) == (2, True)
