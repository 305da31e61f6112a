"""The fields of a job that begins with an image, or uses a LoRA or another adapter; or has two stages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from latentfarm.limits import (
    MAX_ADAPTER_NAME,
    MAX_ADAPTER_SCALE,
    MAX_CONTROLNETS,
    MAX_HIRES_SCALE,
    MAX_IMAGE_PROMPTS,
    MAX_LORAS,
    MAX_MASK_BLUR,
    MAX_STEPS,
)

#: of an image alone, and of one with a mask, as the pipelines of Stable Diffusion in diffusers
DEFAULT_STRENGTH, DEFAULT_MASKED_STRENGTH = 0.8, 1.0
#: an input image in the bucket: the digest of its bytes
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
#: without the characters that separate names and scales in texts
_NAME = re.compile(r"[^\s,:<>+|/\\]+")


class Control(NamedTuple):
    """One ControlNet of a job.

    ``image``: the digest of the control image. ``scale``: the factor of the net's residuals. ``start``, ``end``: the
    shares of the steps between which it is on. ``preprocessor``: makes the control image from the input.
    """

    name: str
    image: str
    scale: float
    start: float
    end: float
    preprocessor: str


class ImagePrompt(NamedTuple):
    """One image prompt of a job: an IP-Adapter's name, the digest of its image, and its scale."""

    name: str
    image: str
    scale: float


def refuse_bool(value: object) -> object:
    """Refuse a boolean as a number: pydantic reads true as 1, but a seed of true is a mistake."""
    if isinstance(value, bool):
        raise ValueError("is a boolean; write a number")
    return value


def check_adapter_name(name: str) -> str:
    if len(name) > MAX_ADAPTER_NAME or not _NAME.fullmatch(name):
        raise ValueError(
            f"is not a name; write 1 to {MAX_ADAPTER_NAME} characters without spaces and without , : < > + | / \\"
        )
    return name


AdapterName = Annotated[str, AfterValidator(check_adapter_name)]
Scale = Annotated[
    float,
    BeforeValidator(refuse_bool),
    Field(ge=-MAX_ADAPTER_SCALE, le=MAX_ADAPTER_SCALE, allow_inf_nan=False),
]
PositiveScale = Annotated[float, BeforeValidator(refuse_bool), Field(ge=0, le=MAX_ADAPTER_SCALE, allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(refuse_bool), Field(ge=0, le=1, allow_inf_nan=False)]
LoraStart = Annotated[float, BeforeValidator(refuse_bool), Field(ge=0, lt=1, allow_inf_nan=False)]


class LoraUse(BaseModel):
    """A LoRA of a job.

    Attributes:
        name: the LoRA.
        scale: the factor of its changes.
        start: the share of the steps from which it is on. If it is not 0, the LoRA does not change text encoders, since
            text is encoded before the first step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: AdapterName
    scale: Scale = 1.0
    start: LoraStart = 0.0

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, given: object) -> object:
        """Read ``name``, ``name:scale`` or ``name:scale@start``."""
        if not isinstance(given, str):
            return given
        name, separator, scale = given.strip().partition(":")
        if not separator:
            return {"name": name}
        scale, separator, start = scale.partition("@")
        return {"name": name, "scale": scale, **({"start": start} if separator else {})}

    @model_serializer(mode="wrap")
    def _omit_default(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the fields; without the start of a LoRA that is on in all steps, as before there was one."""
        fields: dict[str, Any] = serialize(self)
        if not self.start:
            del fields["start"]
        return fields


def _split(separator: str) -> Callable[[object], object]:
    """Return what reads a list from a text: a JSON list, or values between separators. One value is a list of one."""

    def split(given: object) -> object:
        if isinstance(given, str):
            text = given.strip()
            if text.startswith("["):
                try:
                    return json.loads(text)
                except ValueError:
                    raise ValueError("is not a JSON list") from None
            # a data URL has a comma of its own
            return [given] if text.startswith("data:") else [part.strip() for part in text.split(separator)]
        return given if isinstance(given, list | tuple) else [given]

    return split


def _check_digest(source: str) -> str:
    if not _DIGEST.fullmatch(source):
        raise ValueError("is not the sha256 of a stored input")
    return source


_List = BeforeValidator(_split(","))
#: written out, because a reference would be to a definition that a larger schema does not have
_LORAS_SCHEMA = {
    "type": "array",
    "maxItems": MAX_LORAS,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "scale": {"type": "number", "minimum": -MAX_ADAPTER_SCALE, "maximum": MAX_ADAPTER_SCALE},
            "start": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
        },
        "required": ["name"],
        "additionalProperties": False,
    },
}
Loras = Annotated[tuple[LoraUse, ...], _List, Field(max_length=MAX_LORAS), WithJsonSchema(_LORAS_SCHEMA)]
Digest = Annotated[str, AfterValidator(_check_digest)]
#: a file, a URL or a digest, as a row has it
Source = Annotated[str, Field(min_length=1)]
Strength = Annotated[float, BeforeValidator(refuse_bool), Field(gt=0, le=1, allow_inf_nan=False)]
Resize = Literal["crop", "pad", "stretch"]
MaskBlur = Annotated[int, BeforeValidator(refuse_bool), Field(ge=0, le=MAX_MASK_BLUR)]
Preprocessor = Literal["none", "canny"]
HiresScale = Annotated[float, BeforeValidator(refuse_bool), Field(gt=1, le=MAX_HIRES_SCALE, allow_inf_nan=False)]
HiresSteps = Annotated[int, BeforeValidator(refuse_bool), Field(ge=1, le=MAX_STEPS)]
HiresUpscaler = Literal["latent", "pixel"]
RefinerStart = Annotated[float, BeforeValidator(refuse_bool), Field(gt=0, lt=1, allow_inf_nan=False)]
Safety = Literal["off", "score", "refuse"]
_OfNets = Field(min_length=1, max_length=MAX_CONTROLNETS)
_OfPrompts = Field(min_length=1, max_length=MAX_IMAGE_PROMPTS)
NetNames = Annotated[tuple[AdapterName, ...], _List, _OfNets]
NetSources = Annotated[tuple[Source, ...], _List, _OfNets]
NetDigests = Annotated[tuple[Digest, ...], _List, _OfNets]
NetScales = Annotated[tuple[PositiveScale, ...], _List, _OfNets]
NetShares = Annotated[tuple[Share, ...], _List, _OfNets]
NetPreprocessors = Annotated[tuple[Preprocessor, ...], _List, _OfNets]
PromptNames = Annotated[tuple[AdapterName, ...], _List, _OfPrompts]
PromptSources = Annotated[tuple[Source, ...], _List, _OfPrompts]
PromptDigests = Annotated[tuple[Digest, ...], _List, _OfPrompts]
PromptScales = Annotated[tuple[Scale, ...], _List, _OfPrompts]

