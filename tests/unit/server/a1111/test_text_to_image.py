"""Bodies of ``txt2img``: what they mean, and what is refused with which cure."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.support.client_requests import client_requests

from latentfarm.job import Row
from latentfarm.limits import MAX_SEED
from latentfarm.server.a1111.text_to_image import MAX_IMAGES, model_of_title, read_text_to_image
from latentfarm.server.http.request_error import RequestError

pytestmark = pytest.mark.unit

#: what AUTOMATIC1111's Python client sends for every request
WEBUIAPI = {
    "enable_hr": False, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 0, "hr_resize_x": 0,
    "hr_resize_y": 0, "denoising_strength": 0.7, "firstphase_width": 0, "firstphase_height": 0, "prompt": "a cat",
    "styles": [], "seed": -1, "subseed": -1, "subseed_strength": 0.0, "seed_resize_from_h": 0, "seed_resize_from_w": 0,
    "batch_size": 1, "n_iter": 1, "steps": 20, "cfg_scale": 7.0, "width": 512, "height": 512, "restore_faces": False,
    "tiling": False, "do_not_save_samples": False, "do_not_save_grid": False, "negative_prompt": "", "eta": 1.0,
    "s_churn": 0, "s_tmax": 0, "s_tmin": 0, "s_noise": 1, "script_args": [], "script_name": None, "send_images": True,
    "save_images": False, "alwayson_scripts": {"ControlNet": {"args": [{"enabled": False}]}, "Tiled VAE": {"args": []}},
    "override_settings": {}, "override_settings_restore_afterwards": True, "sampler_name": "Euler a",
    "scheduler": "automatic", "sampler_index": None,
}  # fmt: skip


def test_the_web_uis_defaults_hold_and_a_prompt_has_its_syntax() -> None:
    found = read_text_to_image({"prompt": "a (red:1.3) cat"})
    (row,) = found.rows
    assert {**row, "seed": 0} == {
        "prompt": "a (red:1.3) cat",
        "prompt_syntax": "a1111",
        "num_inference_steps": 50,
        "guidance_scale": 7.0,
        "seed": 0,
    }
    assert (found.model, found.batch_size, found.send_images, found.notes) == ("", 1, True, [])
    assert read_text_to_image({"prompt": "a [cat]", "prompt_syntax": "plain"}).rows[0]["prompt_syntax"] == "plain"


def test_a_seed_counts_up_from_image_to_image_and_a_random_one_is_drawn_for_each_request() -> None:
    rows = read_text_to_image({"prompt": "a cat", "seed": 7, "n_iter": 2, "batch_size": 3}).rows
    assert [row["seed"] for row in rows] == [7, 8, 9, 10, 11, 12]
    drawn = {read_text_to_image({"prompt": "a cat", "seed": seed}).rows[0]["seed"] for seed in (-1, None, "-1", -1.0)}
    assert len(drawn) == 4
    assert read_text_to_image({"prompt": "a cat", "seed": MAX_SEED}).rows[0]["seed"] == MAX_SEED


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [
        ({"sampler_name": "DPM++ 2M"}, "dpm++2m-karras"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "Uniform"}, "dpm++2m"),
        ({"sampler_name": "DPM++ 2M Karras", "scheduler": "automatic"}, "dpm++2m-karras"),
        ({"sampler_name": "DDIM", "scheduler": "normal"}, "ddim"),
        ({"sampler_name": "Euler", "scheduler": "sgm_uniform"}, "euler-trailing"),
        ({"sampler_index": "Euler a"}, "euler_a"),
        ({"sampler_name": "unipc"}, "unipc"),
        ({"scheduler": "Automatic"}, None),
    ],
)
def test_a_sampler_and_its_schedule_type_are_a_scheduler(sampler: dict[str, Any], scheduler: str | None) -> None:
    assert read_text_to_image({"prompt": "a cat", **sampler}).rows[0].get("scheduler") == scheduler


def test_a_sampler_that_differs_is_noted() -> None:
    found = read_text_to_image({"prompt": "a cat", "sampler_name": "DPM++ SDE", "scheduler": "Uniform"})
    assert found.notes == [
        "sampler 'DPM++ SDE' is scheduler dpm++sde here, which differs: one model evaluation a step instead of two"
    ]


def test_overridden_settings_set_the_model_the_clip_skip_and_the_format() -> None:
    settings = {
        "sd_model_checkpoint": "sdxl.safetensors [31e35c80fc]",
        "CLIP_stop_at_last_layers": 2,
        "samples_format": "JPG",
        "sd_vae": "Automatic",
        "forge_additional_modules": [],
        "save_images_add_number": True,
    }
    found = read_text_to_image({"prompt": "a cat", "override_settings": settings})
    assert found.model == "sdxl"
    assert found.rows[0]["clip_skip"] == 1
    assert found.rows[0]["image_format"] == "jpeg"
    assert [model_of_title(title) for title in ("mini", " mini ", "a.b.ckpt", "", None)] == [
        "mini",
        "mini",
        "a.b",
        "",
        "",
    ]


def test_bodies_that_clients_send_are_read() -> None:
    assert read_text_to_image(WEBUIAPI).rows[0]["scheduler"] == "euler_a"
    tavern = client_requests("sillytavern-stable-diffusion")["generate"].json()
    found = read_text_to_image(tavern)
    assert found.rows[0]["scheduler"] == "ddim"
    # its own clip_skip is for another server, and counts from 1
    assert "clip_skip" not in found.rows[0] or found.rows[0]["clip_skip"] == 0
    # a password of the client's settings must not come back
    assert not {"auth", "url"} & found.parameters.keys()
    webui = client_requests("open-webui-automatic1111")["generate"].json()
    assert [row["scheduler"] for row in read_text_to_image(webui).rows] == ["dpm++2m-karras"] * 2
    chat = read_text_to_image(client_requests("librechat-stable-diffusion")["generate"].json()).rows[0]
    assert (chat["width"], chat["height"], chat["guidance_scale"]) == (1024, 1024, 4.5)


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ({"prompt": ""}, "txt2img: prompt '' is empty; describe the image"),
        ({"prompt": 5}, "txt2img: prompt 5 is invalid; write a valid string"),
        ({"steps": 501}, "txt2img: steps 501 is invalid; write less than or equal to 500"),
        ({"width": 1001}, "txt2img: width 1001 is not a multiple of 8; write 1000 or 1008"),
        ({"seed": 1.5}, "seed 1.5 is no whole number; send -1 for a random one"),
        ({"seed": float("inf")}, "seed Infinity is no whole number; send -1 for a random one"),
        ({"seed": True}, "seed true is no whole number; send -1 for a random one"),
        ({"seed": MAX_SEED, "n_iter": 2}, f"seed {MAX_SEED} is out of range; send 0 to {MAX_SEED - 1}"),
        ({"n_iter": 8, "batch_size": 8}, "n_iter 8 times batch_size 8 is 64 images; send at most 32, or submit a"),
        ({"sampler_name": "Eular"}, "sampler_name 'Eular' is not known; did you mean 'euler'?"),
        ({"sampler_name": "Restart"}, "sampler_name 'Restart' is not supported; write heun-karras, the nearest"),
        ({"sampler_name": "Euler a", "scheduler": "Karras"}, "sampler_name 'Euler a Karras' is not supported: diffu"),
        ({"sampler_index": 3}, "sampler_index 3 is a number; send the sampler's name, such as Euler a, as samp"),
        ({"scheduler": "Karras"}, "scheduler 'Karras' has no sampler; send sampler_name too"),
        ({"sampler_name": "DDIM", "eta": 0.5}, "eta 0.5 is not supported with ddim; remove it, or set it to 0"),
        ({"sampler_name": "DPM++ 2M SDE", "eta": 0}, "eta 0 is not supported with dpm++2m-sde-exponential; remove it"),
        ({"enable_hr": True, "hr_upscaler": "ESRGAN"}, "txt2img: hr_upscaler 'ESRGAN' is not supported; write Latent"),
        ({"enable_hr": True, "hr_prompt": "a dog"}, "hr_prompt 'a dog' is not supported; remove it: that of the first"),
        ({"enable_hr": True, "hr_sampler_name": "DDIM"}, "hr_sampler_name 'DDIM' is not supported; remove it"),
        ({"styles": ["a"]}, "styles [\"a\"]: it is not supported; write the words of the style into the prompt"),
        ({"subseed_strength": 0.1}, "subseed_strength 0.1: it is not supported; set it to false, 0 or an empty text"),
        ({"s_noise": 0.9}, "s_noise 0.9 is not supported; set it to 1"),
        (
            {"alwayson_scripts": {"ADetailer": {"args": [True]}}},
            'txt2img: alwayson_scripts {"ADetailer": {"args": [true]}} has \'ADetailer\', which is not supported; rem',
        ),
        (
            {"alwayson_scripts": {"x": 1, "controlnet": {"args": [{"module": "canny"}]}}},
            'txt2img: alwayson_scripts {"x": 1, "controlnet": {"args": [{"module": "canny"}]}} has \'x\', which is not',
        ),
        ({"override_settings": {"sd_vae": "x.pt"}}, "the setting sd_vae 'x.pt' is not supported; remove it"),
        ({"override_settings": {"eta_noise_seed_delta": 1}}, "the setting eta_noise_seed_delta 1 is not supported"),
        ({"override_settings": {"sd_model_checkpoint": 5}}, "sd_model_checkpoint 5 is no text; send a title of /sdapi"),
        ({"override_settings": {"samples_format": "gif"}}, "txt2img: image_format 'gif' is not supported; write one"),
    ],
)  # fmt: skip
def test_what_would_give_another_image_is_refused_with_the_cure(field: dict[str, Any], problem: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_text_to_image({"prompt": "a cat", **field})
    assert caught.value.status == 400
    assert caught.value.message.startswith(problem)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8) | st.just("Euler a"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from([*WEBUIAPI, "infotext", "prompt_syntax", "refiner_checkpoint", "x"]), JSON))
def test_any_body_is_valid_rows_or_a_refusal(body: dict[str, Any]) -> None:
    try:
        found = read_text_to_image(body)
    except (RequestError, ValidationError):
        return
    assert 1 <= len(found.rows) <= MAX_IMAGES
    for row in found.rows:
        Row(**row)
    json.dumps(found.parameters)
