"""The job: its fields, limits and defaults; its states and the allowed transitions between them."""

from __future__ import annotations

import hashlib
import json
import re
from enum import IntEnum
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from latentfarm import schedulers
from latentfarm.errors import InputError
from latentfarm.image_formats import IMAGE_FORMATS, JPEG, PNG

#: jobs in one part of the manifest and of the results
PART_JOBS = 1_000
#: bytes of UTF-8 in one prompt
MAX_PROMPT_BYTES = 4096
#: pixels of an image's side; 8 is the VAE's downsampling
MIN_SIDE, MAX_SIDE, SIDE_MULTIPLE = 64, 2048, 8
#: tokens in one window of CLIP, start and end included
MAX_TOKENS = 77
MAX_STEPS = 500
MAX_GUIDANCE = 100.0
#: layers of a text encoder that may be skipped; Stable Diffusion 2's, the deepest, has 23
MAX_CLIP_SKIP = 22
MAX_SEED = 2**63 - 1
MAX_IMAGES_PER_PROMPT = 10_000
#: entries in ``scheduler_options``, and their bytes as JSON
MAX_SCHEDULER_OPTIONS, MAX_OPTIONS_BYTES = 16, 4096
#: columns of a row that are copied to its results unread, and their bytes as JSON
MAX_COLUMNS, MAX_COLUMNS_BYTES = 64, 16_384

DEFAULT_STEPS = 25
DEFAULT_GUIDANCE = 7.5

#: the error code of an invalid row's job
INVALID_ROW = "invalid_row"

#: fields that a request lists only if they differ from their defaults
_RARE_FIELDS = ("guidance_interval", "prompt_syntax", "clip_skip", "image_format")

_BATCH_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_MODEL_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class JobState(IntEnum):
    """A job's state: its byte in the ledger."""

    PENDING = 0
    LEASED = 1
    DONE = 2
    FAILED = 3
    CANCELLED = 4

    @property
    def word(self) -> str:
        """The state's name for users."""
        return self.name.lower()


#: a job leaves these states only on a user's command
TERMINAL_STATES = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED})

#: every transition of a job; the ledger's scripts make no other
ALLOWED_MOVES = frozenset(
    {
        (JobState.PENDING, JobState.LEASED),  # lease
        (JobState.LEASED, JobState.PENDING),  # release, or the lease expired
        (JobState.LEASED, JobState.DONE),  # commit
        (JobState.LEASED, JobState.FAILED),  # fail, or the last attempt was lost
        (JobState.PENDING, JobState.FAILED),  # an invalid row of a streamed submission
        (JobState.FAILED, JobState.PENDING),  # retry
        (JobState.PENDING, JobState.CANCELLED),  # cancel
        (JobState.LEASED, JobState.CANCELLED),  # cancel
    }
)


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
    except InputError as error:
        raise ValueError(str(error).removeprefix(f"scheduler {name!r} ")) from None
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


def _check_interval(interval: tuple[float, float]) -> tuple[float, float]:
    start, stop = interval
    if not 0 <= start < stop <= 1:
        raise ValueError(f"is {start:g}..{stop:g}; write two shares of the steps such as 0..0.6, 0 <= start < end <= 1")
    return interval


def _refuse_bool(value: object) -> object:
    # pydantic reads true as 1, but a seed of true is a mistake
    if isinstance(value, bool):
        raise ValueError("is a boolean; write a number")
    return value


Prompt = Annotated[str, AfterValidator(_check_prompt)]
Side = Annotated[int, BeforeValidator(_refuse_bool), AfterValidator(_check_side)]
Steps = Annotated[int, BeforeValidator(_refuse_bool), Field(ge=1, le=MAX_STEPS)]
Guidance = Annotated[float, BeforeValidator(_refuse_bool), Field(ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)]
GuidanceInterval = Annotated[tuple[float, float], BeforeValidator(_parse_interval), AfterValidator(_check_interval)]
Seed = Annotated[int, BeforeValidator(_refuse_bool), Field(ge=0, le=MAX_SEED)]
PromptSyntax = Literal["plain", "a1111"]
ClipSkip = Annotated[int, BeforeValidator(_refuse_bool), Field(ge=0, le=MAX_CLIP_SKIP)]
SchedulerField = Annotated[str, AfterValidator(_check_scheduler)]
SchedulerOptions = Annotated[dict[str, Any], AfterValidator(_check_options)]
ImageFormatField = Annotated[str, AfterValidator(_check_format)]
ClientId = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_check_prompt)]
Columns = Annotated[dict[str, Any], AfterValidator(_check_columns)]


class Defaults(BaseModel):
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
    image_format: ImageFormatField | None = None
    num_images_per_prompt: (
        Annotated[int, BeforeValidator(_refuse_bool), Field(ge=1, le=MAX_IMAGES_PER_PROMPT)] | None
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


class Job(BaseModel):
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
        """Return pixels x steps x U-Net rows, so that the cost of jobs of any size can be compared."""
        return pixels * self.num_inference_steps * self.rows_per_step

    def request(self) -> dict[str, Any]:
        """Return the fields that determine the image, in diffusers' names, less rare fields at their default."""
        unused = {name for name in _RARE_FIELDS if getattr(self, name) == Job.model_fields[name].default}
        return self.model_dump(exclude={"batch", "index", "row", "id", "columns", "save_intermediates", *unused})


def default_seed(batch: str, index: int) -> int:
    """Return the seed, 0 to 2**32 - 1, of a job without one. It depends on the batch and the index only."""
    digest = hashlib.blake2b(f"{batch}/{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest)


def check_batch_name(name: str) -> str:
    """Return ``name``.

    Raises:
        InputError: the name cannot be part of an object key.
    """
    if not _BATCH_NAME.fullmatch(name):
        raise InputError(
            f"batch name {name!r}: write 1 to 64 of a-z, 0-9, '-' and '_', beginning with a letter or digit"
        )
    return name


def check_model_alias(alias: str) -> str:
    """Return ``alias``.

    Raises:
        InputError: the alias cannot be part of a queue's name.
    """
    if not _MODEL_ALIAS.fullmatch(alias):
        raise InputError(
            f"model alias {alias!r}: write 1 to 64 of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit"
        )
    return alias


def parse_job_name(name: str) -> tuple[str, int]:
    """Split ``<batch>/<index>``.

    Raises:
        InputError: the name has another form.
    """
    batch, slash, index = name.partition("/")
    if not slash or not index.isascii() or not index.isdecimal():
        raise InputError(f"job {name!r}: write BATCH/INDEX, such as {batch or 'cats'}/17")
    return check_batch_name(batch), int(index)
