"""Thumbnails: bounded, made once, and safe with any bytes."""

from __future__ import annotations

import asyncio
import io
import os
import struct
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from latentfarm.server.api.thumbnails import SIDE, ThumbnailFolder, Thumbnails, UnreadableImageError, make_thumbnail

pytestmark = pytest.mark.unit


def image(size: tuple[int, int], pillow: str = "PNG", mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 1).save(out, pillow)
    return out.getvalue()


def reads(content: bytes) -> Callable[[], Awaitable[bytes]]:
    async def read() -> bytes:
        return content

    return read


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that claims this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("pillow", ["PNG", "WEBP", "JPEG"])
def test_a_thumbnail_is_a_webp_that_keeps_the_shape(pillow: str) -> None:
    small = Image.open(io.BytesIO(make_thumbnail(image((1024, 512), pillow))))
    assert (small.format, small.size) == ("WEBP", (SIDE, SIDE // 2))


def test_a_small_image_is_not_enlarged() -> None:
    assert Image.open(io.BytesIO(make_thumbnail(image((64, 48), mode="L")))).size == (64, 48)


@given(st.binary(max_size=200))
@example(image((64, 64))[:60])
@example(image((64, 64), "GIF", "P"))
@example(bomb(9_000, 9_000))
@example(bomb(60_000, 60_000))
@example(bomb(2**31 - 1, 2**31 - 1))
@example(b"")
def test_other_bytes_and_bombs_are_refused(content: bytes) -> None:
    with pytest.raises(UnreadableImageError):
        make_thumbnail(content)


def test_a_thumbnail_is_made_once_for_all_who_request_it(tmp_path: Path) -> None:
    reads: list[str] = []
    waiting = asyncio.Event()

    async def read() -> bytes:
        reads.append("read")
        await waiting.wait()
        return image((64, 64))

    async def request_all() -> list[bytes]:
        thumbnails = Thumbnails(tmp_path, 1_000_000, source="s3")
        tasks = [asyncio.create_task(thumbnails.get("key", read)) for _ in range(5)]
        await asyncio.sleep(0)
        # the first client hangs up
        tasks[0].cancel()
        waiting.set()
        found = await asyncio.gather(*tasks[1:])
        # and another server with the same folder has it already
        return [*found, await Thumbnails(tmp_path, 1_000_000, source="s3").get("key", read)]

    found = asyncio.run(request_all())
    assert len(found) == 5
    assert len(set(found)) == 1
    assert reads == ["read"]


def test_an_image_that_cannot_be_read_is_read_again_later(tmp_path: Path) -> None:
    async def request_twice() -> bytes:
        thumbnails = Thumbnails(tmp_path, 1_000_000, source="s3")
        with pytest.raises(UnreadableImageError):
            await thumbnails.get("key", reads(b"broken"))
        return await thumbnails.get("key", reads(image((64, 64))))

    assert asyncio.run(request_twice())


def test_what_was_unused_for_longest_is_removed_first(tmp_path: Path) -> None:
    folder = ThumbnailFolder(tmp_path, 1_000)
    for at, name in enumerate(("aaaa", "bbbb", "cccc")):
        folder.write(name, bytes(300))
        os.utime(tmp_path / name[:2] / f"{name}.webp", (at, at))
    # used just now
    assert folder.read("aaaa") == bytes(300)
    folder.write("dddd", bytes(300))
    assert [name for name in ("aaaa", "bbbb", "cccc", "dddd") if folder.read(name)] == ["aaaa", "cccc", "dddd"]
    assert not [path for path in tmp_path.glob("*/*") if path.suffix != ".webp"]


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert asyncio.run(Thumbnails(file, 1_000, source="s3").get("key", reads(image((64, 64)))))
