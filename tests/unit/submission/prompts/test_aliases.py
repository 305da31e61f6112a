"""Names of other tools in every format of prompt files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import prompt_files

from latentfarm.errors import InputError
from latentfarm.submission.prompts import Notes, ReadOptions, check_defaults, open_source
from latentfarm.submission.prompts.aliases import (
    ALIASES,
    FIELD_ALIASES,
    PASSED_ALIASES,
    Dialect,
    is_any_seed,
    normalize,
)
from latentfarm.submission.prompts.columns import FIELDS

pytestmark = pytest.mark.unit

KEEP = ReadOptions(keep_columns=True)
A1111 = {
    "prompt": "a cat",
    "negative_prompt": "blurry",
    "steps": 20,
    "cfg_scale": 6.5,
    "sampler_name": "DPM++ 2M Karras",
    "seed": -1,
    "n_iter": 2,
    "batch_size": 3,
    "width": 512,
    "height": 768,
}
MEANT = {
    "prompt": "a cat",
    "negative_prompt": "blurry",
    "num_inference_steps": 20,
    "guidance_scale": 6.5,
    "scheduler": "dpm++2m-karras",
    "num_images_per_prompt": 6,
    "width": 512,
    "height": 768,
}


def read(row: dict[str, Any], options: ReadOptions = ReadOptions()) -> tuple[dict[str, Any], dict[str, int]]:  # noqa: B008 (frozen)
    """Return the fields and the notes of a row."""
    source = open_source([row], options)
    [found] = prompt_files.rows_of(source)
    return prompt_files.given(found), dict(source.notes)


def error_of(row: dict[str, Any], options: ReadOptions = ReadOptions()) -> str:  # noqa: B008 (frozen)
    [error] = prompt_files.errors_of(open_source([row], options))
    return error.text


def as_csv(row: dict[str, Any], delimiter: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerows([row.keys(), row.values()])
    return text.getvalue()


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "txt"])
def test_the_names_of_a1111_are_read_in_every_format(tmp_path: Path, ending: str) -> None:
    texts = {
        "jsonl": json.dumps(A1111),
        "csv": as_csv(A1111, ","),
        "tsv": as_csv(A1111, "\t"),
        "txt": " ".join(f'--{name} "{value}"' for name, value in A1111.items()),
    }
    [row] = prompt_files.rows(tmp_path / f"p.{ending}", texts[ending])
    assert prompt_files.given(row) == MEANT


def test_each_mapped_name_is_noted_with_its_number_of_rows(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(f"{json.dumps(A1111)}\n" * 2 + '{"prompt": "a dog"}\n')
    source = open_source(tmp_path / "p.jsonl")
    for _ in range(2):
        # a second reading does not count twice
        prompt_files.rows_of(source)
        assert dict(source.notes) == {
            "'steps' is read as num_inference_steps": 2,
            "'cfg_scale' is read as guidance_scale": 2,
            "'sampler_name' is read as scheduler": 2,
            "seed -1 means any seed: it is derived from batch and index": 2,
            "'n_iter' is read as num_images_per_prompt": 2,
            "'batch_size' is read as num_images_per_prompt": 2,
            "sampler 'DPM++ 2M Karras' is read as scheduler dpm++2m-karras": 2,
        }


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"Prompt": "a", "Negative Prompt": "b", "CFG scale": 7}, {"negative_prompt": "b", "guidance_scale": 7}),
        ({"prompt": "a", "cfgScale": 7, "numInferenceSteps": 9}, {"guidance_scale": 7, "num_inference_steps": 9}),
        ({"text": "a", "step": 9}, {"num_inference_steps": 9}),
        ({"prompt": "a", "size": "512x768"}, {"width": 512, "height": 768}),
        ({"prompt": "a", "Size": "512 \u00d7 768"}, {"width": 512, "height": 768}),
        ({"prompt": "a", "size": "auto"}, {}),
        ({"prompt": "a", "n": 4, "output_format": "webp"}, {"num_images_per_prompt": 4, "image_format": "webp"}),
        ({"prompt": "a", "seed": "-1"}, {}),
        ({"prompt": "a", "seed": -1.0}, {}),
        ({"prompt": "a", "noise_seed": 7}, {"seed": 7}),
        ({"prompt": "a", "sampler_name": "Euler", "scheduler": "Karras"}, {"scheduler": "euler-karras"}),
        ({"prompt": "a", "sampler_name": "euler", "scheduler": "karras"}, {"scheduler": "euler-karras"}),
        ({"prompt": "a", "scheduler": "DPM++ 2M Karras"}, {"scheduler": "dpm++2m-karras"}),
        ({"prompt": "a", "CLIP_stop_at_last_layers": 2}, {"clip_skip": 1}),
        (
            {"prompt": "a", "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_model_checkpoint": "x"}},
            {"clip_skip": 0},
        ),
        ({"prompt": "a", "quality": "hd", "background": "auto", "user": "u", "stream": False}, {}),
        ({"prompt": "a", "tiling": "false", "restore_faces": None, "styles": [], "enable_hr": 0}, {}),
        ({"prompt": "a", "steps": 20, "num_inference_steps": 20}, {"num_inference_steps": 20}),
        (
            {"prompt": "a", "init_image": "a.png", "mask": "m.png", "denoising_strength": 0.5, "resize_mode": 1},
            {"image": "a.png", "mask_image": "m.png", "strength": 0.5, "resize": "crop"},
        ),
        ({"prompt": "a", "init_images": ["iVBORw0KGgoA"]}, {"image": "data:image/png;base64,iVBORw0KGgoA"}),
        ({"prompt": "a", "denoising_strength": 0.5, "hr_scale": 2, "alwayson_scripts": {}}, {}),
        (
            {"prompt": "a", "enable_hr": True},
            {"hires_scale": 2, "hires_strength": 0.75, "hires_upscaler": "latent"},
        ),
        (
            {
                "prompt": "a",
                "enable_hr": True,
                "hr_scale": 1.5,
                "hr_second_pass_steps": 8,
                "hr_upscaler": "Lanczos",
                "denoising_strength": 0.4,
            },
            {"hires_scale": 1.5, "hires_steps": 8, "hires_strength": 0.4, "hires_upscaler": "pixel"},
        ),
        (
            {"prompt": "a", "refiner_checkpoint": "fine.safetensors [ab12]", "refiner_switch_at": 0.7},
            {"refiner": "fine", "refiner_start": 0.7},
        ),
        ({"prompt": "a", "refiner_checkpoint": "fine"}, {"refiner": "fine"}),
        ({"prompt": "a", "refiner_checkpoint": "None", "refiner_switch_at": 0.8}, {}),
        ({"prompt": "a", "refiner_checkpoint": "fine", "refiner_switch_at": "1.0"}, {}),
        (
            {"prompt": "a", "lora": "outlined:0.8,striped"},
            {"loras": ({"name": "outlined", "scale": 0.8}, {"name": "striped", "scale": 1.0})},
        ),
        (
            {"prompt": "a", "control_net": "edges", "controlnet_image": "a.png", "control_weight": 0.5},
            {"controlnet": ("edges",), "control_image": ("a.png",), "controlnet_conditioning_scale": (0.5,)},
        ),
    ],
)
def test_a_name_of_another_tool_sets_its_field(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read(row)[0] == {"prompt": "a", **expected}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "a", "steps": 20, "num_inference_steps": 30},
            "num_inference_steps 30 sets num_inference_steps a second",
        ),
        ({"prompt": "a", "steps": "many"}, "steps 'many' is invalid; write a valid integer"),
        ({"prompt": "a", "size": "big"}, "size 'big' is invalid; write \"512x512\", width first"),
        ({"prompt": "a", "sampler_name": "DPM fast"}, "sampler 'DPM fast' is not supported;"),
        ({"prompt": "a", "sampler_index": 3}, "sampler_index 3 is a number; write the sampler's name"),
        ({"prompt": "a", "sampler_name": "Euler", "scheduler": "ddim"}, "sampler 'Euler' contradicts scheduler 'ddim'"),
        ({"prompt": "a", "schedule_type": "Karras"}, "schedule 'Karras' has no sampler; name the sampler too"),
        ({"prompt": "a", "tiling": True}, "tiling true is not supported; remove it, or set it to 0 or false"),
        ({"prompt": "a", "styles": ["anime"]}, 'styles ["anime"] is not supported; write the style\'s words into'),
        ({"prompt": "a", "stream": True}, "stream true is not supported; a batch cannot be streamed; remove it"),
        (
            {"prompt": "a", "override_settings": {"eta": 1}},
            "override_settings {\"eta\": 1} has the setting 'eta', which",
        ),
        ({"prompt": "a", "n": "two"}, "n 'two' is invalid; write a whole number"),
        ({"prompt": "a", "seed": -2}, "seed -2 is invalid; write greater than or equal to 0"),
        ({"prompt": "a", "init_images": ["x", "y"]}, 'init_images ["x", "y"] has 2 images; write one, and a row for'),
        ({"prompt": "a", "resize_mode": 3}, "resize_mode 3 is not supported; write 0 (stretch), 1 (crop) or 2 (pad)"),
        ({"prompt": "a", "inpaint_full_res": True}, "inpaint_full_res true is not supported; remove it, or set it to"),
        ({"prompt": "a", "enable_hr": True, "hr_resize_x": 64}, "hr_resize_x 64 is not supported; write hr_scale"),
        ({"prompt": "a", "enable_hr": True, "hr_upscaler": "ESRGAN"}, "hr_upscaler 'ESRGAN' is not supported; write"),
        (
            {"prompt": "a", "image": "a.png", "strength": 0.3, "denoising_strength": 0.5},
            "denoising_strength 0.5 sets strength a second time; write it once",
        ),
    ],
)
def test_a_value_that_would_change_the_image_is_refused_and_not_dropped(row: dict[str, Any], message: str) -> None:
    assert error_of(row).startswith(f"row 1: {message}")


def test_a_weak_name_is_the_prompt_only_if_no_other_name_is() -> None:
    assert read({"caption": "b", "prompt": "a"}, KEEP)[0] == {"prompt": "a", "columns": {"caption": "b"}}
    assert read({"caption": "b"}, KEEP)[0] == {"prompt": "b"}
    assert "field 'caption' ('b') is not known" in error_of({"caption": "b", "prompt": "a"})


def test_kept_columns_are_data_but_fields_of_other_tools_are_read() -> None:
    fields, notes = read({"prompt": "a", "cfg_scale": 3, "style": "anime", "widht": 64}, KEEP)
    assert fields == {"prompt": "a", "guidance_scale": 3, "columns": {"style": "anime", "widht": 64}}
    assert "'widht' is kept unread; to read it, use --column width=widht" in notes


def test_a_kept_option_that_would_change_the_image_is_noted_if_it_is_on() -> None:
    fields, notes = read({"prompt": "a", "tiling": True, "restore_faces": False}, KEEP)
    assert fields == {"prompt": "a", "columns": {"tiling": True, "restore_faces": False}}
    assert notes == {"'tiling' is kept unread and has no effect": 1}


def test_a_column_of_a_data_set_is_no_input_if_the_user_keeps_it() -> None:
    row = {"prompt": "a", "image": "a.png", "seed": 3}
    assert read(row) == ({"prompt": "a", "image": "a.png", "seed": 3}, {})
    kept = ReadOptions(keep_columns=("image",))
    assert read(row, kept)[0] == {"prompt": "a", "seed": 3, "columns": {"image": "a.png"}}
    mapped = ReadOptions(keep_columns=("image",), columns=(("mask_image", "image"),))
    assert read(row, mapped)[0] == {"prompt": "a", "seed": 3, "mask_image": "a.png"}


def test_what_a_strength_is_read_as_is_noted() -> None:
    for row, note in (
        ({}, "'denoising_strength' is passed over: the row has no image"),
        ({"image": "a.png"}, "'denoising_strength' is read as strength"),
        ({"enable_hr": True}, "enable_hr is read as hires_scale"),
    ):
        assert read({"prompt": "a", "denoising_strength": 0.5, **row})[1] == {note: 1}


def test_what_a_refiner_is_read_as_is_noted() -> None:
    on, off = {"refiner_checkpoint": "fine"}, {"refiner_switch_at": 0.8}
    assert read({"prompt": "a", **on, **off})[1] == {"'refiner_checkpoint' is read as refiner": 1}
    assert read({"prompt": "a", **off})[1] == {"'refiner_switch_at' is passed over: there is no refiner": 1}
    assert read({"prompt": "a"})[1] == {}


def test_a_style_is_no_prompt_in_any_format(tmp_path: Path) -> None:
    for name, text in {
        "p.txt": "{}",
        "p.jsonl": '{{"prompt": "{}"}}',
        "p.csv": 'prompt\n"{}"',
        "p.json": '["{}"]',
    }.items():
        [(reason, message)] = prompt_files.row_errors(tmp_path / name, text.format("photo of {prompt}, 35mm"))
        assert reason == "a style"
        assert message.endswith("prompt 'photo of {prompt}, 35mm' is a style: write the prompt in place of {prompt}")


def test_keep_columns_names_those_that_are_kept() -> None:
    fields, notes = read({"prompt": "a", "steps": 3, "x": 1, "y": 2}, ReadOptions(keep_columns=("x", "steps")))
    assert fields == {"prompt": "a", "columns": {"steps": 3, "x": 1}}
    assert notes["'y' is not kept: --keep-columns does not name it"] == 1


def test_a_column_is_read_as_the_field_that_the_user_names() -> None:
    options = ReadOptions(columns=(("prompt", "title"), ("seed", "steps")))
    assert read({"title": "a", "steps": 3}, options) == ({"prompt": "a", "seed": 3}, {})
    # the field's own name is then a column like others
    assert "field 'seed' (1) is not known" in error_of({"title": "a", "seed": 1}, options)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ((("sead", "x"),), "--column sead=x: 'sead' is not a field; did you mean 'seed'?"),
        ((("seed", ""),), "--column seed=: the column has no name; write seed=NAME"),
        ((("seed", "x"), ("seed", "y")), "--column: 'seed' is mapped twice; map each field and column once"),
        ((("seed", "x"), ("width", "x")), "--column: 'x' is mapped twice"),
    ],
)
def test_an_invalid_mapping_is_refused(columns: tuple[tuple[str, str], ...], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        ReadOptions(columns=columns)


def test_the_key_of_earlier_versions_is_unchanged() -> None:
    # the digests of stored batches contain it
    assert ReadOptions().key == "ReadOptions(prompt_column=None, keep_columns=False, format=None)"
    assert ReadOptions(columns=(("seed", "x"),)).key != ReadOptions().key


def test_options_are_mapped_like_rows() -> None:
    notes = Notes()
    assert check_defaults({"scheduler": "Euler a", "seed": -1}, notes).given() == {"scheduler": "euler_a"}
    assert dict(notes) == {"sampler 'Euler a' is read as scheduler euler_a": 1}


def test_every_alias_is_unique_and_sets_fields_of_a_row() -> None:
    for dialect in Dialect:
        names = [
            name for alias in (*FIELD_ALIASES, *PASSED_ALIASES) if alias.dialect is dialect for name in alias.names
        ]
        assert len(names) == len(set(names))
        assert [name for name in names if normalize(name) != name] == []
    assert {field for alias in FIELD_ALIASES for field in alias.field.split(", ")} <= FIELDS
    assert not set(ALIASES[Dialect.LONG]) & FIELDS


@given(st.text())
def test_a_name_is_normalized_once(name: str) -> None:
    assert normalize(normalize(name)) == normalize(name)


@given(st.one_of(st.integers(), st.text(), st.booleans(), st.floats()))
def test_only_minus_one_and_words_are_any_seed(value: object) -> None:
    assert is_any_seed(value) == (value is not True and str(value).strip() in {"-1", "-1.0", "random", "auto"})


def test_notes_are_bounded() -> None:
    notes = Notes()
    for number in range(1000):
        notes.add(str(number))
    assert len(notes) == 101
    assert sum(notes.values()) == 1000
