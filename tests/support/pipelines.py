"""diffusers' own pipelines, called for a job: what images of the engine are compared with."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from latentfarm import schedulers
from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.models.flux2 import text_layers


def open_pipeline(folder: Path) -> Any:
    """Return the pipeline of a model; parts that its index leaves out are None."""
    index = json.loads((folder / "model_index.json").read_text())
    # without it diffusers refuses a model without T5, whose parts are not among its optional ones
    absent = {
        name: None
        for name, entry in index.items()
        if entry == [None, None] and name.startswith(("text_encoder", "tokenizer"))
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, **absent
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def config_of(pipe: Any) -> dict[str, Any]:
    """Return the config of the pipeline's scheduler with its class."""
    return dict(pipe.scheduler.config, _class_name=type(pipe.scheduler).__name__)


def set_scheduler(pipe: Any, own_config: Mapping[str, Any], wanted: Job) -> None:
    """Give the pipeline the scheduler of a job, made from the model's own config."""
    name = schedulers.resolve(wanted.scheduler or own_config["_class_name"])
    if wanted.scheduler is not None:
        name = schedulers.fit(name, own_config)
    cls = getattr(diffusers, name.class_name)
    pipe.scheduler = cls.from_config(own_config, **{**name.options, **wanted.scheduler_options})


def call(pipe: Any, wanted: Job, **arguments: Any) -> np.ndarray[Any, Any]:
    """Return the image of a job by the pipeline with its present scheduler, int (H, W, 3)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = pipe(
            prompt=wanted.prompt,
            width=wanted.width,
            height=wanted.height,
            num_inference_steps=wanted.num_inference_steps,
            **{"generator": torch.Generator("cpu").manual_seed(wanted.seed), **arguments_of(pipe, wanted), **arguments},
        ).images[0]
    return np.asarray(image).astype(int)


def arguments_of(pipe: Any, wanted: Job) -> dict[str, Any]:
    """Return the arguments that mean a job's guidance and text, by the class of the pipeline for text alone."""
    if type(pipe).__name__ == "Flux2KleinPipeline":
        return _guidance_of_klein(pipe, wanted)
    if type(pipe).__name__ in {"ZImagePipeline", "ChromaPipeline"}:
        length = {"max_sequence_length": pipe.tokenizer.model_max_length}
        return {**length, "guidance_scale": wanted.guidance_scale, "negative_prompt": wanted.negative_prompt}
    if type(pipe).__name__ == "PixArtSigmaPipeline":
        text = {"max_sequence_length": pipe.tokenizer.model_max_length, "clean_caption": False}
        scale = {"guidance_scale": wanted.guidance_scale, "negative_prompt": wanted.negative_prompt}
        return {**text, **scale, "use_resolution_binning": False}
    if type(pipe).__name__ != "FluxPipeline":
        return {"guidance_scale": wanted.guidance_scale, "negative_prompt": wanted.negative_prompt or None}
    length = {"max_sequence_length": pipe.tokenizer_2.model_max_length}
    if pipe.transformer.config.guidance_embeds:
        return {**length, "guidance_scale": wanted.guidance_scale}
    return {**length, "true_cfg_scale": wanted.guidance_scale, "negative_prompt": wanted.negative_prompt}


def _guidance_of_klein(pipe: Any, wanted: Job) -> dict[str, Any]:
    """Return the arguments of FLUX.2 klein, whose pipeline takes a negative prompt as embeddings only."""
    text = {
        "max_sequence_length": pipe.tokenizer.model_max_length,
        "text_encoder_out_layers": text_layers(pipe.text_encoder.config.num_hidden_layers),
    }
    with torch.no_grad():
        negative, _ = pipe.encode_prompt(wanted.negative_prompt, **text)
    return {**text, "guidance_scale": wanted.guidance_scale, "negative_prompt_embeds": negative}


def by_pipeline(pipe: Any, own_config: Mapping[str, Any], wanted: Job) -> np.ndarray[Any, Any]:
    """Return the image of a job by the pipeline with the job's scheduler, int (H, W, 3)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_scheduler(pipe, own_config, wanted)
    return call(pipe, wanted)


def render(engine: Engine, jobs: Sequence[Job | ImageState]) -> dict[int, Rendered]:
    """Run jobs of which one is admitted at each step; return the images by index."""
    done, coming = {}, list(jobs)
    while coming or engine.busy:
        if coming:
            engine.admit(coming.pop(0))
        for result in engine.step():
            assert isinstance(result, Rendered), result
            done[result.job.index] = result
        engine.check_integrity()
    return done


def difference(image: np.ndarray[Any, Any], result: Rendered) -> int:
    """Return the largest difference of a channel, of 255, after a check that the pipeline's image is not blank."""
    assert image.std() > 20, "a blank image would prove nothing"
    assert image.shape == result.pixels.shape
    return int(np.abs(image - result.pixels.numpy()).max())


def differences(
    family: Any, pipe: Any, own_config: Mapping[str, Any], jobs: list[Job], *, slots: int = 3
) -> dict[int, int]:
    """Render jobs in one run; return the largest difference of each to the pipeline's image, by index."""
    done = render(Engine(family, slots=slots), jobs)
    return {wanted.index: difference(by_pipeline(pipe, own_config, wanted), done[wanted.index]) for wanted in jobs}