#: fields of a row that hold one source, and those that hold several
SOURCE_FIELDS = ("image", "mask_image")
SOURCE_LIST_FIELDS = ("control_image", "ip_adapter_image")
#: fields of a second stage
SECOND_STAGE_FIELDS = ("refiner", "refiner_start", "hires_scale", "hires_steps", "hires_strength", "hires_upscaler")
#: lists that belong together, each by the one that sets their length
_LISTS = {
    "controlnet": (
        "control_image",
        "controlnet_conditioning_scale",
        "control_guidance_start",
        "control_guidance_end",
        "control_preprocessor",
    ),
    "ip_adapter": ("ip_adapter_image", "ip_adapter_scale"),
}


class EditDefaults(BaseModel):
    """The optional fields of a row. A source is a file, a URL or a digest."""

    image: Source | None = None
    mask_image: Source | None = None
    strength: Strength | None = None
    resize: Resize | None = None
    mask_blur: MaskBlur | None = None
    loras: Loras | None = None
    controlnet: NetNames | None = None
    control_image: NetSources | None = None
    controlnet_conditioning_scale: NetScales | None = None
    control_guidance_start: NetShares | None = None
    control_guidance_end: NetShares | None = None
    control_preprocessor: NetPreprocessors | None = None
    ip_adapter: PromptNames | None = None
    ip_adapter_image: PromptSources | None = None
    ip_adapter_scale: PromptScales | None = None
    hires_scale: HiresScale | None = None
    hires_steps: HiresSteps | None = None
    hires_strength: Strength | None = None
    hires_upscaler: HiresUpscaler | None = None
    refiner: AdapterName | None = None
    refiner_start: RefinerStart | None = None
    safety: Safety | None = None


