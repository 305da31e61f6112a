"""A second stage: of a refiner, or at a larger size, the web UI's hires fix.

At a larger size, what the first stage made is enlarged, and denoised again. The image is that of diffusers'
text-to-image pipeline with the output type ``latent``, and then its image-to-image pipeline with the enlarged latents
and the same generator, which goes on. With the upscaler ``pixel``, the first stage is decoded and enlarged by Lanczos,
and the pipeline encodes it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from latentfarm.errors import JobError
from latentfarm.limits import MAX_SIDE
from latentfarm.schedulers import is_flow
from latentfarm.step_counts import steps_made
from latentfarm_worker.engine.image_checkpoint import FirstStage
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.input_latents import InputLatents
from latentfarm_worker.engine.noise import NoiseSource, SampleDraws
from latentfarm_worker.engine.refinement import prepare_refinement
from latentfarm_worker.engine.sampling_plan import plan_for
from latentfarm_worker.host_copy import send
from latentfarm_worker.latent_shape import LatentShape
from latentfarm_worker.models.base import Family


class FirstImage(NamedTuple):
    """An image after its first stage, decoded: pixels, uint8 (H, W, 3) on the host."""

    image: ImageState
    pixels: torch.Tensor


def prepare_second(family: Family, first: ImageState) -> ImageState | None:
    """Return the second stage of an image, None for a job without one. It begins with what the first one made.

    Its text and its adapters are those of the first stage; control images are enlarged. Its noise continues that of the
    first. Guidance intervals are shares of its own steps. Thread-safe.

    Raises:
        JobError: code ``size_not_supported`` for sides over the limit, ``strength_too_low`` for a second stage without
            a step, ``input_not_supported`` for pixels that the model's VAE does not encode, ``scheduler`` as
            ``plan_for``, or those of ``AdapterPart.prepare`` and ``prepare_refinement``.
    """
    job = first.job
    if job.refiner is not None:
        return prepare_refinement(family, first, job.refiner)
    if job.hires_scale is None:
        return None
    if job.hires_upscaler == "pixel" and "image" not in family.inputs:
        raise JobError(
            "input_not_supported", f"{family.name} ({family.pipeline}) takes no images; write hires_upscaler latent"
        )
    width, height = (_enlarged_side(family, side, job.hires_scale) for side in (first.width, first.height))
    steps = job.hires_steps or job.num_inference_steps
    made = steps_made(steps, job.hires_strength, flow=is_flow(family.scheduler_config))
    if not made:
        raise JobError(
            "strength_too_low",
            f"hires_strength {job.hires_strength:g} of {steps} steps makes no step; write a greater one, or "
            f"{int(1 / job.hires_strength) + 1} hires_steps",
        )
    schedule = family.noise_schedule(steps, width, height)
    plan = plan_for(family.scheduler_config, job.scheduler, job.scheduler_options, steps, schedule, steps_made=made)
    shape = LatentShape(height // family.vae_scale_factor, width // family.vae_scale_factor)
    own = job.model_copy(update={"width": width, "height": height, "num_inference_steps": steps})
    inputs = replace(first.inputs, controls=tuple(_resize(each, width, height) for each in first.inputs.controls))
    prepared = (part.prepare(own, inputs, plan) for part in family.adapter_parts)
    return ImageState(
        job=job,
        handle=first.handle,
        plan=plan,
        shape=shape,
        width=width,
        height=height,
        prompts=first.prompts,
        noise=NoiseSource(
            job.seed,
            (family.latent_channels, *shape),
            sum(plan.uses_noise),
            family.device,
            draws=SampleDraws(before=int(job.hires_upscaler == "pixel")),
            state=first.noise.final_state(),
        ),
        conditioning=family.row_conditioning(width, height, job.guidance_scale),
        holds=tuple(hold for hold in prepared if hold is not None),
        cohort=first.cohort,
        interactive=first.interactive,
        urgent=first.urgent,
    )


def needs_pixels(image: ImageState) -> bool:
    """Return whether the image of a stage is decoded: for the job, or for its second stage."""
    return image.second is None or (image.job.refiner is None and image.job.hires_upscaler == "pixel")


def begin_second(first: ImageState, latents: torch.Tensor) -> ImageState:
    """Return the second stage, which begins with the latents of the first, float32 (C, h, w) on the device.

    A refiner takes a copy as they are. Otherwise they are interpolated as by the web UI's upscaler "Latent".
    """
    assert first.second is not None  # noqa: S101 (the caller has found one)
    if first.job.refiner is not None:
        copied = latents.clone()
        return _follow(first, first.second, InputLatents(copied, copied, first.second.noise.initial, None, {}))
    enlarged = torch.nn.functional.interpolate(latents[None], size=tuple(first.second.shape), mode="bilinear")
    return _begin(first, first.second, enlarged[0])


def encode_enlarged(family: Family, made: FirstImage) -> ImageState:
    """Return the second stage, which begins with the enlarged image of the first. It waits for the device."""
    second = made.image.second
    assert second is not None  # noqa: S101 (the decoder has found one)
    posterior = family.encode_image(_resize(made.pixels, second.width, second.height))
    [noise] = second.noise.samples
    latents = family.scale_latents(posterior.mean + posterior.std * noise)
    return _begin(made.image, second, latents)


def _begin(first: ImageState, second: ImageState, latents: torch.Tensor) -> ImageState:
    of_image, of_noise = second.plan.noised[0]
    noise = send(second.noise.initial, latents.device)
    initial = torch.add(latents * of_image, noise, alpha=of_noise)
    return _follow(first, second, InputLatents(initial, latents, noise, painted=None, conditioning={}))


def _follow(first: ImageState, second: ImageState, origin: InputLatents) -> ImageState:
    second.origin = origin
    second.first = FirstStage(
        width=first.width,
        height=first.height,
        evaluations=first.plan.num_evaluations,
        plan_digest=first.plan_digest,
        micro_batch=first.micro_batch,
        timings=first.timings,
        adapters=first.adapters,
        frames=tuple(first.frames),
        spans=first.spans,
        interrupted=first.interrupted,
    )
    second.previews, second.given = first.previews, first.given
    second.forked = first.forked
    second.queued = time.perf_counter()
    return second


def _enlarged_side(family: Family, side: int, scale: float) -> int:
    """Return a side of the second stage, in pixels: rounded down to what the model needs."""
    found = int(side * scale) // family.pixel_multiple * family.pixel_multiple
    if found > MAX_SIDE:
        raise JobError(
            "size_not_supported",
            f"hires_scale {scale:g} makes {side} pixels {found}, more than {MAX_SIDE}; write "
            f"{int(100 * MAX_SIDE / side) / 100:g} or less",
        )
    return max(side, found)


def _resize(pixels: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Return an image, uint8 (H, W, 3), in another size by Lanczos, as diffusers' image processor."""
    image = Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image))
