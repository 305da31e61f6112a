"""What an enemy may write to the bucket, ask for by a prompt file or publish as a model, and what becomes of it."""

from __future__ import annotations

import ast
import gzip
import io
import json
import pickle
import posixpath
import socket
import struct
import tracemalloc
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import huggingface_hub
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import REPOSITORY
from tests.tiny import make_tiny

from latentfarm.bucket import (
    Bucket,
    header_key,
    image_key,
    manifest_key,
    part_of,
    results_key,
    trace_key,
)
from latentfarm.contact_sheet import contact_sheet
from latentfarm.doorbell import make_app
from latentfarm.errors import InputError, ModelError
from latentfarm.expansion import Expansion
from latentfarm.fetch.names import NameTemplate
from latentfarm.fetch.shards import _members
from latentfarm.job import (
    MAX_COLUMNS_BYTES,
    MAX_GUIDANCE,
    MAX_OPTIONS_BYTES,
    MAX_PROMPT_BYTES,
    MAX_SEED,
    MAX_SIDE,
    PART_JOBS,
    Defaults,
    Job,
    Row,
    check_batch_name,
    parse_job_name,
)
from latentfarm.jsonl import MAX_PART_BYTES, pack, unpack
from latentfarm.ledger import Ledger
from latentfarm.manifest import ManifestReader, PartWriter
from latentfarm.prompts import ReadOptions, Source
from latentfarm.settings import Settings, redis_problem
from latentfarm.submission import make_request
from latentfarm_worker.families import load_family

pytestmark = pytest.mark.unit

CANARY = "canary-of-a-prompt"


class Held:
    """A bucket whose every object is ``body``."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def get(self, _key: str) -> bytes:
        return self.body


def reader(body: bytes) -> ManifestReader:
    return ManifestReader(cast("Bucket", Held(body)))


def line(**fields: Any) -> dict[str, Any]:
    return {"index": 0, "row": 0, "prompt": CANARY, "seed": 1, **fields}


# -- a forged part ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A few MB that stand for two GB."""
    megabyte = gzip.compress(b" " * 2**20)
    return megabyte * 2048


def test_a_gzip_bomb_is_refused_within_bounded_memory(bomb: bytes) -> None:
    assert len(bomb) < 4 * 2**20
    tracemalloc.start()
    with pytest.raises(InputError, match=r"batches/b/manifest/part-00000.jsonl.gz is more than .* bytes long unpacked"):
        reader(bomb).job("b", 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_PART_BYTES


def test_the_largest_part_that_rows_within_their_limits_make_is_read() -> None:
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
        trace=True,
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


def test_more_lines_than_a_part_has_are_refused() -> None:
    assert len(unpack(pack([line()] * PART_JOBS))) == PART_JOBS
    with pytest.raises(InputError, match="more than 1,000 lines"):
        unpack(pack([line()] * (PART_JOBS + 1)))


@given(st.binary(max_size=200) | st.binary(max_size=200).map(gzip.compress))
def test_any_bytes_are_a_part_or_a_clear_error(body: bytes) -> None:
    try:
        reader(body).job("b", 0)
    except InputError:
        return
    raise AssertionError("random bytes are no job")


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
def test_a_worker_refuses_a_forged_job_and_repeats_nothing_of_its_prompt(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="job b/0 is not valid in the manifest") as caught:
        reader(pack([line(**fields)])).job("b", 0)
    assert CANARY not in str(caught.value)
    assert next(iter(fields)) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_prompt_of_a_gigabyte_is_refused_unread() -> None:
    before, after = gzip.compress(b'{"index":0,"seed":1,"prompt":"'), gzip.compress(b'"}\n')
    forged = reader(before + gzip.compress(b"x" * 2**20) * 1024 + after)
    tracemalloc.start()
    with pytest.raises(InputError, match="bytes long unpacked"):
        forged.job("b", 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_PART_BYTES


def test_a_job_can_name_no_weights() -> None:
    assert not {"model", "model_source", "revision", "custom_pipeline", "lora"} & Job.model_fields.keys()
    assert not {"model", "model_source", "revision", "custom_pipeline", "lora"} & Row.model_fields.keys()


# -- an open Redis ---------------------------------------------------------------------------------------------


def with_redis(url: str, **fields: Any) -> Settings:
    return Settings().model_copy(update={"redis_url": url, "bucket": "b", **fields})


@pytest.mark.parametrize(
    "url",
    [
        "redis://farm.example",
        "redis://user@farm.example",
        "redis://:@farm.example",
        "redis://10.0.0.7:6379/1",
        "redis://[2001:db8::1]:6379",
        "redis://0.0.0.0",
        "redis://127.0.0.1.example",
        "redis://127.0.0.1%2eexample",
        "redis://127.1",
        "redis://localhost.example",
        "redis:///?host=farm.example",
        "redis://farm.example?path=/run/redis.sock",
        "rediss://farm.example?ssl_cert_reqs=none",
        "rediss://farm.example?ssl_check_hostname=false",
    ],
)
def test_a_redis_that_is_open_to_a_network_is_refused_unless_it_is_meant(url: str) -> None:
    with pytest.raises(InputError, match=r"LATENTFARM_REDIS_URL leads to .* with neither password nor verified TLS"):
        with_redis(url).require()
    assert with_redis(url, allow_insecure_redis=True).require().redis_url == url


@pytest.mark.parametrize(
    "url",
    [
        "unix:///run/redis.sock",
        "redis://localhost:6379",
        "redis://127.0.0.1",
        "redis://127.9.9.9",
        "redis://[::1]",
        "redis:///1",
        "rediss://:secret@farm.example",
        "rediss://farm.example?ssl_certfile=me.pem",
    ],
)
def test_a_redis_of_this_machine_or_behind_tls_is_used_without_a_word(url: str) -> None:
    assert redis_problem(url) is None
    assert with_redis(url).require().redis_url == url


def test_a_password_in_clear_is_warned_of_once_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with_redis("redis://:hunter2@clear.example").require()
    [record] = caplog.records
    assert "leads to clear.example port 6379 without verified TLS" in record.getMessage()
    assert "hunter2" not in record.getMessage()
    with_redis("redis://:hunter2@quiet.example", allow_insecure_redis=True).require()
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "url", ["redis://:hunter2@h:port", "redis://h:hunter2", "hunter2", "redis://h?max_connections=hunter2", "http://h"]
)
def test_a_url_that_cannot_be_read_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InputError, match="LATENTFARM_REDIS_URL is no URL of a Redis") as caught:
        with_redis(url).require()
    assert "hunter2" not in str(caught.value)


