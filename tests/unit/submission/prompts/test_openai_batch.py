from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support import prompt_files

from latentfarm.submission.prompts import LocatedRow, ReadOptions, RowError, open_source

pytestmark = pytest.mark.unit


def line(body: Any, **more: Any) -> str:
    frame = {"custom_id": "request-1", "method": "POST", "url": "/v1/images/generations", "body": body}
    return json.dumps({**frame, **more})


def test_a_batch_line_is_a_row(tmp_path: Path) -> None:
    body = {"model": "dall-e-2", "prompt": "a cat", "n": 2, "size": "512x768", "user": "u", "response_format": "url"}
    ours = {"negative_prompt": "blurry", "seed": 7, "num_inference_steps": 30, "scheduler": "euler"}
    [row] = prompt_files.rows(
        tmp_path / "b.jsonl", line({**body, **ours, "output_format": "png", "guidance_scale": None})
    )
    expected = {"id": "request-1", "prompt": "a cat", "num_images_per_prompt": 2, "width": 512, "height": 768}
    assert prompt_files.given(row) == {**expected, **ours, "image_format": "png"}


def test_a_file_that_is_answered_has_requests_of_one_model(tmp_path: Path) -> None:
    lines = [
        line({"model": "gpt-image-1", "prompt": "a", "response_format": "b64_json"}, custom_id="bytes"),
        line({"model": "mini", "prompt": "a", "response_format": "url"}, custom_id="url"),
        line({"prompt": "a"}, custom_id="no model"),
        line({"model": "sdxl", "prompt": "a"}, custom_id="other"),
        line({"model": ["mini"], "prompt": "a"}, custom_id="a list"),
        line({"model": "mini", "prompt": "a"}, custom_id="edit", url="/v1/images/variations"),
        line({"model": "mini", "prompt": "a", "widht": 64}, custom_id="unknown"),
        line({"model": "mini", "prompt": "a"}, custom_id="url"),
        line({"model": "mini", "prompt": "a"}, custom_id="\ud800"),
        '{"prompt": "a cat"}',
        '"a cat"',
        '["a cat"]',
    ]
    file = tmp_path / "b.jsonl"
    file.write_text("\n".join(lines))
    found = list(open_source(file, ReadOptions(models=("mini", "gpt-image-1"))).read())
    rows = [entry.row for entry in found if isinstance(entry, LocatedRow)]
    assert [(row.id, row.columns) for row in rows] == [
        ("bytes", {"response_format": "b64_json"}),
        ("url", None),
        ("no model", None),
    ]
    errors = [entry for entry in found if isinstance(entry, RowError)]
    assert [(error.id, error.reason) for error in errors] == [
        ("other", "model"),
        ("a list", "model"),
        ("edit", "url"),
        ("unknown", "unknown field 'widht'"),
        ("url", "id is not unique"),
        (None, "not JSON"),
        (None, "custom_id"),
        (None, "custom_id"),
        (None, "a list"),
    ]
    cure = "b.jsonl line 4: model 'sdxl' is not the batch's model, mini; write a file for each model"
    assert errors[0].text == cure


