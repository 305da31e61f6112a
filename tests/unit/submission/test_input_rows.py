"""Rows with input images: their order, what is held, sizes taken from images, and what does not fit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.image_sources import data_url, image_bytes

from latentfarm.errors import InputError, UnavailableError
from latentfarm.inputs import resolver
from latentfarm.inputs.policy import InputPolicy
from latentfarm.inputs.resolver import InputResolver
from latentfarm.job import Defaults, Row
from latentfarm.limits import MAX_SIDE, MIN_SIDE
from latentfarm.model_facts import ModelFacts
from latentfarm.submission.expansion import Expansion
from latentfarm.submission.input_rows import InputRows, PlacedRow
from latentfarm.submission.prompts import RowError
from latentfarm.submission.request import make_request

pytestmark = pytest.mark.unit

FACTS = ModelFacts(pipeline="P", model_digest="d", native_width=512, native_height=512, pixel_multiple=64)


def found(*rows: dict[str, Any], facts: ModelFacts | None = None, **defaults: Any) -> list[Row | RowError]:
    given = [{"prompt": "a", **row} for row in rows]
    return [row for _, row in make_request(given, model="m", **defaults).with_facts(facts).rows()]


def text(row: Row | RowError) -> str:
    assert isinstance(row, RowError)
    return row.text


def size(row: Row | RowError) -> tuple[int | None, int | None]:
    assert isinstance(row, Row)
    return row.width, row.height


def test_missing_sides_are_those_of_the_image() -> None:
    image = data_url(size=(128, 192))
    rows = found({"image": image}, {"image": image, "width": 128}, {"image": image, "height": 64, "resize": "crop"})
    assert [size(row) for row in rows] == [(128, 192), (128, 192), (128, 64)]
    [row] = found({"image": image}, width=256, height=256, resize="pad")
    assert size(row) == (None, None)
    [row] = found({}, image=image)
    assert isinstance(row, Row)
    assert (row.image or "").startswith("sha256:")
    assert size(row) == (128, 192)


def test_a_size_that_differs_needs_a_resize() -> None:
    [row] = found({"image": data_url(size=(128, 64)), "width": 64})
    assert text(row) == (
        f"row 1: image {data_url(size=(128, 64))[:56]!r}".rstrip("'") + "... is 128x64, and the job is 64x64; "
        "write resize: crop, pad or stretch, or remove width and height"
    )


@given(st.integers(8, 2300), st.integers(8, 2300))
@settings(max_examples=20)
def test_the_size_of_the_cure_fits_the_model(width: int, height: int) -> None:
    [row] = found({"image": data_url(size=(width, height))}, facts=FACTS)
    if isinstance(row, Row):
        assert size(row) == (width, height)
        return
    assert f"is {width}x{height}, and its " in row.text
    words = row.text.partition("such as ")[2].replace(",", "").split()
    cure = {"width": int(words[0]), "height": int(words[2]), "resize": "crop"}
    assert all(MIN_SIDE <= side <= MAX_SIDE for side in (cure["width"], cure["height"]) if isinstance(side, int))
    [fits] = found({"image": data_url(size=(width, height)), **cure}, facts=FACTS)
    assert isinstance(fits, Row)


def test_a_mask_has_the_size_of_its_image() -> None:
    [row] = found({"image": data_url(size=(64, 64)), "mask_image": data_url(255, (64, 128), mode="L")})
    assert "is 64x128, and its image is 64x64; make the mask in the size of the image" in text(row)


def test_all_problems_of_a_row_are_listed_with_its_id() -> None:
    [row] = found({"id": "own", "image": "a.png", "mask_image": "https://me:hidden@a.org/m.png"})
    assert isinstance(row, RowError)
    lines = row.text.splitlines()
    assert lines[0].startswith("row 1: image 'a.png' is a file of your own machine")
    assert lines[1].startswith("row 1: mask_image (a URL) has a user or password")
    assert (row.reason, row.id) == ("image", "own")


def test_inputs_can_be_swept() -> None:
    sweep = Expansion.parse([f'image="{data_url("red")}","{data_url("blue")}"'])
    rows = [row for _, row in make_request(["a"], model="m", expansion=sweep).rows()]
    assert len({getattr(row, "image", "") for row in rows}) == 2


@given(st.lists(st.sampled_from(["", "red", "blue", "bad", "green"]), max_size=200))
@settings(max_examples=30)
def test_rows_keep_their_order(colors: list[str]) -> None:
    sources = {"": {}, "bad": {"image": "gone.png"}} | {
        color: {"image": data_url(color)} for color in ("red", "blue", "green")
    }
    rows = list(make_request([{"prompt": c or "none", **sources[c]} for c in colors] or ["x"], model="m").rows())
    assert [number for number, _ in rows] == list(range(max(1, len(colors))))
    for color, (_, row) in zip(colors, rows, strict=False):
        assert isinstance(row, RowError) == (color == "bad")
        assert not isinstance(row, Row) or row.prompt == (color or "none")


class Gate:
    """Reads each source when it is let through; counts those that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.read: list[str] = []
        monkeypatch.setattr(resolver, "read_source", self)

    def __call__(self, source: str, _: InputPolicy) -> bytes:
        self.read.append(source)
        assert self.opened.wait(30)
        return image_bytes(int(source) % 256)