@given(st.text(max_size=40), st.sampled_from(["redis://", "rediss://", "unix://", "redis://127.0.0.1@", ""]))
def test_any_url_is_judged_or_refused(text: str, scheme: str) -> None:
    with suppress(InputError):
        found = redis_problem(scheme + text)
        assert found is None or "LATENTFARM_REDIS_URL leads to" in found.text


@pytest.mark.parametrize(
    "url", ["redis://me:hunter2@h:1/0", "unix:///x.sock?password=hunter2", "redis://h?username=me&password=hunter2"]
)
def test_no_password_of_redis_is_shown_by_settings_or_errors(url: str) -> None:
    assert "hunter2" not in Ledger.connect(url).where
    assert "hunter2" not in repr(with_redis(url))


def test_that_an_open_redis_is_meant_is_handed_to_workers() -> None:
    assert with_redis("redis://h").environment().get("LATENTFARM_ALLOW_INSECURE_REDIS") is None
    allowed = with_redis("redis://h", allow_insecure_redis=True).environment()
    assert allowed["LATENTFARM_ALLOW_INSECURE_REDIS"] == "true"


# -- names and keys --------------------------------------------------------------------------------------------

HOSTILE = st.text(max_size=80) | st.sampled_from(
    ["..", "../x", "a/../../b", "/etc/passwd", "a\0b", "a\nb", "con", "a" * 300, "\u202e", "cats\n", "Ä", "-", "a//b"]
)