def test_batch_lines_and_rows_may_be_in_one_file(tmp_path: Path) -> None:
    text = line({"prompt": "a cat", "size": "auto"}) + '\n{"prompt": "a dog"}\n'
    assert [row.prompt for row in prompt_files.rows(tmp_path / "b.jsonl", text)] == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("text", "reason", "message"),
    [
        (line({"prompt": "a"}, method="GET"), "method", "method 'GET' is invalid; write \"POST\""),
        (line({"prompt": "a"}, url="/v1/chat"), "url", "url '/v1/chat' is not supported; write \"/v1/images/gen"),
        (line({"prompt": "a"}, custom_id=None), "custom_id", "custom_id null is missing; write a name that is unique"),
        (line({"prompt": "a"}, custom_id=5), "id", "custom_id 5 is invalid; write a valid string"),
        (line("a cat"), "body", "body 'a cat' is not an object; write one such as"),
        (line({"n": 1}), "prompt is missing", 'prompt is missing; write "prompt": "..."'),
        (line({"prompt": "a", "n": 0}), "num_images_per_prompt", "n 0 is invalid; write greater than or equal to 1"),
        (line({"prompt": "a", "n": True}), "num_images_per_prompt", "n true is a boolean; write a number"),
        (line({"prompt": "a", "size": "512"}), "size", "size '512' is invalid; write \"512x512\", width first"),
        (line({"prompt": "a", "size": [512, 512]}), "size", "size [512, 512] is invalid; write"),
        (line({"prompt": "a", "size": "1030x64"}), "width", "width 1030 is not a multiple of 8; write 1024 or 1032"),
        (line({"prompt": "a", "size": "64x64", "width": 128}), "width", "width 128 sets width a second time; write it"),
        (
            line({"prompt": "a", "output_format": "gif"}),
            "image_format",
            "output_format 'gif' is not supported; write one of png, webp, jpeg",
        ),
        (
            line({"prompt": "a", "stream": True}),
            "stream",
            "stream true is not supported; a batch cannot be streamed; remove it",
        ),
        (line({"prompt": "a", "id": "x"}), "unknown field 'id'", "field 'id' ('x') is not known"),
        (
            line({"prompt": "a"}, provider=1),
            "unknown field 'provider'",
            "field 'provider' (1) is not known; write one of",
        ),
    ],
)
def test_an_invalid_batch_line_is_a_row_error(tmp_path: Path, text: str, reason: str, message: str) -> None:
    [(counted, problem)] = prompt_files.row_errors(tmp_path / "b.jsonl", text)
    assert counted == reason
    assert problem.startswith(f"b.jsonl line 1: {message}")


def test_columns_of_frame_and_body_are_kept(tmp_path: Path) -> None:
    text = line({"prompt": "a", "quality": "hd", "caption": "b"}, tags=["x"])
    [row] = prompt_files.rows(tmp_path / "b.jsonl", text, prompt_files.KEEP)
    assert row.columns == {"quality": "hd", "caption": "b", "tags": ["x"]}
    [row] = prompt_files.rows(tmp_path / "b.jsonl", text, ReadOptions(prompt_column="caption", keep_columns=True))
    assert (row.prompt, row.columns) == ("b", {"quality": "hd", "prompt": "a", "tags": ["x"]})


def edit(**body: Any) -> str:
    return line({"prompt": "a cat", **body}, url="/v1/images/edits")


def test_a_line_that_edits_an_image_has_its_sources(tmp_path: Path) -> None:
    lines = [
        edit(images=[{"image_url": "https://example.org/a.png"}], mask={"file_id": "file-1"}, size="64x64"),
        edit(images=[{"file_id": "file-2", "image_url": None}], mask_image="m.png", strength=0.5),
    ]
    frames = [{**json.loads(text), "custom_id": f"edit-{number}"} for number, text in enumerate(lines)]
    rows = prompt_files.rows(tmp_path / "b.jsonl", "\n".join(map(json.dumps, frames)))
    assert [prompt_files.given(row) for row in rows] == [
        {
            "id": "edit-0",
            "prompt": "a cat",
            "width": 64,
            "height": 64,
            "image": "https://example.org/a.png",
            "mask_image": "transparent:file-1",
        },
        {"id": "edit-1", "prompt": "a cat", "image": "file-2", "mask_image": "m.png", "strength": 0.5},
    ]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({}, "images null is missing; write the image to edit"),
        ({"images": []}, "images [] is not a list of one image; write a line for each image"),
        ({"images": [{}, {}]}, "images [{}, {}] is not a list of one image"),
        (
            {"images": [{"image_url": "a", "file_id": "b"}]},
            'images {"image_url": "a", "file_id": "b"} is invalid; write',
        ),
        ({"images": [{"image_url": 5}]}, 'images {"image_url": 5} is invalid'),
        ({"images": ["a.png"]}, "images 'a.png' is invalid"),
        ({"image": "a.png", "images": [{"image_url": "b"}]}, 'images [{"image_url": "b"}] is not a list of one'),
        ({"image": "a", "mask": {"url": "b"}}, 'mask {"url": "b"} is invalid; write {"image_url": "..."} or'),
        ({"image": "a", "mask_image": "c", "mask": {"file_id": "b"}}, 'mask {"file_id": "b"} contradicts mask_image'),
    ],
)
def test_an_invalid_line_that_edits_is_refused(tmp_path: Path, body: dict[str, Any], problem: str) -> None:
    [(_, text)] = prompt_files.row_errors(tmp_path / "b.jsonl", edit(**body))
    assert text.startswith(f"b.jsonl line 1: {problem}")
