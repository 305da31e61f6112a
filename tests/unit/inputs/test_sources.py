"""Sources of input images: what may be read, and how their texts are parsed."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.image_sources import data_url, image_bytes

from latentfarm.errors import InputError
from latentfarm.inputs import sources
from latentfarm.inputs.policy import InputPolicy, parse_hosts
from latentfarm.inputs.sources import parse_data_url, read_source
from latentfarm.settings import Settings

pytestmark = pytest.mark.unit

NOTHING = InputPolicy()


@given(
    data=st.binary(max_size=300),
    media=st.sampled_from(["", "image/png", "image/jpeg;charset=utf-8", "IMAGE/WEBP", "image/svg+xml;a=b;c=d"]),
    url_safe=st.booleans(),
    padded=st.booleans(),
    quoted=st.booleans(),
    width=st.integers(1, 90),
)
def test_every_spelling_of_a_data_url_is_read(
    *, data: bytes, media: str, url_safe: bool, padded: bool, quoted: bool, width: int
) -> None:
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(data).decode()
    if not padded:
        text = text.rstrip("=")
    text = quote(text) if quoted else "\n".join(text[at : at + width] for at in range(0, len(text), width))
    assert parse_data_url(f"data:{media};base64,{text}") == data


@given(st.text(max_size=80))
def test_any_data_url_is_read_or_refused(text: str) -> None:
    for url in (f"data:{text}", f"data:image/png;base64,{text}", f"DATA:{text};base64,AAAA"):
        try:
            assert isinstance(read_source(url, NOTHING), bytes)
        except InputError:
            continue


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("data:image/png,abc", "is no data URL of an image; write data:image/png;base64,"),
        ("data:text/html;base64,AAAA", "is no data URL of an image"),
        ("data:image/png;base64,%%%", "is not base64"),
        ("data:image/png;base64,A", "is not base64"),
        ("data:image/png;base64,AAA\u00e9", "is not base64"),
    ],
)
def test_other_data_urls_are_refused(url: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        read_source(url, NOTHING)


def test_a_data_url_over_the_limit_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MAX_BASE64", 100)
    with pytest.raises(InputError, match="store it smaller"):
        read_source("data:image/png;base64," + "A" * 101, NOTHING)


def test_a_long_media_type_takes_no_long_time() -> None:
    with pytest.raises(InputError):
        parse_data_url("data:image/png" + ";a" * 200_000 + ",")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("a.png", "is a file of your own machine; write a data URL"),
        ("/etc/passwd", "is a file of your own machine"),
        ("C:\\a.png", "is a file of your own machine"),
        ("file:///etc/passwd", "has an unknown scheme; write a path, s3://BUCKET/KEY, https://HOST/PATH or a data URL"),
        ("ftp://a/b", "has an unknown scheme"),
        ("s3://bucket", "names no object; write s3://BUCKET/KEY"),
        ("s3://bucket/", "names no object"),
        ("s3://bucket/a.png", "needs a store"),
        ("sha256:" + "0" * 64, "needs a store"),
        ("sha256:" + "A" * 64, "is no digest; write sha256: and 64 hex digits in lower case"),
        ("sha256:12", "is no digest"),
        ("https://example.org/a.png", "the host example.org, and LATENTFARM_INPUT_HOSTS is empty"),
        ("http://example.org/a.png", "is refused, as only https is allowed"),
        ("https://me:hidden@example.org/a.png", "has a user or password"),
    ],
)
def test_a_source_that_may_not_be_used_has_a_cure(source: str, problem: str) -> None:
    with pytest.raises(InputError) as raised:
        read_source(source, NOTHING)
    assert problem in str(raised.value)
    assert "hidden" not in str(raised.value)


def test_paths_begin_at_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "in/b:c.png", "in/file-000000000000000000000000"):
        (tmp_path / name).write_bytes(name.encode())
    policy = InputPolicy(tmp_path / "in")
    assert read_source("../a.png", policy) == b"a.png"
    assert read_source("b:c.png", policy) == b"in/b:c.png"
    assert read_source(str(tmp_path / "a.png"), policy) == b"a.png"
    # an id of the server's files is a name like any other where there is no server
    assert read_source("file-" + "0" * 24, policy) == b"in/file-" + b"0" * 24
    monkeypatch.chdir(tmp_path)
    assert read_source("a.png", InputPolicy.of_user(Settings(), None, "-")) == b"a.png"
    assert read_source("b:c.png", InputPolicy.of_user(Settings(), None, "in/prompts.jsonl")) == b"in/b:c.png"
    assert read_source("a.png", InputPolicy.of_user(Settings(), None, ["row"])) == b"a.png"


def test_a_prompt_file_of_a_store_names_no_local_file() -> None:
    with pytest.raises(InputError, match="is a file of your own machine"):
        read_source("/etc/passwd", InputPolicy.of_user(Settings(), None, "s3://bucket/prompts.jsonl"))


def test_only_regular_files_of_a_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(bytes(101))
    monkeypatch.setattr(sources, "MAX_INPUT_BYTES", 100)
    policy = InputPolicy(tmp_path)
    for source, problem in {
        "fifo": "is not a regular file",
        ".": "cannot be read (Is a directory)",
        "/dev/zero": "is not a regular file",
        "large": "has 101 bytes; at most 100 are allowed",
        "gone": "cannot be read (No such file or directory); paths begin at",
        "/gone": "cannot be read (No such file or directory); correct the path",
        "a\0b": "cannot be read (embedded null byte)",
        "x" * 5000: "cannot be read (File name too long)",
    }.items():
        with pytest.raises(InputError) as raised:
            read_source(source, policy)
        assert problem in str(raised.value)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        assert isinstance(read_source(text, NOTHING), bytes)
    except InputError:
        return


@pytest.mark.parametrize(
    ("hosts", "host", "allowed"),
    [
        ("", "a.org", False),
        ("a.org", "a.org", True),
        ("a.org", "A.ORG.", True),
        (" A.org , b.org", "b.org", True),
        ("a.org", "b.a.org", False),
        ("*.a.org", "b.a.org", True),
        ("*.a.org", "c.b.a.org", True),
        ("*.a.org", "a.org", False),
        ("*.a.org", "eviLa.org", False),
        ("*", "anything.example", True),
        (",,", "a.org", False),
    ],
)
def test_hosts_are_allowed_by_a_list(hosts: str, host: str, allowed: bool) -> None:  # noqa: FBT001
    policy = InputPolicy(hosts=parse_hosts(hosts))
    if allowed:
        policy.check_host(host)
        return
    with pytest.raises(InputError, match="add the host, or save the image to a file"):
        policy.check_host(host)


def test_the_transparent_part_of_an_image_is_a_mask() -> None:
    source = data_url((255, 0, 0, 0), mode="RGBA")
    assert read_source(f"transparent:{source}", NOTHING) == image_bytes(255, mode="L")
