"""The latents of an input image: what a job on an image begins with, and what a mask keeps."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm.schedulers import is_flow
from latentfarm.step_counts import steps_made
from latentfarm_worker.engine.job_inputs import JobInputs
from latentfarm_worker.engine.noise import NoiseSource, SampleDraws
from latentfarm_worker.engine.sampling_plan import SamplingPlan
from latentfarm_worker.host_copy import pin, send
from latentfarm_worker.models.base import Family
from latentfarm_worker.posterior import Posterior
from latentfarm_worker.text_encoders.prompt import Tensors

#: gray values of a mask from which on latents are painted again, as by ``VaeImageProcessor.binarize`` of diffusers
PAINTED = 0.5


@dataclass(frozen=True, eq=False)
class InputLatents:
    """What an image of a job on an image begins with. All tensors are on the host.

    Attributes:
        initial: the latents before the first evaluation, float32 (C, h, w).
        latents: those of the input image without noise, float32 (C, h, w).
        noise: the noise in the initial ones, float32 (C, h, w).
        painted: where a mask has them painted again, bool (1, h, w); None: everywhere, without blending.
        conditioning: the model's inputs for the mask, if it has any.
    """

    initial: torch.Tensor
    latents: torch.Tensor
    noise: torch.Tensor
    painted: torch.Tensor | None
    conditioning: Tensors


class KeptRegion:
    """The latents on the device that a mask keeps: after each evaluation they are those of the input image again.

    It has the noise level of the next evaluation, as in the inpainting pipelines of diffusers.
    """

    def __init__(self, origin: InputLatents, painted: torch.Tensor, device: torch.device) -> None:
        self._latents, self._noise = send(origin.latents, device), send(origin.noise, device)
        self._painted = send(painted, device)

    def restore(self, latents: torch.Tensor, factors: tuple[float, float]) -> None:
        """Overwrite what the mask keeps of latents, float32 (C, h, w). ``factors``: of ``SamplingPlan.noised``."""
        of_image, of_noise = factors
        known = torch.add(self._latents * of_image, self._noise, alpha=of_noise)
        latents.copy_(torch.where(self._painted, latents, known))


def require_inputs(family: Family, job: Job) -> None:
    """Check that a model takes the input images of a job, and that the job has those that the model needs.

    Raises:
        JobError: code ``input_not_supported`` or ``input_required``.
    """
    for field in ("image", "mask_image"):
        given = getattr(job, field) is not None
        if given and field not in family.inputs:
            raise JobError(
                "input_not_supported", f"{family.name} ({family.pipeline}) takes no {field}; remove it, or use another"
            )
        if field in family.required_inputs and not given:
            raise JobError("input_required", f"{family.name} only repaints parts of images; write image and mask_image")


def steps_on_image(family: Family, job: Job) -> int | None:
    """Return how many steps are made for a job on an image, None for a job without one.

    Raises:
        JobError: code ``strength_too_low``: none.
    """
    if job.image is None:
        return None
    steps, strength, flow = job.num_inference_steps, job.effective_strength, is_flow(family.scheduler_config)
    made = steps_made(steps, strength, flow=flow)
    if not made:
        raise JobError(
            "strength_too_low",
            f"strength {strength:g} of {steps} steps makes no step; write {ceil(1000 / steps) / 1000:g} or more, or "
            f"{int(1 / strength) + 1} steps",
        )
    return made


def sample_draws(family: Family, job: Job) -> SampleDraws:
    """Return the samples that diffusers' pipeline draws for a job: of its image, and of the image without its mask."""
    if job.image is None:
        return SampleDraws()
    if job.mask_image is None:
        return SampleDraws(before=1)
    # such a pipeline encodes the whole image only to begin with it
    skipped = bool(family.required_inputs) and job.effective_strength == 1.0
    return SampleDraws(before=int(not skipped), after=1)


def make_input_latents(
    family: Family, job: Job, inputs: JobInputs, plan: SamplingPlan, noise: NoiseSource
) -> InputLatents | None:
    """Return what a job on an image begins with, None for a job without one. ``inputs`` must have its images."""
    if job.image is None:
        return None
    assert inputs.posterior is not None  # noqa: S101 (the caller has encoded the image)
    samples = iter(noise.samples)
    latents = torch.zeros_like(noise.initial)
    if sample_draws(family, job).before:
        latents = _sample(family, inputs.posterior, next(samples))
    if inputs.mask is not None and job.effective_strength == 1.0:
        # the pipelines with a mask begin with noise alone then
        initial = plan.init_noise_sigma * noise.initial
    else:
        of_image, of_noise = plan.noised[0]
        initial = torch.add(latents * of_image, noise.initial, alpha=of_noise)
    painted: torch.Tensor | None = None
    conditioning: Tensors = {}
    if inputs.mask is not None:
        painted = (inputs.mask >= PAINTED)[:: family.vae_scale_factor, :: family.vae_scale_factor][None]
    if painted is not None and inputs.masked is not None:
        masked = _sample(family, inputs.masked, next(samples))
        conditioning = {"masked_latents": torch.cat([painted.float(), masked])}
        painted = None
    initial, latents = pin(initial, family.device), pin(latents, family.device)
    return InputLatents(initial, latents, noise.initial, painted, conditioning)


def _sample(family: Family, posterior: Posterior, noise: torch.Tensor) -> torch.Tensor:
    """Return a sample of the VAE's distribution in the model's scale, float32 (C, h, w)."""
    return family.scale_latents(posterior.mean + posterior.std * noise)
