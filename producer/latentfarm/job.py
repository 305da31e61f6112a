"""The job: the fields of a prompt row, and how they are validated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from latentfarm import schedulers
from latentfarm.edit_fields import (
    EDIT_FIELDS,
    SECOND_STAGE_FIELDS,
    AdapterName,
    EditDefaults,
    EditFields,
    refuse_bool,
)
from latentfarm.errors import InputError
from latentfarm.image_formats import IMAGE_FORMATS, JPEG, PNG
from latentfarm.limits import (
    DEFAULT_GUIDANCE,
    DEFAULT_STEPS,
    MAX_CLIP_SKIP,
    MAX_COLUMNS,
    MAX_COLUMNS_BYTES,
    MAX_GUIDANCE,
    MAX_IMAGES_PER_PROMPT,
    MAX_OPTIONS_BYTES,
    MAX_PARTIAL_IMAGES,
    MAX_PROMPT_BYTES,
    MAX_SCHEDULER_OPTIONS,
    MAX_SCORERS,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    MIN_SIDE,
    SIDE_MULTIPLE,
)
from latentfarm.samplers import resolve_sampler
from latentfarm.step_counts import steps_made

#: fields that a request lists only if they differ from their defaults
_RARE_FIELDS = ("guidance_interval", "prompt_syntax", "clip_skip", "image_format", *EDIT_FIELDS)
#: fields that make no difference to the first steps of an image, but to later ones or to its second stage
LATER_FIELDS = frozenset(
    {
        *("guidance_scale", "guidance_interval", "negative_prompt", "loras", "controlnet_conditioning_scale"),
        *("control_guidance_start", "control_guidance_end", *SECOND_STAGE_FIELDS, "image_format"),
    }
)
#: fields for what is made besides the image, which does not depend on them
_BESIDES = ("save_intermediates", "partial_images", "safety", "draft", "scorers")


def _check_prompt(text: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("contains a lone surrogate; write valid UTF-8") from None
    if size > MAX_PROMPT_BYTES:
        raise ValueError(f"is {size:,} bytes long; shorten it to {MAX_PROMPT_BYTES:,}")
    if "\0" in text:
        raise ValueError("contains a NUL character; remove it")
    return text


def _check_columns(columns: dict[str, Any]) -> dict[str, Any]:
    if len(columns) > MAX_COLUMNS:
        raise ValueError(f"has {len(columns)} entries; keep at most {MAX_COLUMNS}")
    try:
        size = len(json.dumps(columns, ensure_ascii=False, allow_nan=False).encode())
    except ValueError:
        raise ValueError("contains a lone surrogate or a number that is not finite; remove it") from None
    if size > MAX_COLUMNS_BYTES:
        raise ValueError(f"is {size:,} bytes long as JSON; keep at most {MAX_COLUMNS_BYTES:,}")
    return columns


def _check_side(side: int) -> int:
    if not MIN_SIDE <= side <= MAX_SIDE:
        raise ValueError(f"is out of range; write {MIN_SIDE} to {MAX_SIDE}")
    if side % SIDE_MULTIPLE:
        below = side - side % SIDE_MULTIPLE
        raise ValueError(f"is not a multiple of {SIDE_MULTIPLE}; write {below} or {below + SIDE_MULTIPLE}")
    return side


def _check_scheduler(name: str) -> str:
    try:
        schedulers.resolve(name)
    except InputError:
        raise ValueError(f"is a name of another tool; write {resolve_sampler(name)}") from None
    return name


def _check_format(name: str) -> str:
    # "jpg", the extension, is accepted too
    known = JPEG.name if name == JPEG.extension.removeprefix(".") else name
    if known not in IMAGE_FORMATS:
        raise ValueError(f"is not supported; write one of {', '.join(IMAGE_FORMATS)}")
    return known


def _check_options(options: dict[str, Any]) -> dict[str, Any]:
    if len(options) > MAX_SCHEDULER_OPTIONS:
        raise ValueError(f"has {len(options)} entries; write at most {MAX_SCHEDULER_OPTIONS}")
    for key, value in options.items():
        if not key.isidentifier() or key.startswith("_"):
            raise ValueError(f"has the key {key!r}; write a field of the scheduler's config")
        if isinstance(value, float) and not isfinite(value):
            raise ValueError(f"has {value} under {key!r}; write a finite number")
        if not isinstance(value, bool | int | float | str | None):
            raise ValueError(f"has a {type(value).__name__} under {key!r}; write a number, a text or a boolean")
    try:
        size = len(json.dumps(options, ensure_ascii=False).encode())
    except ValueError:
        raise ValueError("contains a lone surrogate or a number with too many digits; remove it") from None
    if size > MAX_OPTIONS_BYTES:
        raise ValueError(f"is {size:,} bytes long as JSON; keep at most {MAX_OPTIONS_BYTES:,}")
    return options


def _parse_interval(value: object) -> object:
    # columns of a table and command-line options are text
    return value.split("..") if isinstance(value, str) else value


def _check_draft(draft: float) -> float:
    if draft > 1 and not draft.is_integer():
        raise ValueError("is neither; write a share of the steps such as 0.3 or 30%, or a number of steps such as 8")
    return draft


def _parse_share(value: object) -> object:
    # columns of a table are text
    number = value.strip() if isinstance(value, str) else ""
    if not number.endswith("%"):
        return refuse_bool(value)
    try:
        share = float(number.removesuffix("%")) / 100
    except ValueError:
        return value
    return share if share < 1 else -1


def _parse_names(value: object) -> object:
    # columns of a table and command-line options are text
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


def _check_interval(interval: tuple[float, float]) -> tuple[float, float]:
    start, stop = interval
    if not 0 <= start < stop <= 1:
        raise ValueError(f"is {start:g}..{stop:g}; write two shares of the steps such as 0..0.6, 0 <= start < end <= 1")
    return interval


Prompt = Annotated[str, AfterValidator(_check_prompt)]
Side = Annotated[int, BeforeValidator(refuse_bool), AfterValidator(_check_side)]
Steps = Annotated[int, BeforeValidator(refuse_bool), Field(ge=1, le=MAX_STEPS)]
Guidance = Annotated[float, BeforeValidator(refuse_bool), Field(ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)]
GuidanceInterval = Annotated[tuple[float, float], BeforeValidator(_parse_interval), AfterValidator(_check_interval)]
Seed = Annotated[int, BeforeValidator(refuse_bool), Field(ge=0, le=MAX_SEED)]
PromptSyntax = Literal["plain", "a1111"]
PartialImages = Annotated[int, BeforeValidator(refuse_bool), Field(ge=0, le=MAX_PARTIAL_IMAGES)]
Draft = Annotated[float, BeforeValidator(_parse_share), Field(ge=0, le=MAX_STEPS), AfterValidator(_check_draft)]
Scorers = Annotated[tuple[AdapterName, ...], BeforeValidator(_parse_names), Field(max_length=MAX_SCORERS)]
ClipSkip = Annotated[int, BeforeValidator(refuse_bool), Field(ge=0, le=MAX_CLIP_SKIP)]
SchedulerField = Annotated[str, AfterValidator(_check_scheduler)]
SchedulerOptions = Annotated[dict[str, Any], AfterValidator(_check_options)]
ImageFormatField = Annotated[str, AfterValidator(_check_format)]
ClientId = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_check_prompt)]
Columns = Annotated[dict[str, Any], AfterValidator(_check_columns)]


class Defaults(EditDefaults):
    """A batch's defaults for all its rows. A row's own field takes precedence."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    negative_prompt: Prompt | None = None
    width: Side | None = None
    height: Side | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    guidance_interval: GuidanceInterval | None = None
    seed: Seed | None = None
    scheduler: SchedulerField | None = None
    scheduler_options: SchedulerOptions | None = None
    prompt_syntax: PromptSyntax | None = None
    clip_skip: ClipSkip | None = None
    save_intermediates: bool | None = None
    partial_images: PartialImages | None = None
    draft: Draft | None = None
    scorers: Scorers | None = None
    image_format: ImageFormatField | None = None
    num_images_per_prompt: (
        Annotated[int, BeforeValidator(refuse_bool), Field(ge=1, le=MAX_IMAGES_PER_PROMPT)] | None
    ) = None

    def given(self) -> dict[str, Any]:
        """Return the fields that are set, in the order of their declaration."""
        return {name: value for name, value in self.__dict__.items() if value is not None}


