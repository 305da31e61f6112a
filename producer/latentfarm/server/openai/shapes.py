"""Bodies and answers of images and models, as OpenAI's reference has them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from latentfarm.model_facts import ModelFacts
from latentfarm.server.http.request_error import RequestError

MAX_IMAGES = 10
_FILE = WithJsonSchema({"type": "string", "contentMediaType": "application/octet-stream"})


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
    """What to edit, as a form. Fields of prompt rows, such as ``strength``, are accepted beside these.

    ``mask`` is transparent where the image is painted again, as OpenAI's are. ``mask_image`` is white there.
    """

    image: Annotated[bytes, _FILE]
    prompt: str
    mask: Annotated[bytes, _FILE] = b""
    mask_image: Annotated[bytes, _FILE] = b""
    model: str = ""
    n: int = 1


class VariationForm(BaseModel):
    """An image to vary. Variations are not supported."""

    image: Annotated[bytes, _FILE]


class ImageReference(BaseModel):
    """An image: a URL, an ``https`` or a ``data`` one, or the id of an uploaded file."""

    model_config = ConfigDict(extra="forbid")

    image_url: str | None = None
    file_id: str | None = None

    def source(self, param: str) -> str:
        """Return the source that a row has.

        Raises:
            RequestError: there are both or none; ``param`` is the field.
        """
        if not (self.image_url or self.file_id) or (self.image_url and self.file_id):
            text = f"{param} has both image_url and file_id, or none; send one of them"
            raise RequestError(400, "invalid_request", text, param=param)
        return self.image_url or str(self.file_id)


class EditBody(BaseModel):
    """What to edit, as JSON: an entry of ``images``, or ``image``. Fields of prompt rows are accepted beside these."""

    model_config = ConfigDict(extra="allow")

    prompt: str
    images: list[ImageReference] = Field(default_factory=list)
    mask: ImageReference | None = None


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
