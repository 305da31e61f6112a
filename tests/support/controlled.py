"""Jobs with ControlNets: prepared with their control images, and the images of diffusers' pipelines for them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from tests.support.engines import make
from tests.support.pipelines import arguments_of, call
from tests.support.tiny import NATIVE

from latentfarm.job import Job
from latentfarm_worker.adapters.catalogue import Catalogue, open_catalogue
from latentfarm_worker.adapters.controlnet.canny import canny
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.job_inputs import JobInputs

#: by the base's pipeline: the pipeline and the class of nets
_PIPELINES = {
    "StableDiffusionPipeline": ("StableDiffusionControlNetPipeline", "ControlNetModel"),
    "StableDiffusionXLPipeline": ("StableDiffusionXLControlNetPipeline", "ControlNetModel"),
    "StableDiffusion3Pipeline": ("StableDiffusion3ControlNetPipeline", "SD3ControlNetModel"),
    "FluxPipeline": ("FluxControlNetPipeline", "FluxControlNetModel"),
}


def catalogue_of(folder: Path, cache: Path) -> Catalogue:
    """Return the adapters in a folder."""
    return open_catalogue(str(folder), cache=cache, max_bytes=10**9, open_store=_no_store)


def _no_store(bucket: str) -> Any:
    raise AssertionError(bucket)


def noise_image(seed: int, *, width: int = NATIVE, height: int = NATIVE) -> np.ndarray[Any, Any]:
    """Return soft random shapes in color, uint8 (H, W, 3)."""
    dice = np.random.default_rng(seed)
    small = Image.fromarray(dice.integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def job(index: int, *nets: str, images: Sequence[np.ndarray[Any, Any]] = (), **fields: Any) -> Job:
    """Return a job with nets."""
    wanted: dict[str, Any] = {"width": NATIVE, "height": NATIVE, "guidance_scale": 5.0, **fields}
    if nets:
        wanted |= {"controlnet": nets, "control_image": [digest_of(image) for image in images]}
    return make(index, **wanted)


def digest_of(image: np.ndarray[Any, Any]) -> str:
    return "sha256:" + sha256(image.tobytes()).hexdigest()


def prepared(engine: Engine, wanted: Job, images: Sequence[np.ndarray[Any, Any]], **inputs: Any) -> ImageState:
    """Return a job that is ready to be admitted."""
    controls = tuple(torch.from_numpy(image.copy()) for image in images)
    return engine.prepare(wanted, inputs=JobInputs(controls=controls, **inputs))


class ControlledPipelines:
    """diffusers' pipelines for jobs with nets.

    Args:
        base: the pipeline for text alone.
        nets: the folders of the nets by alias.
    """

    def __init__(self, base: Any, nets: Mapping[str, Path]) -> None:
        self._base = base
        name, kind = _PIPELINES[type(base).__name__]
        self._kind = getattr(diffusers, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._nets = {
                alias: getattr(diffusers, kind).from_pretrained(folder, low_cpu_mem_usage=False)
                for alias, folder in nets.items()
            }

    def render(self, wanted: Job, images: Sequence[np.ndarray[Any, Any]], **arguments: Any) -> np.ndarray[Any, Any]:
        """Return the image of a job, int (H, W, 3)."""
        nets = [self._nets[control.name] for control in wanted.controls]
        alone = len(nets) == 1
        together: Any = nets
        if type(self._base).__name__ == "FluxPipeline":
            together = diffusers.FluxMultiControlNetModel(nets)
        pipe = self._open(nets[0] if alone else together)
        given = [
            Image.fromarray(_edges(image) if control.preprocessor == "canny" else image)
            for control, image in zip(wanted.controls, images, strict=True)
        ]
        values: dict[str, list[Any]] = {
            "controlnet_conditioning_scale": [control.scale for control in wanted.controls],
            "control_guidance_start": [control.start for control in wanted.controls],
            "control_guidance_end": [control.end for control in wanted.controls],
            self._image_argument: given,
        }
        common = arguments_of(self._base, wanted)
        return call(pipe, wanted, **common, **{n: v[0] if alone else v for n, v in values.items()}, **arguments)

    @property
    def _image_argument(self) -> str:
        xl_or_before = type(self._base).__name__ in {"StableDiffusionPipeline", "StableDiffusionXLPipeline"}
        return "image" if xl_or_before else "control_image"

    def _open(self, controlnet: Any) -> Any:
        components = {**self._base.components, "controlnet": controlnet}
        # its state is that of the last call
        scheduler = self._base.scheduler
        components["scheduler"] = type(scheduler).from_config(scheduler.config)
        if type(self._base).__name__ == "StableDiffusionPipeline":
            components["requires_safety_checker"] = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe = self._kind(**components)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def _edges(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.repeat(canny(image)[..., None].astype(np.uint8) * 255, 3, axis=2)
