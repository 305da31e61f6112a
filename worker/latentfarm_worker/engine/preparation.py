"""Prepare a job for the engine: its sampling plan, tokens, noise and size, without a call of the device."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm.step_counts import draft_evaluations
from latentfarm_worker.engine.diffusers_scheduler import WHOLE, Span
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.input_latents import make_input_latents, sample_draws, steps_on_image
from latentfarm_worker.engine.job_inputs import NO_INPUTS, JobInputs
from latentfarm_worker.engine.noise import NoiseSource
from latentfarm_worker.engine.sampling_plan import plan_for
from latentfarm_worker.engine.second_stage import prepare_second
from latentfarm_worker.latent_shape import LatentShape
from latentfarm_worker.models.base import Family
from latentfarm_worker.text_encoders.prompt import Prompt, PromptLora


def prepare(
    family: Family,
    job: Job,
    handle: Hashable,
    *,
    inputs: JobInputs = NO_INPUTS,
    cohort: Hashable = None,
    interactive: bool = False,
    urgent: bool = False,
    finish: bool = False,
) -> ImageState:
    """Return a job with its sampling plan, tokens and noise, ready to be admitted. Thread-safe.

    Args:
        family: the model.
        job: the job.
        handle: the caller's key of the image.
        inputs: the job's input images.
        cohort: only images with an equal cohort run together.
        interactive: a client waits for the image: it is urgent, and decoded at once.
        urgent: the image begins before all that are not, and takes their place.
        finish: the image is rendered to its end also if the job is one for a draft.

    Raises:
        JobError: code ``scheduler`` for a scheduler or options that cannot be used, ``prompt_too_complex`` for a text
            that cannot be encoded, ``clip_skip_out_of_range`` for more layers than the text encoder has,
            ``size_not_supported`` for sides that the model's latents do not divide, ``strength_too_low`` for a job on
            an image that makes no step, and those of ``require_inputs``, ``AdapterPart.prepare`` and
            ``prepare_second``.

    """
    if job.clip_skip > family.max_clip_skip:
        raise JobError(
            "clip_skip_out_of_range",
            f"clip_skip {job.clip_skip} leaves too little of the text encoder; write 0 to {family.max_clip_skip}",
        )
    image = _prepare_first(family, job, handle, inputs)
    image.cohort, image.interactive, image.urgent = cohort, interactive, urgent or interactive
    image.second = prepare_second(family, image)
    if not finish:
        image.draft_at = draft_evaluations(job.draft, job.num_inference_steps, image.evaluations)
    if image.second is not None:
        image.second.draft_at = image.draft_at
    return image


def _prepare_first(family: Family, job: Job, handle: Hashable, inputs: JobInputs) -> ImageState:
    """Return the only stage of a job, or the first one."""
    width, height = job.width or family.native_width, job.height or family.native_height
    _check_size(family, width, height)
    plan_of = partial(
        plan_for,
        family.scheduler_config,
        job.scheduler,
        job.scheduler_options,
        job.num_inference_steps,
        family.noise_schedule(job.num_inference_steps, width, height),
        steps_made=steps_on_image(family, job),
    )
    plan = plan_of(span=WHOLE if job.refiner is None else Span(end=job.refiner_start))
    # the steps at which a ControlNet or a LoRA is on are counted over the run, also if a refiner ends it
    whole = plan_of() if job.controls or job.loras else plan
    prepared = (part.prepare(job, inputs, whole) for part in family.adapter_parts)
    holds = tuple(hold for hold in prepared if hold is not None)
    factor = family.vae_scale_factor
    shape = LatentShape(height // factor, width // factor)
    noise = NoiseSource(
        job.seed,
        (family.latent_channels, *shape),
        sum(plan.uses_noise),
        family.device,
        draws=sample_draws(family, job),
        skipped=sum(hold.draws for hold in holds),
    )
    origin = make_input_latents(family, job, inputs, plan, noise)
    conditioning = family.row_conditioning(width, height, job.guidance_scale)
    return ImageState(
        job=job,
        handle=handle,
        plan=plan,
        shape=shape,
        width=width,
        height=height,
        prompts=tokenize(family, job, [lora for hold in holds for lora in hold.text_loras]),
        noise=noise,
        conditioning=conditioning if origin is None else {**conditioning, **origin.conditioning},
        inputs=inputs,
        origin=origin,
        holds=holds,
    )


def tokenize(family: Family, job: Job, loras: Sequence[PromptLora] = ()) -> tuple[Prompt, ...]:
    """Return the job's prompt and, if guidance takes a second row, its negative prompt. Thread-safe.

    Both are encoded with the LoRAs.

    Layers are skipped for the prompt only, as in the pipelines of diffusers. In the syntax ``a1111`` they are skipped
    for both, as in its web UI.

    Raises:
        JobError: code ``prompt_too_complex``, or an embedding cannot be used.
    """
    guided = job.guidance_scale > family.guided_above and not family.embeds_guidance
    texts = [job.prompt, job.negative_prompt] if guided else [job.prompt]
    if family.embeddings is not None and not family.embedding_widths:
        for text in texts:
            # fails if it names one, whose words would mean nothing to this model
            family.embeddings.split(text)
    tokens = [family.tokenize(text, job.prompt_syntax) for text in texts]
    text_class = max(each.text_class for each in tokens)
    skipped = [job.clip_skip, job.clip_skip if job.prompt_syntax == "a1111" else 0]
    return tuple(
        Prompt(each.padded(text_class), negative=at > 0, clip_skip=skipped[at], loras=tuple(loras))
        for at, each in enumerate(tokens)
    )


def _check_size(family: Family, width: int, height: int) -> None:
    for name, side in (("width", width), ("height", height)):
        if side % family.pixel_multiple:
            below = side - side % family.pixel_multiple
            raise JobError(
                "size_not_supported",
                f"{name} {side} is not a multiple of {family.pixel_multiple}, as this model needs; "
                f"write {below or family.pixel_multiple} or {below + family.pixel_multiple}",
            )
