"""The job: its fields, limits and defaults; its states and the allowed moves between them."""

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
#: pixels of a picture's side; also a multiple of 8, the VAE's downsampling
MIN_SIDE, MAX_SIDE, SIDE_MULTIPLE = 64, 2048, 8
#: CLIP reads so many tokens at once, a start and an end among them
MAX_TOKENS = 77
MAX_STEPS = 500
MAX_GUIDANCE = 100.0
#: layers of a text encoder; the deepest that can leave some out, Stable Diffusion 2's, has 23
MAX_CLIP_SKIP = 22
MAX_SEED = 2**63 - 1
MAX_IMAGES_PER_PROMPT = 10_000
#: entries of ``scheduler_options``, and their bytes as JSON
MAX_SCHEDULER_OPTIONS, MAX_OPTIONS_BYTES = 16, 4096
#: columns of a row that nobody here reads but that come back in its results, and their bytes as JSON
MAX_COLUMNS, MAX_COLUMNS_BYTES = 64, 16_384

DEFAULT_STEPS = 25
DEFAULT_GUIDANCE = 7.5

_SELDOM_ASKED = ("guidance_interval", "prompt_syntax", "clip_skip", "image_format")

_BATCH_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_MODEL_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class JobState(IntEnum):
    """A job's state: the byte that the ledger holds for it."""

    PENDING = 0
    LEASED = 1
    DONE = 2
    FAILED = 3
    CANCELLED = 4

    @property
    def word(self) -> str:
        """The state as users read it."""
        return self.name.lower()


#: nothing more happens to a job in one of these by itself
TERMINAL_STATES = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED})

#: every move of a job; the ledger's scripts make no other
ALLOWED_MOVES = frozenset(
    {
        (JobState.PENDING, JobState.LEASED),  # lease
        (JobState.LEASED, JobState.PENDING),  # release, or a lease that ran out
        (JobState.LEASED, JobState.DONE),  # commit
        (JobState.LEASED, JobState.FAILED),  # fail, or the last attempt was lost
        (JobState.PENDING, JobState.FAILED),  # a wrong row of a streamed submission
        (JobState.FAILED, JobState.PENDING),  # retry
        (JobState.PENDING, JobState.CANCELLED),  # cancel
        (JobState.LEASED, JobState.CANCELLED),  # cancel
    }
)


def _prompt_fits(text: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("holds a lone surrogate, which is no text; write valid UTF-8") from None
    if size > MAX_PROMPT_BYTES:
        raise ValueError(f"is {size:,} bytes long; shorten it to {MAX_PROMPT_BYTES:,}")
    if "\0" in text:
        raise ValueError("holds a NUL character; leave it out")
    return text


def _columns_fit(columns: dict[str, Any]) -> dict[str, Any]:
    if len(columns) > MAX_COLUMNS:
        raise ValueError(f"has {len(columns)} entries; keep at most {MAX_COLUMNS}")
    try:
        size = len(json.dumps(columns, ensure_ascii=False, allow_nan=False).encode())
    except ValueError:
        raise ValueError("holds a lone surrogate or a number that is not finite; leave it out") from None
    if size > MAX_COLUMNS_BYTES:
        raise ValueError(f"is {size:,} bytes long as JSON; keep at most {MAX_COLUMNS_BYTES:,}")
    return columns


def _side_fits(side: int) -> int:
    if not MIN_SIDE <= side <= MAX_SIDE:
        raise ValueError(f"is out of range; write {MIN_SIDE} to {MAX_SIDE}")
    if side % SIDE_MULTIPLE:
        below = side - side % SIDE_MULTIPLE
        raise ValueError(f"is not a multiple of {SIDE_MULTIPLE}; write {below} or {below + SIDE_MULTIPLE}")
    return side


def _scheduler_known(name: str) -> str:
    try:
        schedulers.resolve(name)
    except InputError as error:
        raise ValueError(str(error).split(" ", 2)[2]) from None
    return name


def _format_known(name: str) -> str:
    # files end in it, and whoever writes it means that format
    known = JPEG.name if name == JPEG.ending.removeprefix(".") else name
    if known not in IMAGE_FORMATS:
        raise ValueError(f"is not made here; write one of {', '.join(IMAGE_FORMATS)}")
    return known


def _options_fit(options: dict[str, Any]) -> dict[str, Any]:
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
        raise ValueError("holds a lone surrogate or a number too long to write; leave it out") from None
    if size > MAX_OPTIONS_BYTES:
        raise ValueError(f"is {size:,} bytes long as JSON; keep at most {MAX_OPTIONS_BYTES:,}")
    return options


def _interval_read(value: object) -> object:
    # a column of a table, and an option, are text
    return value.split("..") if isinstance(value, str) else value


def _interval_fits(interval: tuple[float, float]) -> tuple[float, float]:
    start, stop = interval
    if not 0 <= start < stop <= 1:
        raise ValueError(f"is {start:g}..{stop:g}; write two shares of the steps such as 0..0.6, 0 <= start < end <= 1")
    return interval


def _no_bool(value: object) -> object:
    # pydantic reads true as 1; a seed of true is a slip, not a number
    if isinstance(value, bool):
        raise ValueError("is a boolean; write a number")
    return value


Prompt = Annotated[str, AfterValidator(_prompt_fits)]
Side = Annotated[int, BeforeValidator(_no_bool), AfterValidator(_side_fits)]
Steps = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=MAX_STEPS)]
Guidance = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)]
GuidanceInterval = Annotated[tuple[float, float], BeforeValidator(_interval_read), AfterValidator(_interval_fits)]
Seed = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=MAX_SEED)]
PromptSyntax = Literal["plain", "a1111"]
ClipSkip = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=MAX_CLIP_SKIP)]
SchedulerField = Annotated[str, AfterValidator(_scheduler_known)]
SchedulerOptions = Annotated[dict[str, Any], AfterValidator(_options_fit)]
ImageFormatField = Annotated[str, AfterValidator(_format_known)]
ClientId = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_prompt_fits)]
Columns = Annotated[dict[str, Any], AfterValidator(_columns_fit)]


