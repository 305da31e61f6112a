"""Which model a file is: its family and parts, from the names and shapes of its tensors. No torch.

The names are those of the families' original code, with ComfyUI's prefixes where a file holds a whole model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from latentfarm.errors import ModelError
from latentfarm_worker.checkpoints.tensor_file import TensorFile

#: before the names of the denoising model; a file of the denoising model alone may have none
DENOISER_PREFIX = "model.diffusion_model."
_VAE_PREFIXES = ("first_stage_model.", "vae.")
_CLIP_L, _CLIP_G, _T5, _QWEN = (
    f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl", "qwen3_4b")
)
#: by family: the sub-folder of the denoising model, and the prefixes of the text encoders by sub-folder
_PARTS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "sd1": ("unet", {"text_encoder": "cond_stage_model.transformer."}),
    "sd2": ("unet", {"text_encoder": "cond_stage_model.model."}),
    "sdxl": (
        "unet",
        {"text_encoder": "conditioner.embedders.0.transformer.", "text_encoder_2": "conditioner.embedders.1.model."},
    ),
    "sd3": ("transformer", {"text_encoder": _CLIP_L, "text_encoder_2": _CLIP_G, "text_encoder_3": _T5}),
    "flux": ("transformer", {"text_encoder": _CLIP_L, "text_encoder_2": _T5}),
    "flux2": ("transformer", {"text_encoder": _QWEN}),
    "z_image": ("transformer", {"text_encoder": _QWEN}),
}
FAMILY_NAMES: Mapping[str, str] = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
    "sd3": "Stable Diffusion 3",
    "flux": "FLUX.1",
    "flux2": "FLUX.2",
    "z_image": "Z-Image",
}
_READABLE = f"latentfarm reads files of {', '.join(FAMILY_NAMES.values())}"


@dataclass(frozen=True)
class Layout:
    """What a file holds.

    Attributes:
        family: a key of ``FAMILY_NAMES``.
        denoiser: the sub-folder that a diffusers folder has for the denoising model.
        parts: the parts in the file by sub-folder, with the prefix of their tensors' names.
        lacks: sub-folders of the model that are not in the file.
    """

    family: str
    denoiser: str
    parts: Mapping[str, str]
    lacks: tuple[str, ...]


def recognize(file: TensorFile) -> Layout:
    """Return what a file holds.

    Raises:
        ModelError: it is no text-to-image model of a family that can be read; the message names what it is.
    """
    prefix = DENOISER_PREFIX if _has(file, DENOISER_PREFIX) else ""
    shapes = {name.removeprefix(prefix): tensor.shape for name, tensor in file.tensors.items()}
    family = _family_of_unet(file, shapes) if prefix + "input_blocks.0.0.weight" in file.tensors else None
    family = family or _family_of_transformer(shapes)
    if family is None:
        _reject(file)
    _reject_editing_models(file, family, shapes)
    denoiser, encoders = _PARTS[family]
    vaes = [each for each in _VAE_PREFIXES if _has(file, each)]
    wanted = {denoiser: prefix, "vae": vaes[0] if vaes else "", **encoders}
    parts = {part: each for part, each in wanted.items() if part == denoiser or (each and _has(file, each))}
    return Layout(family, denoiser, parts, tuple(part for part in wanted if part not in parts))


def is_vae(file: TensorFile) -> bool:
    """Return whether a file is a VAE alone, in ldm's or diffusers' names."""
    return "decoder.conv_in.weight" in {name.removeprefix("first_stage_model.") for name in file.tensors} and not _has(
        file, DENOISER_PREFIX
    )


def _has(file: TensorFile, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in file.tensors)


def _family_of_unet(file: TensorFile, shapes: Mapping[str, tuple[int, ...]]) -> str:
    if _has(file, "conditioner.embedders.1.") or _has(file, "conditioner.embedders.0.transformer."):
        return "sdxl"
    if _has(file, "conditioner.embedders.0.model."):
        raise ModelError(
            f"{file.path}: is the refiner of Stable Diffusion XL, which only finishes what a base model began; use the "
            "base model"
        )
    if _has(file, "cond_stage_model.model."):
        return "sd2"
    if _has(file, "cond_stage_model.transformer."):
        return "sd1"
    # without text encoders: only XL is conditioned on sizes, and 2.x projects with matrices where 1.x convolves
    if "label_emb.0.0.weight" in shapes:
        return "sdxl"
    projections = [shape for name, shape in shapes.items() if name.endswith(".proj_in.weight")]
    return "sd2" if projections and len(projections[0]) == 2 else "sd1"


def _family_of_transformer(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    marks: Mapping[str, Callable[[str], bool]] = {
        "sd3": lambda name: name.startswith("joint_blocks.0."),
        "flux2": lambda name: name.startswith("double_stream_modulation_img."),
        "flux": lambda name: name.startswith("double_blocks.0.img_attn.norm."),
        "z_image": lambda name: name.startswith(("layers.0.attention.qkv.", "layers.0.attention.to_q.")),
    }
    if any(name.startswith(("distilled_guidance_layer.", "early_stream_modulations.")) for name in shapes):
        return None
    for family, is_mark in marks.items():
        if any(is_mark(name) for name in shapes):
            # Lumina 2 has Z-Image's layers, with another modulation
            return None if family == "z_image" and "layers.0.adaLN_modulation.0.weight" not in shapes else family
    return None


def _reject_editing_models(file: TensorFile, family: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Reject a denoising model that takes more channels than latents: a mask, an image to edit, a depth map."""
    if family in {"sd1", "sd2", "sdxl"}:
        takes, gives = shapes["input_blocks.0.0.weight"][1:2], shapes.get("out.2.weight", ())[:1]
    elif family in {"flux", "flux2"}:
        takes, gives = shapes.get("img_in.weight", ())[1:2], shapes.get("final_layer.linear.weight", ())[:1]
    else:
        return
    if not takes or not gives:
        raise ModelError(f"{file.path}: its first or last layer is missing; download it again")
    if takes != gives:
        raise ModelError(
            f"{file.path}: takes {takes[0]} channels and gives {gives[0]}: it is not a text-to-image model "
            "(inpainting, fill, depth and edit models take more); use the base model"
        )