class EditFields(BaseModel):
    """The fields of a job besides those of a text alone.

    Attributes:
        image: the digest of the input image that the job begins with.
        mask_image: the digest of a mask: white is painted again, black is kept.
        strength: the share of the steps that is made on an image; None is the default.
        resize: how an input of another size becomes that of the job; None refuses it.
        mask_blur: pixels of the blur of the mask.
        loras: LoRAs, their scales, and the shares of the steps from which they are on.
        controlnet: names of ControlNets. The other lists have an entry for each, or one for all.
        control_image: digests of the control images.
        ip_adapter: names of IP-Adapters; so for them.
        hires_scale: the factor of the sides of a second stage; None is no second stage.
        hires_steps: the steps of the second stage before its strength is applied; None is those of the first.
        hires_strength: the share of these steps that is made.
        hires_upscaler: whether latents or pixels are enlarged.
        refiner: the name of a refiner, which makes the last steps.
        refiner_start: the share of the steps that are made before it.
        safety: ``score`` records scores of unsafe concepts, ``refuse`` fails a job whose image has one.
    """

    image: Digest | None = None
    mask_image: Digest | None = None
    strength: Strength | None = None
    resize: Resize | None = None
    mask_blur: MaskBlur = 0
    loras: Loras = ()
    controlnet: NetNames | None = None
    control_image: NetDigests | None = None
    controlnet_conditioning_scale: NetScales = (1.0,)
    control_guidance_start: NetShares = (0.0,)
    control_guidance_end: NetShares = (1.0,)
    control_preprocessor: NetPreprocessors = ("none",)
    ip_adapter: PromptNames | None = None
    ip_adapter_image: PromptDigests | None = None
    ip_adapter_scale: PromptScales = (1.0,)
    hires_scale: HiresScale | None = None
    hires_steps: HiresSteps | None = None
    hires_strength: Strength = 0.7
    hires_upscaler: HiresUpscaler = "latent"
    refiner: AdapterName | None = None
    refiner_start: RefinerStart = 0.8
    safety: Safety = "off"

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if problem := find_conflict(self.__dict__):
            raise ValueError(problem)
        return self

    @property
    def effective_strength(self) -> float:
        """Return the share of the steps that is made: 1 without an input image."""
        if self.image is None:
            return 1.0
        default = DEFAULT_STRENGTH if self.mask_image is None else DEFAULT_MASKED_STRENGTH
        return default if self.strength is None else self.strength

    @property
    def controls(self) -> tuple[Control, ...]:
        """Return the job's ControlNets."""
        return controls_of(self.__dict__)

    @property
    def image_prompts(self) -> tuple[ImagePrompt, ...]:
        """Return the job's image prompts."""
        return tuple(ImagePrompt(*values) for values in _zip_lists(self.__dict__, "ip_adapter"))

    @property
    def input_digests(self) -> tuple[str, ...]:
        """Return the digests of the job's input images, each once."""
        digests = (self.image, self.mask_image, *(self.control_image or ()), *(self.ip_adapter_image or ()))
        return tuple(dict.fromkeys(digest for digest in digests if digest is not None))


#: the names of the fields above
EDIT_FIELDS = tuple(EditFields.model_fields)


def find_conflict(fields: dict[str, Any]) -> str | None:
    """Return the problem and cure of fields that do not fit each other, or None. Fields may be missing."""
    if fields.get("mask_image") is not None and fields.get("image") is None:
        return "mask_image has no image; write image, or remove the mask"
    if fields.get("mask_image") is not None and fields.get("hires_scale") is not None:
        return "hires_scale paints all of an image again, also what mask_image keeps; remove one of them"
    for name in ("image", "hires_scale"):
        if fields.get("refiner") is not None and fields.get(name) is not None:
            return f"refiner ends a run of one size that begins with noise, and there is {name}; remove one of them"
    for name, others in _LISTS.items():
        names, images = fields.get(name), fields.get(others[0])
        if names is None and images is None:
            continue
        if names is None or images is None:
            given, missing = (others[0], name) if names is None else (name, others[0])
            return f"{given} has no {missing}; write both"
        for other in others:
            count = len(fields.get(other) or (None,))
            if count not in (1, len(names)):
                return f"{other} has {count} entries and {name} has {len(names)}; write one for each, or one for all"
    return None


def controls_of(fields: dict[str, Any]) -> tuple[Control, ...]:
    """Return the ControlNets of a job's fields, which must all be there."""
    return tuple(Control(*values) for values in _zip_lists(fields, "controlnet"))


def _zip_lists(fields: dict[str, Any], name: str) -> list[tuple[Any, ...]]:
    """Return the entries of the lists that belong together; a list of one holds for all."""
    names = fields[name] or ()
    lists = ((fields[other] or ()) for other in _LISTS[name])
    columns = (values * len(names) if len(values) == 1 else values for values in lists)
    return list(zip(names, *columns, strict=True)) if names else []
