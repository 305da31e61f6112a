"""Images of every format, from the engine to a user's folder, through a real Redis and a real S3 server."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.conftest import read_lines
from tests.support.rendering import render_loop
from tests.support.tiny import make_tiny

from latentfarm import Batch, Farm, InputError
from latentfarm.fetch.contact_sheet import contact_sheet
from latentfarm.image_formats import IMAGE_FORMATS, embedded_text, format_of
from latentfarm.recovery.recover import recover_batch
from latentfarm.storage.keys import results_key
from latentfarm_worker.models import Family, load_family

pytestmark = pytest.mark.integration

SMALL = {"width": 64, "height": 64, "num_inference_steps": 2, "scheduler": "euler"}
FILES = ["000000.png", "000001.webp", "000002.jpg"]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    model = make_tiny(tmp_path_factory.mktemp("model") / "tiny")
    return load_family(model, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture
def batch(farm: Farm, family: Family) -> Batch:
    """One seed in every format, with intermediates."""
    rows = [{"prompt": "a \N{SNOWMAN}", "seed": 7, "image_format": name, **SMALL} for name in IMAGE_FORMATS]
    found = farm.submit(rows, batch="b", save_intermediates=True)
    with render_loop(farm, family) as loop:
        loop.render_all()
        found.wait(timeout_s=60)
    return found


def test_keys_and_content_types_match_the_format_and_intermediates_are_png(farm: Farm, batch: Batch) -> None:
    for line, made in zip(batch.results(), IMAGE_FORMATS.values(), strict=True):
        assert line["key"].endswith(made.extension)
        assert line["intermediates"]["key"].endswith(".png")
        head = farm.bucket.client.head_object(Bucket=farm.bucket.name, Key=line["key"])
        assert (head["ContentType"], head["ContentLength"]) == (made.content_type, line["bytes"])
        assert line["request"]["image_format"] == made.name


def test_lossless_formats_have_the_same_pixels_and_all_formats_embed_the_receipt(farm: Farm, batch: Batch) -> None:
    pixels = []
    for line in batch.results():
        made = format_of(line["key"])
        assert made is not None
        with Image.open(io.BytesIO(farm.bucket.get(line["key"])), formats=[made.pillow]) as image:
            image.load()
            pixels.append(image.convert("RGB").tobytes())
            embedded = embedded_text(image)
        assert embedded["parameters"].startswith("a \N{SNOWMAN}\nSteps: 2")
        receipt = json.loads(embedded["latentfarm"])
        assert (receipt["job"], receipt["request"]["seed"]) == (line["job"], 7)
    assert pixels[0] == pixels[1] != pixels[2]


def test_a_fetch_names_files_by_format_and_resumes(batch: Batch, tmp_path: Path) -> None:
    fetched = batch.fetch(tmp_path)
    assert [file.name for file, _ in fetched.images] == FILES
    assert [line["file_name"] for line in read_lines(tmp_path / "metadata.jsonl")] == FILES
    lines = read_lines(tmp_path / "results.jsonl")
    assert [line["file"] for line in lines] == FILES
    assert [line["intermediates"] for line in lines] == [f"intermediates/{n:06d}.png" for n in range(3)]
    assert all((tmp_path / line["intermediates"]).is_file() for line in lines)
    assert contact_sheet(fetched.images).width > 0
    again = batch.fetch(tmp_path)
    assert (again.downloaded, again.present) == (0, 6)


def test_a_template_with_a_file_extension_is_refused_before_the_first_download(batch: Batch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"job b/1: its image is \.webp, but .* requires \.png"):
        batch.fetch(tmp_path / "out", name_template="{index}.png")
    assert not (tmp_path / "out").exists()


def test_webdataset_members_have_the_extension_of_their_format(batch: Batch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"jobs b/0 \(png\) and b/1 \(webp\) have .* with --image-format"):
        batch.fetch(tmp_path / "all", layout="webdataset")
    assert not (tmp_path / "all").exists()
    for number, made in enumerate(IMAGE_FORMATS.values()):
        for counts in ((2, 0), (0, 2)):
            fetched = batch.fetch(tmp_path / made.name, layout="webdataset", image_format=made.name)
            assert (fetched.downloaded, fetched.present) == counts, "its shard and that of its strip"
        with tarfile.open(tmp_path / made.name / "shard-00000.tar") as tar:
            assert tar.getnames()[1] == f"{number:08d}{made.extension}"


@pytest.mark.parametrize("left", ["images", "results too"])
def test_jobs_of_every_format_are_recovered_after_redis_was_emptied(farm: Farm, batch: Batch, left: str) -> None:
    before = [(line["key"], line["sha256"], line["request"]) for line in batch.results()]
    if left == "images":
        farm.bucket.delete([results_key("b", 0)])
    farm.ledger.redis.flushall()
    found = recover_batch(farm.ledger, farm.bucket, "b")
    assert (found.done, found.broken) == (3, [])
    assert [(line["key"], line["sha256"], line["request"]) for line in batch.results()] == before


def test_an_image_with_the_extension_of_another_format_is_not_recovered(farm: Farm, batch: Batch) -> None:
    png, webp, _ = (line["key"] for line in batch.results())
    farm.bucket.put(webp, farm.bucket.get(png))
    farm.bucket.delete([results_key("b", 0)])
    farm.ledger.redis.flushall()
    found = recover_batch(farm.ledger, farm.bucket, "b")
    assert (found.done, found.broken) == (2, [webp])