@given(HOSTILE, st.integers(0, 10**8), st.integers(0, 2**53))
def test_no_batch_name_leads_a_key_out_of_its_batch(name: str, index: int, epoch: int) -> None:
    try:
        batch = check_batch_name(name)
    except InputError:
        return
    part = part_of(index)
    keys = [
        image_key(batch, index, epoch),
        trace_key(batch, index, epoch),
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
def test_a_file_of_any_name_makes_a_batch_of_a_safe_name(name: str) -> None:
    request = make_request(["a"], ReadOptions(), model="mini", expansion=Expansion.parse())
    named = replace(request, source=cast("Source", SimpleNamespace(name=name, digest="d" * 64)))
    assert check_batch_name(named.name) == named.name


@given(HOSTILE)
def test_only_a_job_s_own_name_is_one(name: str) -> None:
    with suppress(InputError):
        batch, index = parse_job_name(name)
        assert check_batch_name(batch) == batch
        assert index >= 0


@given(HOSTILE, HOSTILE, HOSTILE, st.integers(0, 10**8 - 1))
def test_the_members_of_a_shard_are_named_by_index_whatever_the_row_says(
    id_: str, prompt: str, column: str, index: int
) -> None:
    result = {
        "job": f"cats/{index}",
        "index": index,
        "id": id_,
        "state": "done",
        "key": id_,
        "sha256": "0" * 64,
        "request": {"prompt": prompt},
        "columns": {column: id_},
        "trace": {"key": id_, "sha256": "0" * 64},
    }
    names = [name for name, _ in _members(result, {})]
    assert names == [f"{index:08d}{end}" for end in (".json", ".png", ".trace.png", ".txt")]


@given(st.sampled_from(["id", "seed", "width", "scheduler", "row", "batch"]), HOSTILE)
def test_no_field_of_a_forged_result_leads_a_file_out_of_the_folder(field: str, value: str) -> None:
    result = {"job": f"{value}/3", "index": 3, "id": value, "row": value, "request": {field: value}}
    with suppress(InputError):
        name = NameTemplate(f"{{{field}}}-{{index}}.png").name(result)
        assert Path("/out", name).resolve().parent == Path("/out")


# -- pictures --------------------------------------------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    out = io.BytesIO()
    Image.new("RGB", (1, 1)).save(out, "PNG")
    header = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    body = out.getvalue()
    return body[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + body[33:]


@pytest.mark.parametrize("body", [png_of(2048, 2056), png_of(60_000, 60_000), b"GIF89a", b"", png_of(8, 8)[:40]])
def test_a_forged_picture_is_refused_before_it_is_decoded(body: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(body)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a\.png (says \d+x\d+ pixels|is no picture of ours)"):
        contact_sheet([(tmp_path / "a.png", "label")])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20


def test_the_largest_picture_of_a_job_is_shown(tmp_path: Path) -> None:
    Image.new("RGB", (MAX_SIDE, MAX_SIDE)).save(tmp_path / "a.png")
    assert contact_sheet([(tmp_path / "a.png", "label")]).width > 0


def test_every_picture_is_opened_with_a_format_and_a_cap() -> None:
    opened = {
        file.name: file.read_text()
        for folder in ("producer", "worker")
        for file in (REPOSITORY / folder).rglob("*.py")
        if "Image.open(" in file.read_text()
    }
    assert opened
    for name, source in opened.items():
        assert source.count("Image.open(") == source.count("formats="), name
        assert "MAX_SIDE * MAX_SIDE" in source or "image.size != (" in source, name


# -- a hostile model -------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny(tmp_path / "model")


def load(source: Path | str) -> None:
    load_family(source, dtype=torch.float32, device=torch.device("cpu"))


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("ending", [".bin", ".ckpt", ".pt"])
def test_a_pickle_of_weights_is_refused_unread(model: Path, part: str, ending: str) -> None:
    [weights] = (model / part).glob("*.safetensors")
    weights.unlink()
    trap = model / "trap"
    weights.with_suffix(ending).write_bytes(pickle.dumps(Touch(trap)))
    with pytest.raises(ModelError, match=r"latentfarm loads safetensors only"):
        load(model)
    assert not trap.exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"_class_name": ["my_pipeline", "MyPipeline"]},
        {"unet": ["my_unet", "MyUNet"]},
        {"text_encoder": ["os", "system"]},
    ],
)
def test_a_model_with_a_pipeline_or_a_part_of_its_own_is_refused(model: Path, fields: dict[str, Any]) -> None:
    for name in ("my_pipeline.py", "unet/my_unet.py"):
        (model / name).write_text(f"open({str(model / 'trap')!r}, 'w')")
    edit(model / "model_index.json", **fields)
    with pytest.raises(ModelError, match="runs no code of a model"):
        load(model)
    assert not (model / "trap").exists()


@pytest.mark.parametrize("config", ["text_encoder/config.json", "unet/config.json", "tokenizer/tokenizer_config.json"])
def test_a_model_with_remote_code_is_refused(model: Path, config: str) -> None:
    edit(model / config, auto_map={"AutoModel": "evil.Model", "AutoTokenizer": ["evil.T", None]})
    with pytest.raises(ModelError, match="auto_map names code of the model's own"):
        load(model)


def test_an_offline_worker_asks_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        load("no-such-owner/no-such-model")


def test_no_code_asks_for_code_of_a_model_or_a_pickle() -> None:
    for file in (REPOSITORY / "worker").rglob("*.py"):
        called = {keyword.arg for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)
                  for keyword in node.keywords}  # fmt: skip
        assert not called & {"trust_remote_code", "custom_pipeline"}, file.name


def test_messages_are_json_and_nothing_else() -> None:
    conf = make_app("redis://localhost", model="mini").conf
    assert (conf.accept_content, conf.task_serializer, conf.event_serializer) == (["json"], "json", "json")
    assert conf.result_backend is None
