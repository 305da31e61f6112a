"""The body of ``img2img``: what ``txt2img`` has, an input image and perhaps a mask.

Source: the web UI's ``modules/api/api.py`` (``img2imgapi``) and ``StableDiffusionProcessingImg2Img``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from latentfarm.server.a1111.text_to_image import TextToImage, given_fields, invalid, read_body
from latentfarm.submission.prompts.off_values import is_off
from latentfarm.submission.prompts.rows import abbreviate

#: the web UI's defaults
_STRENGTH, _RESIZE_MODE, _MASK_BLUR = 0.75, 0, 4
#: fields of ``txt2img`` alone: the web UI ignores them here
_SECOND_STAGE = ("enable_hr", "hr_scale", "hr_resize_x", "hr_resize_y", "hr_second_pass_steps", "hr_upscaler")
#: what the masked part begins with, if it is the input image
_ORIGINAL = 1


@dataclass(frozen=True)
class ImageToImage:
    """A valid request. ``inverted``: the mask is black where the image is painted again."""

    wanted: TextToImage
    inverted: bool


def read_image_to_image(body: object) -> ImageToImage:
    """Return the request of a body of ``img2img``.

    Raises:
        RequestError: 400 with field, value and cure.
    """
    given = given_fields(body)
    images = given.pop("init_images", None)
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], str):
        raise invalid("init_images has not one image; send a list with one image in base64")
    inputs: dict[str, Any] = {
        "init_images": images,
        "resize_mode": given.get("resize_mode", _RESIZE_MODE),
        "denoising_strength": given.get("denoising_strength", _STRENGTH),
    }
    mask, notes = given.pop("mask", None), []
    if mask is not None:
        if not is_off(given.get("inpaint_full_res")):
            value = abbreviate(given["inpaint_full_res"])
            raise invalid(f"inpaint_full_res {value} is not supported; send false: the whole image is painted")
        blur = given.get("mask_blur", given.get("mask_blur_x", _MASK_BLUR))
        inputs |= {"mask": mask, "mask_blur": blur}
        if given.get("inpainting_fill", _ORIGINAL) != _ORIGINAL:
            notes.append(f"inpainting_fill {abbreviate(given['inpainting_fill'])} is 1 here: the original is kept")
    texts = {name: value for name, value in given.items() if name not in _SECOND_STAGE}
    found = read_body(texts, inputs, place="img2img")
    for row in found.rows:
        # the script's ControlNets follow the input image if they have none
        if "controlnet" in row and "control_image" not in row:
            row["control_image"] = (row["image"],)
    found.notes.extend(notes)
    return ImageToImage(found, inverted=mask is not None and not is_off(given.get("inpainting_mask_invert")))