def endless(drawn: list[int]) -> Iterator[PlacedRow]:
    for number in count():
        drawn.append(number)
        yield PlacedRow(number, f"row {number}", Row(prompt="a", image=str(number % 1000)))


def test_a_bounded_number_of_rows_waits_for_a_slow_input(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, drawn = Gate(monkeypatch), list[int]()
    rows = InputRows(InputResolver(InputPolicy()), None, Defaults(), None).resolve(endless(drawn))
    first: list[Any] = []
    reader = threading.Thread(target=lambda: first.append(next(rows)))
    reader.start()
    while len(drawn) < 64 or len(gate.read) < 8:
        reader.join(0.01)
    # it waits for the first row
    reader.join(0.2)
    assert (len(drawn), len(gate.read), first) == (64, 8, [])
    gate.opened.set()
    reader.join(30)
    assert first[0][0] == 0
    rows.close()
    assert len(gate.read) <= 64
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("input")]


def test_an_outage_of_the_store_is_raised_and_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [UnavailableError("gone"), image_bytes()]

    def read(*_: object) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, bytes)
        return answer

    monkeypatch.setattr(resolver, "read_source", read)
    request = make_request([{"prompt": "a", "image": "x"}], model="m")
    with pytest.raises(UnavailableError, match="gone"):
        list(request.rows())
    assert isinstance(next(request.rows())[1], Row)


def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "_REMEMBERED", 3)
    monkeypatch.setattr(resolver, "_KEPT_BYTES", 400)
    reads: list[str] = []

    def read(source: str, _: InputPolicy) -> bytes:
        reads.append(source)
        return (tmp_path / source).read_bytes()

    monkeypatch.setattr(resolver, "read_source", read)
    for name in "abcde":
        (tmp_path / name).write_bytes(image_bytes(ord(name)))
    found = InputResolver(InputPolicy())
    for name in "abcdea":
        assert found.resolve(name, None).width == 64
    # a was forgotten when e came
    assert reads == [*"abcdea"]
    assert found.resolve("e", None) == found.resolve("e", None)
    assert len(reads) == 6
    sizes = [len(image_bytes(ord(name))) for name in "abcde"]
    kept: dict[str, bytes] = dict(found._kept._entries)
    assert sum(map(len, kept.values())) == found._kept._total <= 400 < sum(sizes)


def test_the_errors_of_a_source_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []

    def read(source: str, _: InputPolicy) -> bytes:
        reads.append(source)
        raise InputError("answers with 404")

    monkeypatch.setattr(resolver, "read_source", read)
    rows = found(*[{"image": "https://a.org/x.png"}] * 500)
    assert {text(row).partition(": ")[2] for row in rows} == {"image 'https://a.org/x.png' answers with 404"}
    assert len(reads) == 1
