"""Bodies of ``img2img``, and what ``txt2img`` has of second stages and ControlNets."""

from __future__ import annotations

from typing import Any

import pytest

from latentfarm.server.a1111.image_to_image import read_image_to_image
from latentfarm.server.a1111.text_to_image import read_text_to_image
from latentfarm.server.http.request_error import RequestError

pytestmark = pytest.mark.unit

PNG = "iVBORw0KGgoAAAA"
URL = f"data:image/png;base64,{PNG}"
BODY = {"prompt": "a cat", "init_images": [PNG], "seed": 7}
#: what AUTOMATIC1111's Python client adds for an input image
WEBUIAPI = {
    "resize_mode": 0,
    "denoising_strength": 0.75,
    "image_cfg_scale": 1.5,
    "mask_blur": 4,
    "inpainting_fill": 0,
    "inpaint_full_res": True,
    "inpaint_full_res_padding": 0,
    "inpainting_mask_invert": 0,
    "initial_noise_multiplier": 1,
    "include_init_images": False,
}


def test_the_web_uis_defaults_hold() -> None:
    for more in ({}, WEBUIAPI, {"enable_hr": True, "hr_scale": 2}):
        found = read_image_to_image({**BODY, **more})
        assert not found.inverted
        assert found.wanted.rows == [
            {
                "prompt": "a cat",
                "prompt_syntax": "a1111",
                "num_inference_steps": 50,
                "guidance_scale": 7.0,
                "seed": 7,
                "image": URL,
                "strength": 0.75,
                "resize": "stretch",
            }
        ]
        # an answer does not repeat megabytes
        assert "init_images" not in found.wanted.parameters


def test_a_mask_is_read_with_its_blur() -> None:
    body = {**BODY, "mask": PNG, "denoising_strength": 0.4, "resize_mode": 2, "inpainting_fill": 1}
    found = read_image_to_image(body)
    [row] = found.wanted.rows
    assert (row["mask_image"], row["mask_blur"], row["strength"], row["resize"]) == (URL, 4, 0.4, "pad")
    assert (found.inverted, found.wanted.notes) == (False, [])
    found = read_image_to_image({**body, "mask_blur": 0, "inpainting_mask_invert": 1, "inpainting_fill": 0})
    assert found.wanted.rows[0]["mask_blur"] == 0
    assert (found.inverted, found.wanted.notes) == (True, ["inpainting_fill 0 is 1 here: the original is kept"])


def test_a_controlnet_follows_its_own_image_or_the_input() -> None:
    unit = {"model": "edges", "module": "canny", "weight": 0.5}
    scripts = {"controlnet": {"args": [unit]}}
    [row] = read_image_to_image({**BODY, "alwayson_scripts": scripts}).wanted.rows
    assert (row["controlnet"], row["control_image"], row["control_preprocessor"]) == (("edges",), (URL,), ("canny",))
    # the size of the input decides
    assert row["resize"] == "stretch"
    [row] = read_text_to_image(
        {"prompt": "a", "alwayson_scripts": {"controlnet": {"args": [{**unit, "image": PNG}]}}}
    ).rows
    assert (row["control_image"], row["controlnet_conditioning_scale"], row["resize"]) == ((URL,), (0.5,), "crop")


def test_a_second_stage_is_read() -> None:
    body = {"prompt": "a", "enable_hr": True, "hr_scale": 1.5, "hr_second_pass_steps": 5, "denoising_strength": 0.6}
    same = {"hr_sampler_name": "Use same sampler", "hr_prompt": "", "hr_checkpoint_name": None}
    [row] = read_text_to_image({**body, **same, "hr_upscaler": "Latent"}).rows
    assert {name: row[name] for name in row if name.startswith("hires")} == {
        "hires_scale": 1.5,
        "hires_steps": 5,
        "hires_strength": 0.6,
        "hires_upscaler": "latent",
    }


def test_a_refiner_is_read_and_the_one_that_clients_send_by_default_is_off() -> None:
    for sent, wanted in (
        ({"refiner_checkpoint": "fine.safetensors [ab12cd34]", "refiner_switch_at": 0.7}, ("fine", 0.7)),
        ({"refiner_checkpoint": "", "refiner_switch_at": 0.8}, (None, None)),
        ({"refiner_checkpoint": "None", "refiner_switch_at": 0}, (None, None)),
    ):
        [row] = read_text_to_image({"prompt": "a", **sent}).rows
        assert (row.get("refiner"), row.get("refiner_start")) == wanted
    with pytest.raises(RequestError, match="refiner 'a b' is not a name"):
        read_text_to_image({"prompt": "a", "refiner_checkpoint": "a b"})


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ({"init_images": []}, "init_images has not one image; send a list with one image in base64"),
        ({"init_images": [PNG, PNG]}, "init_images has not one image"),
        ({"init_images": PNG}, "init_images has not one image"),
        ({"init_images": None}, "init_images has not one image"),
        ({"resize_mode": 3}, "img2img: resize_mode 3 is not supported; write 0 (stretch), 1 (crop) or 2 (pad)"),
        ({"denoising_strength": 1.5}, "img2img: strength 1.5 is invalid; write less than or equal to 1"),
        ({"mask": PNG, "inpaint_full_res": True}, "inpaint_full_res true is not supported; send false: the whole"),
        ({"mask": 5}, "img2img: mask 5 is invalid; write a valid string"),
        ({"mask": PNG, "mask_blur": -1}, "img2img: mask_blur -1 is invalid; write greater than or equal to 0"),
    ],
)
def test_what_is_not_supported_is_refused_with_the_cure(field: dict[str, Any], problem: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_image_to_image({**BODY, **field})
    assert refused.value.message.startswith(problem)
