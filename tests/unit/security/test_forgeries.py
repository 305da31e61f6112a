"""Forged parts, names and images, written to the bucket or requested by a prompt file."""

from __future__ import annotations

import gzip
import io
import posixpath
import struct
import tracemalloc
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import REPOSITORY

from latentfarm.errors import InputError
from latentfarm.fetch.contact_sheet import contact_sheet
from latentfarm.fetch.names import NameTemplate
from latentfarm.fetch.shards import _sample
from latentfarm.job import Defaults, Job, Row
from latentfarm.limits import (
    MAX_COLUMNS_BYTES,
    MAX_GUIDANCE,
    MAX_OPTIONS_BYTES,
    MAX_PROMPT_BYTES,
    MAX_SEED,
    MAX_SIDE,
    PART_JOBS,
)
from latentfarm.names import check_batch_name, parse_job_name
from latentfarm.storage.bucket import Bucket
from latentfarm.storage.keys import header_key, image_key, intermediates_key, manifest_key, part_of, results_key
from latentfarm.storage.manifest import ManifestReader, PartWriter
from latentfarm.storage.part_codec import MAX_PART_BYTES, pack, unpack
from latentfarm.submission.expansion import Expansion
from latentfarm.submission.prompts import ReadOptions, Source
from latentfarm.submission.request import make_request

pytestmark = pytest.mark.unit


CANARY = "canary-of-a-prompt"


class OneObject:
    """A bucket that returns ``body`` for every key."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def get(self, _key: str) -> bytes:
        return self.body


def reader(body: bytes) -> ManifestReader:
    return ManifestReader(cast("Bucket", OneObject(body)))


def line(**fields: Any) -> dict[str, Any]:
    return {"index": 0, "row": 0, "prompt": CANARY, "seed": 1, **fields}


# -- a forged part ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A few MB that expand to two GB."""
    megabyte = gzip.compress(b" " * 2**20)
    return megabyte * 2048


