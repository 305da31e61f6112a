"""Results as OpenAI's batches have them, read by OpenAI's own types."""

from __future__ import annotations

import io
import json
import tracemalloc
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from openai.types import ImagesResponse
from tests.conftest import Command, read_lines
from tests.support.fetching import image_bytes, result, work

from latentfarm import Batch, Farm
from latentfarm.fetch.openai_results import write_openai
from latentfarm.settings import Settings

pytestmark = pytest.mark.integration


def request(custom_id: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/images/generations", "body": body}


@pytest.fixture
def batch(farm: Farm, tmp_path: Path) -> Batch:
    """Rows of one, three and two images. One of the third's fails, and the fourth's; one of the fifth's waits."""
    lines = [
        request("one", prompt="a cat"),
        request('[], "three"', prompt="a cat", n=3),
        request("half", prompt="a cat", n=2),
        request("none", prompt="a cat"),
        request("later", prompt="a cat", n=2),
    ]
    file = tmp_path / "batch.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = farm.submit(file, batch="cats")
    work(farm, found, count=8, fail=frozenset({5, 6}))
    return found


def bodies(line: dict[str, Any]) -> list[bytes]:
    """Return the images of an output line, read through the types of OpenAI's client."""
    response = line["response"]
    assert (response["status_code"], line["error"]) == (200, None)
    assert response["request_id"].startswith("req_")
    images = ImagesResponse.model_validate(response["body"], strict=True).data or []
    found = []
    for image in images:
        if image.url:
            with urlopen(image.url) as answer:  # noqa: S310
                found.append(answer.read())
        else:
            found.append(b64decode(image.b64_json or ""))
    return found


@pytest.mark.parametrize("form", ["url", "b64_json"])
def test_every_row_that_has_ended_has_a_line_with_all_its_images(
    batch: Batch, settings: Settings, latentfarm: Command, form: str
) -> None:
    command = ("results", "cats", "--format", "openai", "--response-format", form)
    run = latentfarm(*command, settings=settings)
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert [(line["custom_id"], line["response"] is None) for line in lines] == [
        ("one", False),
        ('[], "three"', False),
        ("half", False),
        ("half", True),
        ("none", True),
    ]
    expected = [[0], [1, 2, 3], [4]]
    assert [bodies(line) for line in lines[:3]] == [[image_bytes(n) for n in found] for found in expected]
    assert [line["error"] for line in lines[3:]] == [{"code": "nan", "message": "not finite"}] * 2
    times = {line["response"]["body"]["created"] for line in lines[:3]}
    assert times == {batch.connection.ledger.batch("cats").last_ms // 1000} != {0}
    assert all(line["id"].startswith("batch_req_") for line in lines)
    assert len({line["id"] for line in lines}) == 4, "the lines of one request have one id"


def test_states_select_the_output_file_or_the_error_file(
    batch: Batch, settings: Settings, latentfarm: Command, tmp_path: Path
) -> None:
    batch.cancel()
    for state, expected in {
        "done": [("one", None), ('[], "three"', None), ("half", None), ("later", None)],
        "failed,cancelled": [("half", "nan"), ("none", "nan"), ("later", "batch_cancelled")],
    }.items():
        run = latentfarm("results", "cats", "--format", "openai", "--state", state, "-o", "o.jsonl", settings=settings)
        assert run.returncode == 0, run.stderr
        lines = read_lines(tmp_path / "o.jsonl")
        assert [(line["custom_id"], (line["error"] or {}).get("code")) for line in lines] == expected


@pytest.mark.usefixtures("batch")
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--response-format", "url"), "options of --format openai"),
        (("--format", "csv", "--expires", "9"), "options of --format openai"),
        (("--format", "openai", "--response-format", "file"), "write one of url, b64_json"),
        (("--format", "openai", "--expires", "0"), "write 1 to 604800 seconds"),
    ],
)
def test_an_invalid_option_is_refused_with_its_cure(
    settings: Settings, latentfarm: Command, arguments: tuple[str, ...], error: str
) -> None:
    run = latentfarm("results", "cats", *arguments, settings=settings)
    assert (run.returncode, run.stdout) == (2, "")
    assert error in run.stderr


def written(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    opened = io.BytesIO()
    write_openai(opened, results, lambda job: {"url": job["key"]}, created=7)
    return [json.loads(line) for line in opened.getvalue().splitlines()]


def test_a_row_without_an_id_has_the_name_of_its_first_job() -> None:
    lines = written([result(4, row=2), result(5, row=2), result(6, row=3, id="x")])
    assert [line["custom_id"] for line in lines] == ["cats/4", "x"]
    assert lines[0]["response"]["body"] == {"created": 7, "data": [{"url": "k/4"}, {"url": "k/5"}]}


def test_an_invalid_row_has_an_error_line() -> None:
    error = {"code": "invalid_row", "message": "width 65"}
    [line] = written([{"job": "cats/0", "index": 0, "row": 0, "state": "failed", "error": error}])
    assert (line["response"], line["error"]) == (None, error)


def test_a_row_of_any_size_takes_bounded_memory(tmp_path: Path) -> None:
    image = "x" * 100_000

    def results(count: int) -> Iterator[dict[str, Any]]:
        return (result(index) for index in range(count))

    with (tmp_path / "out").open("wb") as opened:
        tracemalloc.start()
        write_openai(opened, results(500), lambda _: {"b64_json": image + "y"}, created=1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (tmp_path / "out").stat().st_size > 500 * len(image)
    assert peak < 5_000_000
