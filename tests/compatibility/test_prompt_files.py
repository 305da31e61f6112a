"""Prompt files in the shape of public collections and of other tools: rows, fields, notes and refusals."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.support import prompt_files

from latentfarm.errors import InputError
from latentfarm.submission.prompts import LocatedRow, ReadOptions, RowError, open_source

pytestmark = pytest.mark.unit

FILES = Path(__file__).parent / "files"
NO_EFFECT = "is passed over: it has no effect on the image here"
KEPT_QUOTE = "a cell that begins with a double quote, but is no quoted cell, is kept as written"


@dataclass(frozen=True)
class Expected:
    """What a file gives.

    Attributes:
        file: its name.
        rows: the number of valid rows.
        fields: the fields of some of the valid rows, by their number from 0.
        notes: every note, with its number of rows.
        refused: how the message of each invalid row begins, or that of the file.
        keep: with which options it does: whether unknown columns are kept.
    """

    file: str
    rows: int = 0
    fields: dict[int, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    keep: tuple[bool, ...] = (False,)


DIFFUSIONDB_NOTES = {
    "the keys of the object are read as id": 5,
    "'p' is read as prompt": 5,
    "'se' is read as seed": 5,
    "'c' is read as guidance_scale": 5,
    "'st' is read as num_inference_steps": 5,
    "'sa' is read as scheduler": 5,
    "sampler 'k_lms' is read as scheduler lms": 1,
    "sampler 'k_euler_ancestral' is read as scheduler euler_a": 1,
    "sampler 'plms' is read as scheduler pndm": 1,
    "sampler 'k_dpm_2_ancestral' is read as scheduler kdpm2_a": 1,
}
KOHYA_NOTES = {
    "--n is read as negative_prompt": 2,
    "--w is read as width": 3,
    "--h is read as height": 2,
    "--d is read as seed": 3,
    "--l is read as guidance_scale": 2,
    "--s is read as num_inference_steps": 3,
    "--d '-1' means any seed: it is derived from batch and index": 1,
    "--ss is read as scheduler": 2,
    "--g is passed over: it is FLUX's embedded guidance; this model has none": 1,
}
A1111_NOTES = {
    "--steps is read as num_inference_steps": 1,
    "--cfg_scale is read as guidance_scale": 1,
    "--sampler_name is read as scheduler": 1,
    "sampler 'DPM++ 2M Karras' is read as scheduler dpm++2m-karras": 1,
    "--batch_size is read as num_images_per_prompt": 1,
    "--n_iter is read as num_images_per_prompt": 1,
    "--seed '-1' means any seed: it is derived from batch and index": 1,
    f"--do_not_save_grid {NO_EFFECT}": 1,
    f"--do_not_save_samples {NO_EFFECT}": 1,
    "--restore_faces is passed over: it is off": 1,
    "--sd_model is passed over: a batch has one model": 1,
}
OPENAI_NOTES = {
    "'model' is passed over: a batch has one model": 4,
    "'n' is read as num_images_per_prompt": 1,
    "'size' is read as width, height": 2,
    "'output_format' is read as image_format": 1,
    "'stream' is passed over: it is off": 1,
    f"'background' {NO_EFFECT}": 1,
    f"'moderation' {NO_EFFECT}": 1,
    f"'output_compression' {NO_EFFECT}": 1,
    f"'partial_images' {NO_EFFECT}": 1,
    f"'quality' {NO_EFFECT}": 1,
    f"'response_format' {NO_EFFECT}": 1,
    f"'safety_identifier' {NO_EFFECT}": 1,
    f"'style' {NO_EFFECT}": 1,
    f"'user' {NO_EFFECT}": 1,
}


CASES = [
    Expected(
        "a1111-prompts-from-file.txt",
        keep=(False, True),
        rows=5,
        fields={
            0: {"prompt": "a stone bridge over a stream"},
            1: {
                "prompt": "a red barn, snow",
                "negative_prompt": "people, text",
                "num_inference_steps": 20,
                "guidance_scale": 7.0,
                "scheduler": "dpm++2m-karras",
            },
            2: {"prompt": "a red barn, rain", "width": 512, "height": 768, "seed": 41, "num_images_per_prompt": 6},
            3: {"prompt": "a quiet street"},
        },
        notes=A1111_NOTES,
        refused=(
            "a1111-prompts-from-file.txt line 5: --tiling 'true' is not supported; remove it",
            "a1111-prompts-from-file.txt line 7: --styles 'Film' is not supported; write the style's words",
        ),
    ),
    Expected("a1111-styles.csv", refused=("a1111-styles.csv: column 'name' is not known; ",)),
    Expected(
        "a1111-styles.csv",
        keep=(True,),
        rows=1,
        fields={0: {"prompt": "portrait, soft light", "columns": {"name": "Portrait"}}},
        refused=(
            "a1111-styles.csv line 2: prompt '{prompt}, 35mm film, grain' is a style: write the prompt in place of",
            "a1111-styles.csv line 3: prompt 'line art of {prompt}, black ink' is a style",
            "a1111-styles.csv line 4: prompt '' is empty",
            "a1111-styles.csv line 6: prompt '{prompt} at night, wide angle' is a style",
        ),
    ),
    Expected(
        "diffusiondb-metadata.parquet",
        refused=("diffusiondb-metadata.parquet: column 'image_name' is not known; ",),
    ),
    Expected(
        "diffusiondb-metadata.parquet",
        keep=(True,),
        rows=4,
        fields={
            1: {
                "prompt": "portrait of an old sailor",
                "width": 512,
                "height": 768,
                "num_inference_steps": 20,
                "guidance_scale": 12.5,
                "seed": 38753269,
                "scheduler": "euler_a",
                "columns": {
                    "image_name": "3a7d2e44.png",
                    "part_id": 1,
                    "user_name": "a1" * 32,
                    "timestamp": "2022-08-07T22:57:00+00:00",
                    "image_nsfw": pytest.approx(0.2),
                    "prompt_nsfw": pytest.approx(0.003),
                },
            }
        },
        notes={
            "'step' is read as num_inference_steps": 5,
            "'cfg' is read as guidance_scale": 5,
            "'sampler' is read as scheduler": 5,
            "sampler '8' is read as scheduler lms": 1,
            "sampler '4' is read as scheduler euler_a": 1,
            "sampler '1' is read as scheduler ddim": 1,
            "sampler '2' is read as scheduler pndm": 1,
        },
        refused=("diffusiondb-metadata.parquet row 5: sampler '9' is not supported; write euler, the nearest",),
    ),
    Expected(
        "diffusiondb-part.json",
        keep=(False, True),
        rows=5,
        fields={
            1: {
                "id": "3a7d2e44-51c9-4b07-8e1a-0c5d9b6e2f21.png",
                "prompt": 'portrait of an old sailor, "sharp focus", studio light',
                "num_inference_steps": 20,
                "guidance_scale": 12.5,
                "seed": 38753269,
                "scheduler": "euler_a",
            },
        },
        notes=DIFFUSIONDB_NOTES,
    ),
    Expected("drawbench.csv", refused=("drawbench.csv: column 'Category' is not known; ",)),
    Expected(
        "drawbench.csv",
        keep=(True,),
        rows=6,
        fields={
            0: {"prompt": "A green apple.", "columns": {"Category": "Colors"}},
            3: {
                "prompt": "A violin to the left of a chair, seen from above.",
                "columns": {"Category": "Positional"},
            },
            4: {"prompt": 'A shop window with "Fresh Bread" on it.', "columns": {"Category": "Text"}},
        },
        notes={"'Prompts' is read as prompt": 6},
    ),
    Expected(
        "geneval.jsonl",
        refused=tuple(f"geneval.jsonl line {number}: field 'tag' (" for number in range(1, 6)),
    ),
    Expected(
        "geneval.jsonl",
        keep=(True,),
        rows=5,
        fields={
            0: {
                "prompt": "a photo of a clock",
                "columns": {"tag": "single_object", "include": [{"class": "clock", "count": 1}]},
            }
        },
    ),
    Expected(
        "hpsv2.json",
        keep=(False, True),
        rows=5,
        fields={2: {"prompt": 'A bowl of ramen on a counter, "Open" on the wall behind it.'}},
    ),
    Expected(
        "kohya-sample-prompts.txt",
        keep=(False, True),
        rows=4,
        fields={
            0: {
                "prompt": "masterpiece, best quality, 1girl in a garden",
                "negative_prompt": "low quality, blurry",
                "width": 768,
                "height": 768,
                "num_inference_steps": 28,
                "guidance_scale": 7.5,
                "seed": 1,
            },
            2: {"prompt": "a cabin by a lake", "num_inference_steps": 12},
            3: {"prompt": "a cabin on a hill", "width": 512, "scheduler": "euler_a"},
        },
        notes=KOHYA_NOTES,
        refused=("kohya-sample-prompts.txt line 8: sampler 'dpm_fast' is not supported; write dpm++2s, the nearest",),
    ),
    Expected(
        "openai-batch.jsonl",
        rows=3,
        fields={
            0: {
                "id": "image-1",
                "prompt": "a paper crane",
                "width": 1024,
                "height": 1024,
                "num_images_per_prompt": 2,
                "image_format": "webp",
            },
            1: {"id": "image-2", "prompt": "a paper boat"},
            2: {"id": "image-3", "prompt": "a paper plane"},
        },
        notes=OPENAI_NOTES,
        refused=(
            "openai-batch.jsonl line 4: url '/v1/chat/completions' is not supported; ",
            "openai-batch.jsonl line 5: stream true is not supported; ",
        ),
    ),
    Expected(
        "openai-batch.jsonl",
        keep=(True,),
        rows=4,
        fields={
            1: {
                "id": "image-2",
                "prompt": "a paper boat",
                "columns": {"model": "dall-e-3", "style": "vivid", "response_format": "b64_json"},
            }
        },
        notes={
            name: OPENAI_NOTES[name]
            for name in (
                "'n' is read as num_images_per_prompt",
                "'size' is read as width, height",
                "'output_format' is read as image_format",
            )
        }
        | {"'stream' is kept unread and has no effect": 1},
        refused=("openai-batch.jsonl line 4: url '/v1/chat/completions' is not supported; ",),
    ),
    Expected("parti-prompts.tsv", refused=("parti-prompts.tsv: column 'Category' is not known; ",)),
    Expected(
        "parti-prompts.tsv",
        keep=(True,),
        rows=7,
        fields={
            1: {
                "prompt": '"Open late" in red neon above a diner door',
                "columns": {
                    "Category": "Artifacts",
                    "Challenge": "Writing & Symbols",
                    "Note": "the letters are lit",
                },
            },
            3: {
                "prompt": 'two foxes, one of them asleep, under a sign that reads "KEEP OUT"',
                "columns": {"Category": "Animals", "Challenge": "Quantity", "Note": ""},
            },
            4: {
                "prompt": 'a 12" record on a wooden table',
                "columns": {"Category": "Produce & Plants", "Challenge": "Fine-grained Detail", "Note": ""},
            },
            5: {
                "prompt": '"Enter" and "Exit" painted on two doors',
                "columns": {
                    "Category": "Indoor Scenes",
                    "Challenge": "Writing & Symbols",
                    "Note": '"Enter" is left',
                },
            },
        },
        notes={"'Prompt' is read as prompt": 7, KEPT_QUOTE: 2},
    ),
    Expected(
        "t2i-compbench.txt",
        keep=(False, True),
        rows=5,
        fields={4: {"prompt": "the fluffy blanket and the metallic lamp rest on the leather sofa."}},
    ),
]


@pytest.mark.parametrize(
    ("expected", "keep"),
    [pytest.param(case, keep, id=f"{case.file}-{keep}") for case in CASES for keep in case.keep],
)
def test_a_file_gives_its_rows_notes_and_refusals(expected: Expected, keep: bool) -> None:  # noqa: FBT001
    source = open_source(FILES / expected.file, ReadOptions(keep_columns=keep))
    try:
        entries = list(source.read())
        refused = [entry.text for entry in entries if isinstance(entry, RowError)]
    except InputError as error:
        entries, refused = [], [str(error)]
    rows = [prompt_files.given(entry.row) for entry in entries if isinstance(entry, LocatedRow)]
    assert len(rows) == expected.rows
    assert {number: rows[number] for number in expected.fields} == expected.fields
    assert dict(source.notes) == expected.notes
    for text, start in zip(refused, expected.refused, strict=True):
        assert text.startswith(start)


def test_every_file_is_read_with_and_without_kept_columns() -> None:
    read = {(case.file, keep) for case in CASES for keep in case.keep}
    assert read == {(file.name, keep) for file in FILES.iterdir() if file.is_file() for keep in (False, True)}
