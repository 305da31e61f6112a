"""The ``parameters`` of images, as other programs read them."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from sd_parsers import ParserManager
from sd_parsers.data import Sampler

from latentfarm.a1111_parameters import parameters_text
from latentfarm.image_formats import IMAGE_FORMATS
from latentfarm.job import Job
from latentfarm.schedulers import SHORT_NAMES
from latentfarm_worker.images.encode import encode_image

pytestmark = pytest.mark.unit

PIXELS = torch.from_numpy(np.zeros((8, 8, 3), np.uint8))
#: sd-parsers remembers the last image by its `id`, which the next one may have if it is dropped
KEPT: list[Image.Image] = []
#: `re_attention` of the web UI's prompt_parser.py
ATTENTION = re.compile(
    r"\\\(|\\\)|\\\[|\\]|\\\\|\\|\(|\[|:\s*([+-]?[.\d]+)\s*\)|\)|]|[^\\()\[\]:]+|:",
)
PROMPTS = st.text(st.sampled_from("ab \\()[]:,\"'\n1.\u3042<>") | st.characters(codec="utf-8", exclude_characters="\0"))
HOSTILE = (
    "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 8x8",
    'a sign: "Steps: 20, Sampler: DPM++ 2M Karras"',
    "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7",
    "a cat\nNegative prompt: a dog",
    "Negative prompt: Negative prompt: ",
    "a cat\r\nan owl, \"two\", 'three'\\",
    'Hashes: {"a": "b"}, Model: x',
)


def text_of(prompt: str = "a cat", **fields: Any) -> str:
    job = Job.model_validate({"batch": "b", "index": 3, "prompt": prompt, "seed": 7, **fields})
    euler = "EulerDiscreteScheduler"
    return parameters_text(job, width=512, height=768, scheduler=euler, model="m", model_digest="0123456789abc")


def read(text: str, image_format: str = "png") -> Sampler:
    """Return what sd-parsers reads in an image with this text."""
    body = encode_image(PIXELS, image_format, metadata={"parameters": text, "latentfarm": "{}"})
    KEPT.append(Image.open(io.BytesIO(body)))
    found = ParserManager().parse(KEPT[-1])
    assert found is not None
    [sampler] = found.samplers
    return sampler


def settings_of(text: str) -> dict[str, str]:
    """Return the settings as the web UI reads them: `re_param` of its infotext_utils.py."""
    return dict(re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', text.rsplit("\n", maxsplit=1)[-1]))


def prompts_of(text: str) -> tuple[str, str]:
    """Return the prompts as the web UI reads them: `parse_generation_parameters` of its infotext_utils.py."""
    lines = [line.strip() for line in text.strip().split("\n")][:-1]
    at = next((n for n, line in enumerate(lines) if line.startswith("Negative prompt:")), len(lines))
    negative = [line.removeprefix("Negative prompt:") for line in lines[at:]]
    return "\n".join(lines[:at]).strip(), "\n".join(negative).strip()


def means_in_web_ui(prompt: str) -> str:
    """Return the text of a prompt, as `parse_prompt_attention` and the steps before it do. Fail if it has syntax."""
    assert not re.search(r"\bAND\b|\bBREAK\b|<\w+:[^>]+>|:[-+]?(\d+\.?|\d*\.\d+)\s*\Z", prompt)
    text = ""
    for found in ATTENTION.finditer(prompt):
        piece = found[0]
        assert piece not in {"(", "[", ")", "]"}, f"weights in {prompt!r}"
        text += piece.removeprefix("\\")
    return text


def stripped(text: str) -> str:
    """Return the text as the web UI joins its lines."""
    return "\n".join(line.strip() for line in text.strip().split("\n"))


@given(PROMPTS, PROMPTS)
@example("a (cat) [owl] {x} \\ \\( (a:1.2) ((b))", "[a:b:0.5] (c")
@example("black AND white BREAK CANDY \\AND \\\\BREAK", "AND")
@example("<lora:x:1> <hypernet:y> a < b : c > d", "16:9")
@example("a cat 16:9", "a: -1.5 :2. ")
@example(HOSTILE[0], HOSTILE[3])
@example(HOSTILE[3], HOSTILE[2])
@example(HOSTILE[5], HOSTILE[4])
def test_a_plain_prompt_is_the_same_text_in_the_web_ui(prompt: str, negative: str) -> None:
    text = text_of(prompt, negative_prompt=negative)
    found = prompts_of(text)
    assert [means_in_web_ui(each) for each in found] == [stripped(prompt), stripped(negative)]
    assert settings_of(text)["Job"] == "b/3"


def test_a_prompt_with_weights_is_written_as_it_is() -> None:
    prompt = "a (cat:1.2) [owl] BREAK \\(b\\)"
    assert text_of(prompt, prompt_syntax="a1111").startswith(f"{prompt}\nSteps: 25")


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
@pytest.mark.parametrize("prompt", HOSTILE)
def test_sd_parsers_reads_the_settings_for_any_prompt(prompt: str, image_format: str) -> None:
    options = {"scheduler": "dpm++2m-karras", "num_inference_steps": 9, "guidance_scale": 5.5}
    for negative in ("", prompt, "a dog"):
        found = read(text_of(prompt, negative_prompt=negative, **options), image_format)
        expected = ("DPM++ 2M Karras", {"cfg_scale": "5.5", "seed": "7", "steps": "9"})
        assert (found.name, found.parameters) == expected
        assert found.model is not None
        assert (found.model.name, found.model.hash) == ("m", "0123456789")
        texts = [re.sub(r"\\(.)", r"\1", each.value) for each in (*found.prompts, *found.negative_prompts)]
        assert texts == [each.strip() for each in (prompt, negative) if each]


@pytest.mark.parametrize(
    ("scheduler", "options", "written"),
    [
        (None, {}, "Sampler: Euler, Schedule type: Uniform"),
        ("euler_a", {}, "Sampler: Euler a, Schedule type: Uniform"),
        ("dpm++2m", {}, "Sampler: DPM++ 2M, Schedule type: Uniform"),
        ("dpm++2m-karras", {}, "Sampler: DPM++ 2M Karras"),
        ("dpm++2m-sde-karras", {}, "Sampler: DPM++ 2M SDE Karras"),
        ("dpm++2m", {"use_exponential_sigmas": True}, "Sampler: DPM++ 2M Exponential"),
        ("dpm++2m", {"use_beta_sigmas": True}, "Sampler: DPM++ 2M, Schedule type: Beta"),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "Sampler: DPM++ 2M Karras"),
        ("PNDMScheduler", {}, "Sampler: PLMS, Schedule type: Uniform"),
        ("tcd", {}, "Sampler: tcd"),
    ],
)
def test_a_sampler_has_the_name_that_the_web_ui_knows(
    scheduler: str | None, options: dict[str, Any], written: str
) -> None:
    text = text_of(scheduler=scheduler, scheduler_options=options)
    assert f"Steps: 25, {written}, CFG scale: 7.5" in text


@pytest.mark.parametrize(
    ("config", "fields", "written"),
    [
        ({"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}, {}, "DPM++ 2M SDE Karras"),
        ({"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}, {"scheduler": "euler"}, "Euler Karras"),
        ({"use_karras_sigmas": True}, {"scheduler_options": {"use_karras_sigmas": False}}, "DPM++ 2M"),
        ({"use_karras_sigmas": True}, {"scheduler": "dpm++2m-exponential"}, "DPM++ 2M Exponential"),
        ({"timestep_spacing": "leading", "steps_offset": 1}, {}, "DPM++ 2M"),
    ],
)
def test_the_models_own_config_holds_where_the_job_sets_nothing_else(
    config: dict[str, Any], fields: dict[str, Any], written: str
) -> None:
    job = Job.model_validate({"batch": "b", "index": 3, "prompt": "a", "seed": 7, **fields})
    own = "DPMSolverMultistepScheduler"
    text = parameters_text(job, width=8, height=8, scheduler=own, model="m", model_digest="0", scheduler_config=config)
    assert settings_of(text)["Sampler"] == written


@pytest.mark.parametrize("scheduler", SHORT_NAMES)
def test_every_scheduler_is_read_back_by_sd_parsers(scheduler: str) -> None:
    text = text_of(scheduler=scheduler)
    assert read(text).name == settings_of(text)["Sampler"]


def test_the_settings_have_the_size_the_source_of_the_noise_and_the_job() -> None:
    found = settings_of(text_of())
    names = ("Size", "RNG", "Job", "Model hash", "Model")
    assert [found[name] for name in names] == ["512x768", "CPU", "b/3", "0123456789", "m"]


def test_clip_skip_is_written_in_the_count_of_the_web_ui() -> None:
    assert [settings_of(text_of(clip_skip=skipped)).get("Clip skip") for skipped in (0, 1)] == [None, "2"]


DIGESTS = [f"sha256:{number:064x}" for number in range(3)]


def test_input_images_and_adapters_are_settings() -> None:
    text = text_of(loras="outlined:0.8,striped", image=DIGESTS[0], strength=0.4, mask_image=DIGESTS[1], mask_blur=4)
    prompt, settings = text.splitlines()
    assert prompt == "a cat <lora:outlined:0.8> <lora:striped:1>"
    assert "Denoising strength: 0.4, Mask blur: 4, Job: b/3" in settings
    assert read(text).prompts[0].value == prompt
    assert 'Lora starts: "outlined: 0.4", Job' in text_of(loras="outlined:0.8@0.4,striped")
    nets: dict[str, Any] = {"controlnet": "edges,depth", "control_image": DIGESTS[:2]}
    settings = text_of(
        **nets, controlnet_conditioning_scale="0.5,1", control_preprocessor="canny,none", control_guidance_end=0.8
    )
    assert (
        'ControlNet 0: "Module: canny, Model: edges, Weight: 0.5, Guidance Start: 0, Guidance End: 0.8", '
        'ControlNet 1: "Module: none, Model: depth, Weight: 1, Guidance Start: 0, Guidance End: 0.8", Job'
    ) in settings
    settings = text_of(hires_scale=1.5, hires_upscaler="pixel", hires_steps=10)
    assert "Denoising strength: 0.7, Hires upscale: 1.5, Hires steps: 10, Hires upscaler: Lanczos, Job" in settings
    assert "Refiner: fine, Refiner switch at: 0.8, Job" in text_of(refiner="fine")