def test_a_gzip_bomb_is_refused_within_bounded_memory(bomb: bytes) -> None:
    assert len(bomb) < 4 * 2**20
    tracemalloc.start()
    with pytest.raises(InputError, match=r"batches/b/manifest/part-00000.jsonl.gz has more than .* bytes decompressed"):
        reader(bomb).job("b", 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_PART_BYTES


def test_the_largest_part_within_the_limits_is_read() -> None:
    worst = "\x01" * MAX_PROMPT_BYTES
    options = {"a": "o" * (MAX_OPTIONS_BYTES - 12)}
    columns = {"c": "x" * (MAX_COLUMNS_BYTES - 12)}
    row = Row(
        prompt=worst,
        negative_prompt=worst,
        id="\x01" * 256,
        width=2048,
        height=2048,
        num_inference_steps=500,
        guidance_scale=MAX_GUIDANCE - 2**-40,
        seed=MAX_SEED,
        scheduler="KDPM2AncestralDiscreteScheduler",
        scheduler_options=options,
        columns=columns,
        save_intermediates=True,
        num_images_per_prompt=PART_JOBS,
    )
    [part] = PartWriter("b", Defaults()).add(row, 0)
    assert 0.85 * MAX_PART_BYTES < len(part.lines) < MAX_PART_BYTES
    assert reader(gzip.compress(part.lines, 1)).job("b", PART_JOBS - 1).prompt == worst


def test_a_part_of_brackets_does_not_become_gigabytes_of_objects() -> None:
    brackets = b'{"index":0,"prompt":[' + b"{}," * (MAX_PART_BYTES // 3 - 10) + b"{}]}"
    forged = reader(gzip.compress(brackets, 1))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"has a line of 83,886,\d{3} bytes"):
        forged.job("b", 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_PART_BYTES


def test_a_part_with_more_than_1000_lines_is_refused() -> None:
    assert len(unpack(pack([line()] * PART_JOBS))) == PART_JOBS
    with pytest.raises(InputError, match="more than 1,000 lines"):
        unpack(pack([line()] * (PART_JOBS + 1)))


@given(st.binary(max_size=200) | st.binary(max_size=200).map(gzip.compress))
def test_any_bytes_are_a_part_or_an_input_error(body: bytes) -> None:
    try:
        reader(body).job("b", 0)
    except InputError:
        return
    raise AssertionError("random bytes were read as a job")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": CANARY * 300},
        {"width": 64_000, "height": 64_000},
        {"num_inference_steps": 10**9},
        {"negative_prompt": [CANARY]},
        {"scheduler_options": {"x": CANARY * 1_000}},
        {"model": "/etc/passwd"},
        {"model_source": "evil/model"},
        {"custom_pipeline": "evil/pipeline"},
        {"scheduler": "os.system"},
        {"columns": {"x": CANARY * 1_000}},
        {"seed": -1},
    ],
)
def test_a_forged_job_is_refused_and_the_error_has_nothing_of_its_prompt(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="job b/0 is not valid in the manifest") as caught:
        reader(pack([line(**fields)])).job("b", 0)
    assert CANARY not in str(caught.value)
    assert next(iter(fields)) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_prompt_of_a_gigabyte_is_refused_within_bounded_memory() -> None:
    before, after = gzip.compress(b'{"index":0,"seed":1,"prompt":"'), gzip.compress(b'"}\n')
    forged = reader(before + gzip.compress(b"x" * 2**20) * 1024 + after)
    tracemalloc.start()
    with pytest.raises(InputError, match="bytes decompressed"):
        forged.job("b", 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_PART_BYTES


def test_a_job_has_no_field_for_weights_or_code() -> None:
    assert not {"model", "model_source", "revision", "custom_pipeline", "lora"} & Job.model_fields.keys()
    assert not {"model", "model_source", "revision", "custom_pipeline", "lora"} & Row.model_fields.keys()


# -- names and keys --------------------------------------------------------------------------------------------


HOSTILE = st.text(max_size=80) | st.sampled_from(
    ["..", "../x", "a/../../b", "/etc/passwd", "a\0b", "a\nb", "con", "a" * 300, "\u202e", "cats\n", "Ä", "-", "a//b"]
)


@given(HOSTILE, st.integers(0, 10**8), st.integers(0, 2**53))
def test_keys_stay_below_their_batch_for_any_batch_name(name: str, index: int, epoch: int) -> None:
    try:
        batch = check_batch_name(name)
    except InputError:
        return
    part = part_of(index)
    keys = [
        image_key(batch, index, epoch),
        intermediates_key(batch, index, epoch),
        manifest_key(batch, part),
        results_key(batch, part),
        header_key(batch),
    ]
    for key in keys:
        assert key.startswith(f"batches/{name}/")
        assert posixpath.normpath(key) == key
        assert key.isascii()
        assert key.isprintable()
        assert len(key) < 200


@given(HOSTILE)
def test_a_file_with_any_name_makes_a_batch_with_a_safe_name(name: str) -> None:
    request = make_request(["a"], ReadOptions(), model="mini", expansion=Expansion.parse())
    named = replace(request, source=cast("Source", SimpleNamespace(name=name, digest="d" * 64)))
    assert check_batch_name(named.name) == named.name


@given(HOSTILE)
def test_only_valid_job_names_are_parsed(name: str) -> None:
    with suppress(InputError):
        batch, index = parse_job_name(name)
        assert check_batch_name(batch) == batch
        assert index >= 0


@given(HOSTILE, HOSTILE, HOSTILE, st.integers(0, 10**8 - 1))
def test_the_members_of_a_shard_are_named_by_index_for_any_row(id_: str, prompt: str, column: str, index: int) -> None:
    result: dict[str, Any] = {
        "job": f"cats/{index}",
        "index": index,
        "id": id_,
        "state": "done",
        "key": id_,
        "sha256": "0" * 64,
        "request": {"prompt": prompt},
        "columns": {column: id_},
        "intermediates": {"key": id_, "sha256": "0" * 64},
    }
    for receipt in (result, result["intermediates"]):
        names = [name for name, _ in _sample(result, receipt)]
        assert names == [f"{index:08d}{end}" for end in (".json", ".png", ".txt")]


@given(st.sampled_from(["id", "seed", "width", "scheduler", "row", "batch"]), HOSTILE)
def test_no_field_of_a_forged_result_puts_a_file_outside_the_folder(field: str, value: str) -> None:
    result = {"job": f"{value}/3", "index": 3, "id": value, "row": value, "request": {field: value}}
    with suppress(InputError):
        name = NameTemplate(f"{{{field}}}-{{index}}.png").name(result)
        assert Path("/out", name).resolve().parent == Path("/out")


# -- images ----------------------------------------------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    """Return a PNG with this size in its header and next to no data."""
    out = io.BytesIO()
    Image.new("RGB", (1, 1)).save(out, "PNG")
    header = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    body = out.getvalue()
    return body[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + body[33:]


@pytest.mark.parametrize("body", [png_of(2048, 2056), png_of(60_000, 60_000), b"GIF89a", b"", png_of(8, 8)[:40]])
def test_a_forged_image_is_refused_before_it_is_decoded(body: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(body)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a\.png (has \d+x\d+ pixels|is not an image of latentfarm)"):
        contact_sheet([(tmp_path / "a.png", "label")])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20


def test_the_largest_image_of_a_job_is_on_a_contact_sheet(tmp_path: Path) -> None:
    Image.new("RGB", (MAX_SIDE, MAX_SIDE)).save(tmp_path / "a.png")
    assert contact_sheet([(tmp_path / "a.png", "label")]).width > 0


def test_every_image_is_opened_with_a_format_and_a_size_limit() -> None:
    opened = {
        file.name: file.read_text()
        for folder in ("producer", "worker")
        for file in (REPOSITORY / folder).rglob("*.py")
        if "Image.open(" in file.read_text()
    }
    assert opened
    for name, source in opened.items():
        assert source.count("Image.open(") == source.count("formats="), name
        limits = ("MAX_SIDE * MAX_SIDE", "image.size != (", "opened.width * opened.height > _MAX_PIXELS")
        # these read headers and texts only, no pixels
        assert any(limit in source for limit in limits) or name in {"info.py", "image_stream.py"}, name
