"""The second stage of a job with a refiner: another U-Net ends the run that the model began (arXiv 2307.01952).

The image is that of diffusers' ``StableDiffusionXLPipeline`` with ``denoising_end`` and the output type ``latent``, and
then of its ``StableDiffusionXLImg2ImgPipeline`` with the refiner, ``denoising_start`` and the same generator. No noise
is added between them, and the scheduler begins there without a history.
"""

from __future__ import annotations

from dataclasses import replace

from latentfarm.errors import JobError
from latentfarm_worker.engine.diffusers_scheduler import Span
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.noise import NoiseSource
from latentfarm_worker.engine.sampling_plan import plan_for
from latentfarm_worker.models.base import Family


def prepare_refinement(family: Family, first: ImageState, name: str) -> ImageState:
    """Return the second stage of an image by a refiner. It begins with what the first one made. Thread-safe.

    Its prompts are those of the first stage, and so are the LoRAs with which they are encoded; other adapters change
    the first stage only. An empty negative prompt is encoded, and not zeros, as the refiner's pipeline is set.

    Raises:
        JobError: code ``refiner_without_steps``: no evaluation remains for it; ``adapter_mismatch``: the model takes
            no refiner; or those of ``Refiners.prepare``.
    """
    job = first.job
    hold = family.refiners.prepare(name, first.width, first.height)
    if family.embeds_guidance:
        raise JobError(
            "adapter_mismatch",
            f"refiner {name!r} takes guidance by a negative prompt, and {family.name} was distilled to take none; "
            "remove refiner, or use the model that it was distilled from",
        )
    plan = plan_for(
        family.scheduler_config,
        job.scheduler,
        job.scheduler_options,
        job.num_inference_steps,
        family.noise_schedule(job.num_inference_steps, first.width, first.height),
        span=Span(start=job.refiner_start),
    )
    first.run_after = plan.num_evaluations
    return ImageState(
        job=job,
        handle=first.handle,
        plan=plan,
        shape=first.shape,
        width=first.width,
        height=first.height,
        prompts=tuple(replace(prompt, negative=False) for prompt in first.prompts),
        noise=NoiseSource(
            job.seed,
            (family.latent_channels, *first.shape),
            sum(plan.uses_noise),
            family.device,
            state=first.noise.final_state(),
            begins=False,
        ),
        holds=(hold,),
        run_before=first.plan.num_evaluations,
        cohort=first.cohort,
        interactive=first.interactive,
        urgent=first.urgent,
    )
