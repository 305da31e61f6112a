"""Input images of jobs: made, stored, and rendered by diffusers' own pipelines."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from tests.support.pipelines import arguments_of, set_scheduler

from latentfarm.errors import InputError
from latentfarm.job import Job
from latentfarm.storage.bucket import MissingObjectError
from latentfarm.storage.keys import input_key
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.preparation import prepare
from latentfarm_worker.input_images.reader import InputReader

#: diffusers' pipelines for an image, and for an image and a mask, by that for text alone
_PIPELINES = {
    "StableDiffusionPipeline": ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    "StableDiffusionInpaintPipeline": ("", "StableDiffusionInpaintPipeline"),
    "StableDiffusionXLInpaintPipeline": ("", "StableDiffusionXLInpaintPipeline"),
    "StableDiffusionXLPipeline": ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
    "StableDiffusion3Pipeline": ("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    "FluxPipeline": ("FluxImg2ImgPipeline", "FluxInpaintPipeline"),
    "ChromaPipeline": ("ChromaImg2ImgPipeline", "ChromaInpaintPipeline"),
    "ZImagePipeline": ("ZImageImg2ImgPipeline", "ZImageInpaintPipeline"),
}


def paint(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """Return an image of soft random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def paint_mask(width: int = 64, height: int = 64, *, left: float = 0.25, right: float = 0.75) -> Image.Image:
    """Return a mask whose middle is painted again, from ``left`` to ``right`` and in the upper three quarters."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[: height * 3 // 4, int(width * left) : int(width * right)] = 255
    return Image.fromarray(mask)


def png(image: Image.Image) -> bytes:
    """Return an image as a PNG file."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def digest(body: bytes) -> str:
    """Return the digest of a file, as a job has it."""
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


class Inputs:
    """Input images in memory, in the place of a bucket; ``gets`` are the keys that were read."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._images: dict[str, Image.Image] = {}
        self.gets: list[str] = []

    def add(self, image: Image.Image) -> str:
        """Store an image, and return its digest."""
        name = self.put(png(image))
        self._images[name] = image
        return name

    def put(self, body: bytes, *, under: str | None = None) -> str:
        """Store a file under its digest, or under that of another; return the digest."""
        name = under or digest(body)
        self._files[input_key(name)] = body
        return name

    def image(self, name: str) -> Image.Image:
        """Return the image of a digest."""
        return self._images[name]

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Return a file, as ``Bucket.get``."""
        self.gets.append(key)
        if key not in self._files:
            raise MissingObjectError(f"{key} is not here")
        if len(self._files[key]) > max_bytes:
            raise InputError(f"{key} has more than {max_bytes:,} bytes")
        return self._files[key]

    def prepare(self, family: Any, job: Job) -> ImageState:
        """Return a job that is ready for the engine, with its inputs."""
        reader: Any = InputReader
        return prepare(family, job, job.name, inputs=reader(self, family).read(job))


def by_image_pipeline(pipe: Any, own_config: Mapping[str, Any], job: Job, inputs: Inputs) -> np.ndarray[Any, Any]:
    """Return the image of a job on an image by diffusers' own pipeline, int (H, W, 3), without blending of pixels."""
    assert job.image is not None
    own = _image_pipeline(pipe, masked=job.mask_image is not None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_scheduler(own, own_config, job)
        image = inputs.image(job.image)
        arguments: dict[str, Any] = {"image": image, "strength": job.effective_strength}
        if job.mask_image is not None:
            mask = inputs.image(job.mask_image)
            if job.mask_blur:
                mask = own.mask_processor.blur(mask, job.mask_blur)
            arguments["mask_image"] = mask
        if "Img2Img" not in type(own).__name__ or type(own).__name__.startswith(("Flux", "Chroma", "StableDiffusion3")):
            arguments |= {"width": image.width, "height": image.height}
        result = own(
            prompt=job.prompt,
            num_inference_steps=job.num_inference_steps,
            generator=[torch.Generator("cpu").manual_seed(job.seed)],
            output_type="latent" if type(own).__name__ == "StableDiffusion3InpaintPipeline" else "np",
            **arguments_of(pipe, job),
            **arguments,
        ).images
        if type(own).__name__ == "StableDiffusion3InpaintPipeline":
            # the pipeline's own decoding leaves out the shift
            config = own.vae.config
            with torch.no_grad():
                decoded = own.vae.decode(result / config.scaling_factor + config.shift_factor, return_dict=False)[0]
            result = own.image_processor.postprocess(decoded, output_type="np")
    return np.asarray((result[0] * 255).round()).astype(int)


def _image_pipeline(pipe: Any, *, masked: bool) -> Any:
    cls = getattr(diffusers, _PIPELINES[type(pipe).__name__][masked])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = {*cls._get_signature_keys(cls)[0], "image_encoder", "feature_extractor"}
        parts = {name: part for name, part in pipe.components.items() if name in known}
        if type(pipe).__name__ in {"StableDiffusionPipeline", "StableDiffusionInpaintPipeline"}:
            parts["requires_safety_checker"] = False
        if type(pipe).__name__ == "ChromaPipeline":
            # the one with a mask reads FLUX.1's setting
            pipe.transformer.register_to_config(guidance_embeds=False)
        own = cls(**parts)
    own.set_progress_bar_config(disable=True)
    return own
