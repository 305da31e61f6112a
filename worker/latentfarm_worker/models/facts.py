"""What a worker announces of its model."""

from __future__ import annotations

from latentfarm import schedulers
from latentfarm.model_facts import ModelFacts
from latentfarm_worker.models.base import Family

#: digits of a digest that distinguish models
_DIGEST_DIGITS = 16
_MAX_TEXT = 200


def facts_of(family: Family) -> ModelFacts:
    """Return the facts of a loaded model."""
    return ModelFacts(
        pipeline=family.pipeline,
        model_digest=family.model_digest[:_DIGEST_DIGITS],
        licence=family.licence[:_MAX_TEXT],
        native_width=family.native_width,
        native_height=family.native_height,
        pixel_multiple=family.pixel_multiple,
        num_inference_steps=family.recommended.steps,
        guidance_scale=family.recommended.guidance_scale,
        embeds_guidance=family.embeds_guidance,
        flow=schedulers.is_flow(family.scheduler_config),
        max_prompt_tokens=family.max_prompt_tokens,
        max_clip_skip=family.max_clip_skip,
        inputs=family.inputs,
        required_inputs=family.required_inputs,
    )
