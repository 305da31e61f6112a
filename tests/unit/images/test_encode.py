"""The image encoders: lossless pixels, embedded metadata, and a released GIL."""

from __future__ import annotations

import io
import json
import zlib
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image
from tests.bench.bench_images import longest_wait

from latentfarm.a1111_parameters import parameters_text
from latentfarm.image_formats import IMAGE_FORMATS, JPEG, PNG, WEBP, embedded_text
from latentfarm.job import Job
from latentfarm.limits import MAX_PROMPT_BYTES
from latentfarm.storage.embedded_receipt import embedded_receipt
from latentfarm.storage.keys import image_key
from latentfarm_worker.images.encode import encode_image
from latentfarm_worker.images.png import filter_rows

pytestmark = pytest.mark.unit

Pixels = NDArray[np.uint8]
LOSSLESS = [PNG.name, WEBP.name]
SIDES = st.integers(1, 40)
SIZES = st.tuples(SIDES, SIDES, st.just(3))
#: noise, images of a few colours, and plain ones
IMAGES = st.one_of(
    arrays.arrays(np.uint8, SIZES),
    arrays.arrays(np.uint8, SIZES, elements=st.sampled_from([0, 1, 128, 254, 255])),
    arrays.arrays(np.uint8, SIZES, elements=st.integers(0, 255), fill=st.integers(0, 255)),
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
PLAIN = np.zeros((8, 8, 3), np.uint8)
SMOOTH = np.fromfunction(lambda y, x, c: (3 * y + 5 * x + 40 * c) % 256, (300, 260, 3)).astype(np.uint8)


def opened(body: bytes) -> Image.Image:
    return Image.open(io.BytesIO(body))


def encoded(pixels: Pixels, image_format: str, **metadata: str) -> bytes:
    return encode_image(torch.from_numpy(pixels), image_format, metadata=metadata)


def idat_of(body: bytes) -> bytes:
    """The compressed bytes of a PNG."""
    at, found = 8, b""
    while at < len(body):
        size, kind = int.from_bytes(body[at : at + 4]), body[at + 4 : at + 8]
        assert zlib.crc32(body[at + 4 : at + 8 + size]) == int.from_bytes(body[at + 8 + size : at + 12 + size])
        found += body[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += 12 + size
    return found


def plain_paeth(pixels: Pixels) -> Pixels:
    """The Paeth filter as written in the standard, in integers of any size."""
    height, width, channels = pixels.shape
    padded = np.zeros((height + 1, width + 1, channels), int)
    padded[1:, 1:] = pixels
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    rows[:, 0] = 4
    for y, x, c in product(range(height), range(width), range(channels)):
        before, above, corner = padded[y + 1, x, c], padded[y, x + 1, c], padded[y, x, c]
        guess = before + above - corner
        nearest = min(
            (abs(guess - before), 0, before), (abs(guess - above), 1, above), (abs(guess - corner), 2, corner)
        )
        rows[y, 1 + x * channels + c] = (padded[y + 1, x + 1, c] - nearest[2]) % 256
    return rows


@pytest.mark.parametrize("image_format", LOSSLESS)
@given(pixels=IMAGES)
@example(pixels=SMOOTH)
def test_a_lossless_image_keeps_every_pixel_and_always_has_the_same_bytes(image_format: str, pixels: Pixels) -> None:
    body = encoded(pixels, image_format)
    with opened(body) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels)
    assert body == encoded(pixels.copy(), image_format)


@given(pixels=IMAGES)
def test_a_jpeg_has_the_images_size_and_always_the_same_bytes(pixels: Pixels) -> None:
    body = encoded(pixels, JPEG.name)
    with opened(body) as image:
        assert (image.height, image.width, 3) == pixels.shape
    assert body == encoded(pixels, JPEG.name)


def test_a_jpeg_is_near_its_pixels_in_every_colour() -> None:
    # 4:2:0 would blur the red edge over 2 pixels
    pixels = np.full((64, 64, 3), 128, np.uint8)
    pixels[:, 33:] = (220, 30, 30)
    with opened(encoded(pixels, JPEG.name)) as image:
        assert np.abs(np.asarray(image).astype(int) - pixels).max() <= 16


@given(pixels=arrays.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(3))))
def test_the_filter_is_that_of_the_png_standard(pixels: Pixels) -> None:
    assert np.array_equal(filter_rows(pixels), plain_paeth(pixels))


def test_each_combination_of_three_neighbours_is_filtered_as_in_the_png_standard() -> None:
    values = (0, 1, 2, 3, 63, 64, 127, 128, 129, 200, 254, 255)
    for corner, above, before in product(values, repeat=3):
        pixels = np.array([[[corner] * 3, [above] * 3], [[before] * 3, [77] * 3]], np.uint8)
        assert np.array_equal(filter_rows(pixels), plain_paeth(pixels)), (corner, above, before)