def _reject(file: TensorFile) -> NoReturn:
    """Raise an error that names what the file is instead of a model."""
    for pattern, kind, cure in _OTHERS:
        if any(re.search(pattern, name) for name in file.tensors):
            raise ModelError(f"{file.path}: is {kind}; {cure}")
    names = ", ".join(repr(name[:60]) for name in sorted(file.tensors)[:2])
    raise ModelError(
        f"{file.path}: is a model of no family that is known here: its tensors begin with {names}; {_READABLE}"
    )


#: what else a file may be: a pattern of one of its names, the kind, and the cure; the first that matches
_OTHERS: Iterable[tuple[str, str, str]] = (
    (r"lora_|\.lora\.|hada_w|lokr_", "a LoRA, which changes a model", "name the model itself"),
    (r"^control_model\.|input_hint_block|controlnet_|^control_", "a ControlNet", "name a text-to-image model"),
    (r"^(emb_params|string_to_param|clip_[lg])$", "a textual inversion", "name a text-to-image model"),
    (
        r"^(down_blocks|up_blocks|transformer_blocks|single_transformer_blocks|all_x_embedder)\.",
        "the denoising model of a diffusers folder",
        "name the folder with model_index.json",
    ),
    (r"^(first_stage_model\.|vae\.)?decoder\.(conv_in|up|mid)", "a VAE", "name the model, and this file with --vae"),
    (
        r"^(text_model|shared|encoder\.block|model\.layers|embeddings|encoder\.layers)\b",
        "a text encoder",
        "name the model itself",
    ),
    (
        r"^distilled_guidance_layer\.",
        "a Chroma model",
        f"{_READABLE}; name a diffusers folder if its pipeline is served",
    ),
)