class Defaults(BaseModel):
    """What a batch says once for all its rows; a row's own field wins."""

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
    trace: bool | None = None
    image_format: ImageFormatField | None = None
    num_images_per_prompt: Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=MAX_IMAGES_PER_PROMPT)] | None = (
        None
    )

    def given(self) -> dict[str, Any]:
        """Return the fields that are not left open, in the order of their declaration."""
        return {name: value for name, value in self.__dict__.items() if value is not None}


class Row(Defaults):
    """One row of a prompt file, in diffusers' parameter names; ``id`` is the client's own name for it.

    ``columns`` are the row's other columns, kept for the results and read by nobody here.
    """

    prompt: Prompt
    id: ClientId | None = None
    columns: Columns | None = None


class Job(BaseModel):
    """One picture to make: ``batch`` and ``index`` name it, the rest says what it shows.

    ``width`` and ``height`` are pixels; None means the model's native size. ``scheduler`` None is the model's own.
    ``guidance_interval`` are the shares of the steps between which guidance is on (arXiv 2404.07724), None all of them.
    ``prompt_syntax`` a1111 reads weights and long prompts, plain does what diffusers does; ``clip_skip`` is diffusers':
    layers left out at the end of the text encoder.
    ``row`` is the row of the prompt file, from 0, that the job came from; ``trace`` asks for the strip of pictures from
    noise to result beside the picture; ``image_format`` is one of png, webp and jpeg, how the picture is stored.
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
    trace: bool = False
    image_format: ImageFormatField = PNG.name

    @property
    def name(self) -> str:
        """The job's id, ``<batch>/<index>``."""
        return f"{self.batch}/{self.index}"

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is on: two U-Net rows instead of one, as in diffusers (scale > 1)."""
        return self.guidance_scale > 1.0

    @property
    def rows_a_step(self) -> float:
        """How many rows of the U-Net it takes, on average over its steps."""
        start, stop = self.guidance_interval or (0.0, 1.0)
        return 1 + (stop - start) * self.guided

    def request(self) -> dict[str, Any]:
        """What was asked for, in diffusers' parameter names; what few jobs ask for is left out of all others'."""
        usual = {name for name in _SELDOM_ASKED if getattr(self, name) == Job.model_fields[name].default}
        return self.model_dump(exclude={"batch", "index", "row", "id", "columns", "trace", *usual})


def seed_for(batch: str, index: int) -> int:
    """Return the seed, 0 to 2**32 - 1, of a job that names none: it depends on the batch and the index only."""
    digest = hashlib.blake2b(f"{batch}/{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest)


def check_batch_name(name: str) -> str:
    """Return ``name``.

    Raises:
        InputError: it could not serve as part of a key.
    """
    if not _BATCH_NAME.fullmatch(name):
        raise InputError(
            f"batch name {name!r}: write 1 to 64 of a-z, 0-9, '-' and '_', beginning with a letter or digit"
        )
    return name


def check_model_alias(alias: str) -> str:
    """Return ``alias``.

    Raises:
        InputError: it could not serve as part of a queue's name.
    """
    if not _MODEL_ALIAS.fullmatch(alias):
        raise InputError(
            f"model alias {alias!r}: write 1 to 64 of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit"
        )
    return alias


def parse_job_name(name: str) -> tuple[str, int]:
    """Split ``<batch>/<index>``.

    Raises:
        InputError: it is not of that form.
    """
    batch, slash, index = name.partition("/")
    if not slash or not index.isascii() or not index.isdecimal():
        raise InputError(f"job {name!r}: write BATCH/INDEX, such as {batch or 'cats'}/17")
    return check_batch_name(batch), int(index)