@pytest.mark.parametrize("shape", [(64, 64, 3), (200, 312, 3), (300, 260, 3)])
def test_pythons_zlib_gives_the_same_png(shape: tuple[int, int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 9, shape)
    pixels = (SMOOTH[: shape[0], : min(shape[1], 260)].repeat(2, axis=1)[:, : shape[1]] + noise).astype(np.uint8)
    compressor = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    # the first two bytes hold the level, which each library encodes differently
    assert (
        idat_of(encoded(pixels, "png"))[2:]
        == (compressor.compress(filter_rows(pixels).tobytes()) + compressor.flush())[2:]
    )


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
@given(parameters=TEXTS, prompt=TEXTS)
@example(parameters="a\nb", prompt="\N{SNOWMAN}\U0001f408")
def test_embedded_metadata_is_read_back(image_format: str, parameters: str, prompt: str) -> None:
    receipt = json.dumps({"job": "b/0", "prompt": prompt}, ensure_ascii=False)
    with opened(encoded(PLAIN, image_format, parameters=parameters, latentfarm=receipt)) as image:
        image.load()
        found = embedded_text(image)
    assert found["parameters"] == parameters
    assert json.loads(found["latentfarm"]) == json.loads(receipt)


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_without_metadata_nothing_is_embedded(image_format: str) -> None:
    with opened(encoded(PLAIN, image_format)) as image:
        assert embedded_text(image) == {}
        assert len(image.getexif()) == 0


def test_the_text_chunks_of_a_png_precede_its_pixels_where_other_programs_read_them() -> None:
    job = Job(batch="b", index=0, prompt="a cat: \N{SNOWMAN}", negative_prompt="a dog", seed=7, guidance_scale=7.0)
    text = parameters_text(
        job, width=8, height=4, scheduler="EulerDiscreteScheduler", model="m,x", model_digest="0123456789abc"
    )
    pixels = np.arange(96, dtype=np.uint8).reshape(4, 8, 3)
    body = encoded(pixels, "png", parameters=text, latentfarm="{}")
    assert body.index(b"iTXt") < body.index(b"tEXt") < body.index(b"IDAT")
    with opened(body) as image:
        # without load: a chunk after the pixels would not be read yet
        assert image.info["latentfarm"] == "{}"
        assert image.info["parameters"] == (
            "a cat: \N{SNOWMAN}\nNegative prompt: a dog\nSteps: 25, Sampler: Euler, Schedule type: Uniform, "
            'CFG scale: 7, Seed: 7, Size: 8x4, Model hash: 0123456789, Model: "m,x", RNG: CPU, Job: b/0'
        )


@pytest.mark.parametrize("image_format", [WEBP.name, JPEG.name])
def test_exif_holds_the_comment_in_the_form_that_piexif_reads(image_format: str) -> None:
    body = encoded(PLAIN, image_format, parameters="a \N{SNOWMAN}", latentfarm="{}")
    with opened(body) as image:
        exif = image.info["exif"].removeprefix(b"Exif\0\0")
    # "MM": numbers, and therefore the UTF-16 of the comment, are big-endian
    assert exif.startswith(b"MM\0*")
    assert b"UNICODE\0" + "a \N{SNOWMAN}".encode("utf-16-be") in exif
    # type 7, undefined: piexif reads any other type as a list of numbers
    assert exif.count(b"\x92\x86\0\7") == 1


def test_if_the_metadata_is_too_long_for_a_jpeg_the_receipt_is_kept() -> None:
    # 6 bytes each in JSON
    prompt = "\1" * MAX_PROMPT_BYTES
    receipt = json.dumps({"prompt": prompt, "negative_prompt": prompt})
    parameters = f"{prompt}\nNegative prompt: {prompt}"
    with opened(encoded(PLAIN, "jpeg", parameters=parameters, latentfarm=receipt)) as image:
        assert embedded_text(image) == {"latentfarm": receipt}
    with opened(encoded(PLAIN, "jpeg", latentfarm=json.dumps("x" * 70_000))) as image:
        assert embedded_text(image) == {}


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
@pytest.mark.filterwarnings("ignore")
@given(changes=st.dictionaries(st.integers(0, 400), st.integers(0, 255), max_size=20))
def test_a_corrupted_image_gives_no_receipt_or_one_with_its_own_size(
    image_format: str, changes: dict[int, int]
) -> None:
    made = IMAGE_FORMATS[image_format]
    body = bytearray(encoded(PLAIN, image_format, parameters="a", latentfarm=json.dumps({"job": "b/0", "seed": 7})))
    for at, value in changes.items():
        body[at % len(body)] = value
    found = embedded_receipt(bytes(body), image_key("b", 0, 1, made), "b/0")
    assert found is None or found["bytes"] == len(body)


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_another_thread_runs_while_an_image_is_encoded(image_format: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    # the other thread never waited for a third of the time, so it did not only run between two calls
    assert min(longest_wait(lambda each: encoded(each, image_format), pixels) for _ in range(3)) < 1 / 3


def test_the_measurement_detects_a_held_gil() -> None:
    assert longest_wait(lambda _: sum(range(10**6)).to_bytes(8), PLAIN) > 0.9