class Row(Defaults):
    """One row of a prompt file, in diffusers' parameter names.

    ``id`` is the client's own name for the row; ``columns`` are other columns, copied to the results unread.
    """

    prompt: Prompt
    id: ClientId | None = None
    columns: Columns | None = None


class Job(EditFields):
    """One image to render. ``batch`` and ``index`` identify it; the other fields determine it.

    Attributes:
        row: the row of the prompt file, counted from 0, that the job comes from.
        id: the client's own name for the row.
        columns: other columns of the row, copied to the results unread.
        width: pixels; None is the model's native size. So is ``height``.
        guidance_interval: the shares of the steps between which guidance is on (arXiv 2404.07724); None is all steps.
        scheduler: a short name or a diffusers class; None is the model's own.
        prompt_syntax: ``a1111`` reads weights and long prompts; ``plain`` does what diffusers does.
        clip_skip: as in diffusers: layers skipped at the end of the text encoder.
        save_intermediates: also store the strip of intermediate images, from noise to result.
        partial_images: estimates of the image that are stored and announced while it is made.
        draft: stop after this share of the steps, or after so many steps from 1 on, until the job is finished or
            discarded; 0: render it to its end.
        scorers: names of the scorers whose scores are recorded.
        image_format: ``png``, ``webp`` or ``jpeg``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: str
    index: Annotated[int, Field(ge=0)]
    row: Annotated[int, Field(ge=0)] = 0
    id: ClientId | None = None
    columns: Columns | None = None
    prompt: Prompt
    negative_prompt: Prompt = ""
    width: Side | None = None
    height: Side | None = None
    num_inference_steps: Steps = DEFAULT_STEPS
    guidance_scale: Guidance = DEFAULT_GUIDANCE
    guidance_interval: GuidanceInterval | None = None
    seed: Seed
    scheduler: SchedulerField | None = None
    scheduler_options: SchedulerOptions = Field(default_factory=dict)
    prompt_syntax: PromptSyntax = "plain"
    clip_skip: ClipSkip = 0
    save_intermediates: bool = False
    partial_images: PartialImages = 0
    draft: Draft = 0.0
    scorers: Scorers = ()
    image_format: ImageFormatField = PNG.name

    @property
    def name(self) -> str:
        """The job's name, ``<batch>/<index>``."""
        return f"{self.batch}/{self.index}"

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is on, as in diffusers: scale > 1. It doubles the U-Net rows."""
        return self.guidance_scale > 1.0

    @property
    def rows_per_step(self) -> float:
        """U-Net rows per step, averaged over the steps."""
        start, stop = self.guidance_interval or (0.0, 1.0)
        return 1 + (stop - start) * self.guided

    def compute_cost(self, pixels: int) -> float:
        """Return pixels x steps x U-Net rows, so that the cost of jobs of any size can be compared.

        Args:
            pixels: of the image; with a second stage, of its result.
        """
        steps = float(steps_made(self.num_inference_steps, self.effective_strength))
        if self.hires_scale is not None:
            second = steps_made(self.hires_steps or self.num_inference_steps, self.hires_strength)
            steps = steps / self.hires_scale**2 + second
        return pixels * steps * self.rows_per_step

    def request(self) -> dict[str, Any]:
        """Return the fields that determine the image, in diffusers' names, less rare fields at their default."""
        unused = {name for name in _RARE_FIELDS if getattr(self, name) == Job.model_fields[name].default}
        return self.model_dump(exclude={"batch", "index", "row", "id", "columns", *_BESIDES, *unused})


def job_of_result(result: Mapping[str, Any]) -> Job:
    """Return the job of a result, as ``Batch.results`` has it: with what the worker has filled in, such as the size.

    Raises:
        ValidationError: the result is not one that latentfarm writes.
    """
    request = {name: value for name, value in result["request"].items() if name in Job.model_fields}
    batch, _, index = str(result["job"]).rpartition("/")
    return Job.model_validate({**request, "batch": batch, "index": index})


def default_seed(batch: str, index: int) -> int:
    """Return the seed, 0 to 2**32 - 1, of a job without one. It depends on the batch and the index only."""
    digest = hashlib.blake2b(f"{batch}/{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest)
