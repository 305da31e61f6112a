"""What a model is and needs, as its workers announce it. Submissions are checked against it, and get its defaults.

Imports no torch.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentfarm.adapter_kind import AdapterKind
from latentfarm.limits import (
    DEFAULT_GUIDANCE,
    DEFAULT_STEPS,
    MAX_GUIDANCE,
    MAX_SIDE,
    MAX_STEPS,
    MAX_TOKENS,
    SIDE_MULTIPLE,
)

_Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
_Text = Annotated[str, Field(max_length=200)]


class ModelFacts(BaseModel):
    """Facts of one model.

    Attributes:
        pipeline: the diffusers pipeline that renders the same images.
        model_digest: the first digits of the sha256 over its weights.
        licence: as the model's files state it; empty: they state none.
        native_width: pixels of an image without a size of its own. So is ``native_height``.
        pixel_multiple: width and height are multiples of it.
        num_inference_steps: steps of a row that sets none.
        guidance_scale: guidance of a row that sets none.
        embeds_guidance: guidance is an input of the model, instead of a second row in each step.
        flow: the model was trained by flow matching, which other schedulers fit.
        max_prompt_tokens: longer prompts are cut, start and end tokens included.
        max_clip_skip: layers of the text encoder that can be skipped.
        inputs: fields of input images that rows may have; None: not known.
        required_inputs: those that each row must have.
        safety_checker: whether its workers can check images; None: they do not state it.
        scorers: the names of its workers' scorers; None: they do not state them.
        adapters: the names of its workers' adapters by kind; None: not known. They change, so they are no part of the
            JSON that batches keep.
    """

    # a newer worker may announce more
    model_config = ConfigDict(frozen=True, extra="ignore")

    pipeline: _Text
    model_digest: _Text
    licence: _Text = ""
    native_width: _Side
    native_height: _Side
    pixel_multiple: _Side = SIDE_MULTIPLE
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = DEFAULT_STEPS
    guidance_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)] = DEFAULT_GUIDANCE
    embeds_guidance: bool = False
    flow: bool = False
    max_prompt_tokens: Annotated[int, Field(ge=1)] = MAX_TOKENS
    max_clip_skip: Annotated[int, Field(ge=0)] = 0
    inputs: tuple[_Text, ...] | None = None
    required_inputs: tuple[_Text, ...] = ()
    safety_checker: bool | None = None
    scorers: tuple[_Text, ...] | None = None
    adapters: Annotated[dict[AdapterKind, tuple[str, ...]] | None, Field(exclude=True)] = None

    @classmethod
    def parse(cls, text: str | bytes) -> ModelFacts | None:
        """Return the facts that a worker has written as JSON; None if they are not valid here."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None


def model_defaults(facts: ModelFacts | None) -> dict[str, Any]:
    """Return the fields of rows that set none: those of the model, or 25 steps and a scale of 7.5 if it is unknown."""
    if facts is None:
        return {"num_inference_steps": DEFAULT_STEPS, "guidance_scale": DEFAULT_GUIDANCE}
    return {"num_inference_steps": facts.num_inference_steps, "guidance_scale": facts.guidance_scale}
