from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import prompt_files

from latentfarm.submission.prompts import LocatedRow, Notes, ReadOptions
from latentfarm.submission.prompts.flags import check_line, has_flags
from latentfarm.submission.prompts.rows import RowCheck

pytestmark = pytest.mark.unit

CHECK = RowCheck(ReadOptions(), Notes())


def fields(line: str) -> dict[str, Any]:
    assert has_flags(line)
    found = check_line("line", CHECK, line)
    assert isinstance(found, LocatedRow), found
    return prompt_files.given(found.row)


@pytest.mark.parametrize(
    "line",
    [
        "a cat -- sleeping",
        "well--known cat",
        "a cat --",
        "--",
        "a --1 cat",
        "a ---cat",
        "a cat, - n",
        "2--n 3",
        "x-n 3",
    ],
)
def test_a_double_dash_that_is_no_flag_is_part_of_the_prompt(tmp_path: Path, line: str) -> None:
    assert [row.prompt for row in prompt_files.rows(tmp_path / "p.txt", line)] == [line]


def test_values_of_kohya_flags_end_at_the_next_flag() -> None:
    line = 'a "cat", 8k --n low quality, "bad" hands --W 512 --h 768 --d 7 --s 30 --l 7.5'
    assert fields(line) == {
        "prompt": 'a "cat", 8k',
        "negative_prompt": 'low quality, "bad" hands',
        "width": 512,
        "height": 768,
        "seed": 7,
        "num_inference_steps": 30,
        "guidance_scale": 7.5,
    }


def test_values_of_a1111_flags_are_shell_words() -> None:
    line = (
        '--prompt "a \\"red\\" cat" --negative_prompt blurry, \'very dark\' --seed 7 --steps 20 --cfg_scale 6.5 '
        '--width 512 --height 768 --sampler_name "DPM++ 2M Karras" --n_iter 3 --batch_size 2'
    )
    assert fields(line) == {
        "prompt": 'a "red" cat',
        "negative_prompt": "blurry, very dark",
        "seed": 7,
        "num_inference_steps": 20,
        "guidance_scale": 6.5,
        "width": 512,
        "height": 768,
        "scheduler": "dpm++2m-karras",
        "num_images_per_prompt": 6,
    }


def test_a1111_flags_may_follow_a_prompt_and_seed_minus_one_is_unset() -> None:
    assert fields("it's a cat --steps 20 --seed -1") == {"prompt": "it's a cat", "num_inference_steps": 20}


def test_a_quoted_text_may_contain_a_flag() -> None:
    assert fields('--prompt "a cat --n dog" --s 20') == {"prompt": "a cat --n dog", "num_inference_steps": 20}


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        ("a cat --sleeping", "flag --sleeping", "flag '--sleeping' is not known; did you mean --step?"),
        ("a cat --q 3", "flag --q", "flag '--q' is not known; write one of --n, --w,"),
        ("a cat --steps=20", "flag --steps=20", "flag '--steps=20' is not known; did you mean --steps?"),
        ("a cat --s x", "num_inference_steps", "--s 'x' is invalid; write a valid integer"),
        ("a cat --d 1,2", "seed", "--d '1,2' is invalid; write a valid integer"),
        ("a cat --w 1030", "width", "--w '1030' is not a multiple of 8; write 1024 or 1032"),
        ("a cat --n", "flag --n", "flag --n has no value; write one after it"),
        ("a cat --steps --seed 1", "flag --steps", "flag --steps has no value; write one after it"),
        ("a cat --steps 20 30", "flag --steps", "flag --steps has a second value '30'"),
        ("a cat --w 64 --width 128", "--width", "--width '128' sets width a second time; write it once"),
        ("a cat --n_iter 2 --n_iter 2", "flag --n_iter", "flag --n_iter '2' is there twice; write it once"),
        ("a cat --prompt dog", "flag --prompt", "flag --prompt 'dog' sets prompt a second time; write it once"),
        ("a cat --n_iter two", "--n_iter", "--n_iter 'two' is invalid; write a whole number"),
        ("a cat --n_iter 200 --batch_size 99", "num_images_per_prompt", "--batch_size 19800 is invalid; write less"),
        ('--prompt "a cat', "flags' quotes", "'--prompt \"a cat' has no closing quotation; write"),
        ("--n bad", "prompt is missing", "prompt is missing; write it before the flags"),
        ('--prompt ""', "flag --prompt", "flag --prompt has no value; write one after it"),
        (
            "--prompt a --sampler_name Euller",
            "sampler",
            "sampler 'Euller' is not known; did",
        ),
        (
            "--prompt a --sampler_name DPM --steps 3",
            "sampler",
            "sampler 'DPM' is not known;",
        ),
        ("a cat -n4 -H512", "single dash", "'-n4' looks like a flag; write flags as --steps 30, or a space after"),
        ("a cat -s 30", "single dash", "'-s' looks like a flag; write"),
        ("a cat -C7.5 --steps 20", "single dash", "'-C7.5' looks like a flag; write"),
        ("a cat --tiling true", "--tiling", "--tiling 'true' is not supported; remove it, or set it to 0 or false"),
        ("a cat --tiling", "--tiling", "--tiling 'true' is not supported; remove it, or set it to 0 or false"),
        ("a cat --styles anime", "--styles", "--styles 'anime' is not supported; write the style's words into"),
    ],
)
def test_a_line_with_unreadable_flags_is_an_error(tmp_path: Path, line: str, reason: str, message: str) -> None:
    [(counted, text)] = prompt_files.row_errors(tmp_path / "p.txt", f"fine\n{line}\n")
    assert counted == reason
    assert text.startswith(f"p.txt line 2: {message}")


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)
#: what a shell would not take for a flag, and what a line can hold
QUOTED = WORDS.map(lambda text: f"a {text}".replace("\n", " ").replace("\r", " "))


@given(QUOTED, QUOTED, st.integers(0, 2**63 - 1), st.integers(1, 500))
def test_a1111_flags_keep_quoted_texts_unchanged(prompt: str, negative: str, seed: int, steps: int) -> None:
    line = f"--prompt {shlex.quote(prompt)} --negative_prompt {shlex.quote(negative)} --seed {seed} --steps {steps}"
    expected = {"prompt": prompt, "negative_prompt": negative, "seed": seed, "num_inference_steps": steps}
    assert fields(line) == expected


@given(QUOTED.filter(lambda text: not has_flags(text)), QUOTED.filter(lambda text: not has_flags(text)))
def test_kohya_flags_keep_texts_without_flags_unchanged(prompt: str, negative: str) -> None:
    expected = {"prompt": prompt.rstrip(), "negative_prompt": negative.strip(), "width": 512}
    assert fields(f"{prompt} --n {negative} --w 512") == expected


@given(st.text(max_size=60))
def test_a_line_gives_its_prompt_or_an_error_never_part_of_a_flag(text: str) -> None:
    line = f"a cat --{text}".strip()
    found = check_line("line", CHECK, line) if has_flags(line) else None
    if isinstance(found, LocatedRow):
        assert found.row.prompt == "a cat"
