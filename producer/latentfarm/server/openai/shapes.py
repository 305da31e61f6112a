"""Bodies and answers of images and models, as OpenAI's reference has them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from latentfarm.model_facts import ModelFacts

MAX_IMAGES = 10


def _refuse_text(value: object) -> object:
    # pydantic reads "4" as 4 and true as 1
    if isinstance(value, bool | str):
        raise ValueError("write a number")
    return value


class ImageBody(BaseModel):
    """What to render. Fields of prompt rows, such as ``num_inference_steps``, are accepted beside these."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"example": {"prompt": "a red circle", "seed": 7}})

    prompt: Annotated[str, Field(description="what the image shows")]
    model: Annotated[str | None, Field(description="the model; OpenAI's own names mean the default one")] = None
    n: Annotated[int | None, BeforeValidator(_refuse_text), Field(ge=1, le=MAX_IMAGES)] = None
    response_format: Literal["url", "b64_json"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int | None, BeforeValidator(_refuse_text), Field(ge=0, le=3)] = None


class EditForm(BaseModel):
    """What to edit, as a form. Edits are not supported yet."""

    image: bytes
    prompt: str = ""


class EditBody(BaseModel):
    """What to edit, as JSON. Edits are not supported yet."""

    images: list[dict[str, Any]] = Field(default_factory=list)
    prompt: str = ""


class TokenDetails(BaseModel):
    """Tokens of texts and of images."""

    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """Input tokens are those of the prompts; output tokens are positions of the latents, 64 pixels each."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    output_tokens_details: TokenDetails
    total_tokens: int


class ImageEntry(BaseModel):
    """One image: its file in base64, or a URL of it."""

    b64_json: str | None = None
    url: str | None = None


class ImagesAnswer(BaseModel):
    """Finished images."""

    created: int
    background: Literal["opaque"] = "opaque"
    data: list[ImageEntry]
    output_format: str
    size: str
    usage: Usage
    #: what was passed over or read otherwise; OpenAI's clients ignore it
    notes: list[str] | None = None


class ModelAnswer(BaseModel):
    """A model that the farm serves. ``facts`` are what its workers have announced: its sizes and its defaults."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "latentfarm"
    facts: ModelFacts | None = None


class ModelList(BaseModel):
    """The models that the farm serves."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]
