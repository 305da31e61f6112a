"""One image in flight: its job, plan, prompts and progress."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil

import torch

from latentfarm.adapter_kind import AdapterKind
from latentfarm.job import Job
from latentfarm_worker.adapters.base import Hold, UsedAdapter
from latentfarm_worker.engine.image_checkpoint import FirstStage, ImageCheckpoint, RenderSpan
from latentfarm_worker.engine.input_latents import InputLatents
from latentfarm_worker.engine.job_inputs import NO_INPUTS, JobInputs
from latentfarm_worker.engine.noise import NoiseSource
from latentfarm_worker.engine.sampling_plan import SamplingPlan
from latentfarm_worker.latent_shape import LatentShape
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors

#: columns of ``ImageState.table`` before the ring coefficients
SCHEDULE_COLUMNS = 3
#: images in a strip of intermediates, the finished one included
FRAMES = 8


@dataclass(eq=False)
class ImageState:
    """One image that waits, runs or is decoded.

    Attributes:
        handle: the caller's key, never read here; the worker passes its lease.
        cohort: images run together only if theirs are equal [default: None, that of most images].
        interactive: a client waits for it: it begins before all images that are not, and is decoded at once.
        urgent: it begins before all images that are not, and takes their rows. Each interactive image is.
        held: it waits for another image, with whose beginning it goes on.
        paused: it keeps its place, but takes no part in steps, because an urgent one has its rows.
        put_down: ``time.perf_counter()`` at which it was paused, or suspended, for an urgent one; 0 while it runs.
        prompts: the prompt and, for guidance with a second row, the negative prompt.
        following: the prompts of images that may come next, to be encoded with its own if encoders are moved for it.
        noise: the initial noise and that of the steps.
        conditioning: the model's inputs besides the text, on the host, the same for all rows.
        inputs: the input images.
        origin: what it begins with on an input image; None: with noise.
        holds: the adapters that it uses.
        width, height: pixels.
        place: the index of the image's state in the batch; -1 while it waits.
        rows: rows of the model's batch that it takes: ``rows_held`` while it runs, 0 while it waits or is paused.
        step_index: model evaluations that are done, of this stage.
        second: a second stage, at a larger size or by a refiner, which begins with the result.
        run_before, run_after: evaluations of the other stage of the same run, which a refiner ends. A stage at another
            size is a run of its own.
        first: the first stage, of the second one; None until it has ended.
        draft_at: evaluations of all stages after which it ends as a draft; None: it is rendered to its end.
        checkpoint: what it goes on from if it begins in a batch; None: it begins with its first evaluation.
        given: the checkpoint with which it was prepared, or the beginning that it has from another image.
        forked: evaluations of that beginning; 0: it has none.
        span: the evaluations since it began in its batch.
        micro_batch: rows of a call of the model when the image began; its bytes depend on it.
        frames: the latents of its intermediates so far, float32 (C, h, w) each.
        previews: partial images so far; a second start does not repeat them.
        skipped: later images that began before this one.
        broken: calls of the device that broke with this image alone.
        slots_before: the slots of this shape before they were reduced for this image among others; 0 if they were not.
        queued, started: ``time.perf_counter()`` at the lease and at the first step.
        timings: seconds by stage.
    """

    job: Job
    handle: Hashable
    plan: SamplingPlan
    shape: LatentShape
    width: int
    height: int
    prompts: tuple[Prompt, ...]
    noise: NoiseSource
    conditioning: Tensors = field(default_factory=dict)
    inputs: JobInputs = NO_INPUTS
    origin: InputLatents | None = None
    holds: tuple[Hold, ...] = ()
    cohort: Hashable = None
    interactive: bool = False
    urgent: bool = False
    following: tuple[Prompt, ...] = ()
    held: bool = False
    paused: bool = False
    put_down: float = 0.0
    place: int = -1
    rows: int = 0
    step_index: int = 0
    micro_batch: int = 0
    frames: list[torch.Tensor] = field(default_factory=list)
    previews: int = 0
    skipped: int = 0
    broken: int = 0
    slots_before: int = 0
    queued: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)
    second: ImageState | None = None
    run_before: int = 0
    run_after: int = 0
    first: FirstStage | None = None
    draft_at: int | None = None
    checkpoint: ImageCheckpoint | None = None
    given: ImageCheckpoint | None = None
    forked: int = 0
    span: RenderSpan | None = None

    @property
    def begun(self) -> bool:
        """Whether an image that waits has work behind it that is not repeated."""
        return self.first is not None or self.checkpoint is not None

    @property
    def rows_needed(self) -> int:
        """Return the rows that the image takes when it begins."""
        return self.rows_held

    @property
    def rows_held(self) -> int:
        """Return the rows that it takes once it has begun: one for each prompt, and 1 after the guidance interval."""
        return len(self.prompts) if self.step_index < self.guided.stop else 1

    @property
    def text_class(self) -> int:
        """Return the text class of each of its prompts."""
        return self.prompts[0].tokens.text_class

    @property
    def rows_computed(self) -> int:
        """Return the rows that the next evaluation needs: 2 within the guidance interval, else 1."""
        return 2 if self.step_index in self.guided else 1

    @cached_property
    def frame_steps(self) -> frozenset[int]:
        """Return the evaluations after which an intermediate is kept: the first, then evenly up to the last but one.

        They are counted over the run, and those of this stage returned. Empty if the job saves none, and for a first
        stage whose images are smaller.
        """
        last = self.run_before + self.plan.num_evaluations + self.run_after - 1
        frames = min(FRAMES - 1, last)
        smaller = self.second is not None and not self.run_after
        if not self.job.save_intermediates or smaller or not frames:
            return frozenset()
        return frozenset(1 + round(at * last / frames) - self.run_before for at in range(frames))

    @cached_property
    def preview_steps(self) -> tuple[int, ...]:
        """Return the evaluations after which a partial image is made: evenly over all stages, without the last.

        An image with few evaluations has fewer of them.
        """
        evaluations, wanted = self.evaluations, self.job.partial_images
        steps = (round(evaluations * number / (wanted + 1)) for number in range(1, wanted + 1))
        return tuple(sorted({step for step in steps if 0 < step < evaluations}))

    @property
    def preview_due(self) -> bool:
        """Whether a partial image is made of the evaluation that is just done."""
        return self.previews < len(self.preview_steps) and self.preview_steps[self.previews] == self.evaluations_done

    @property
    def truncated(self) -> tuple[str, ...]:
        """Return the job's fields whose text was cut off: ``prompt``, ``negative_prompt``."""
        names = ("prompt", "negative_prompt")
        return tuple(name for name, each in zip(names, self.prompts, strict=False) if each.tokens.truncated)

    @property
    def tokens(self) -> int:
        """Return the tokens of its prompts, without padding."""
        return sum(prompt.tokens.count for prompt in self.prompts)

    @cached_property
    def guided(self) -> range:
        """Return the evaluations that apply guidance with a second row; its interval is a share of the run."""
        if len(self.prompts) == 1:
            return range(0)
        # a bound such as 0.07 * 100 = 7.000000000000001 must not be rounded up
        evaluations = self.run_before + self.plan.num_evaluations + self.run_after
        bounds = (ceil(share * evaluations - 1e-9) for share in self.job.guidance_interval or (0.0, 1.0))
        start, stop = (max(0, bound - self.run_before) for bound in bounds)
        return range(start, stop)

    @property
    def evaluations_left(self) -> int:
        """Return the model evaluations that the image still needs, in all stages; a draft, to its end as one."""
        return (self.evaluations if self.draft_at is None else self.draft_at) - self.evaluations_done

    @property
    def evaluations_made(self) -> int:
        """Return the model evaluations that were made since the image was prepared, in all stages."""
        return self.evaluations_done - (0 if self.given is None else self.given.evaluations)

    @property
    def evaluations(self) -> int:
        """Return the model evaluations of all stages."""
        before = 0 if self.first is None else self.first.evaluations
        after = 0 if self.second is None else self.second.plan.num_evaluations
        return before + self.plan.num_evaluations + after

    @property
    def evaluations_done(self) -> int:
        """Return the model evaluations that are done, in all stages."""
        return self.step_index + (0 if self.first is None else self.first.evaluations)

    @property
    def finished(self) -> bool:
        """Whether the last step of this stage is done."""
        return self.step_index == self.plan.num_evaluations

    @property
    def plan_digest(self) -> str:
        """Return the digest of the sampling plan that it began with."""
        return self.plan.digest if self.checkpoint is None else self.checkpoint.made.plan

    @property
    def ring_coefficients(self) -> list[list[float]]:
        """Return those of each evaluation, by ring column; of the checkpoint from which it goes on."""
        if self.checkpoint is None:
            return self.plan.ring_coefficients
        return self.checkpoint.table[:, SCHEDULE_COLUMNS:].tolist()

    @property
    def drafted(self) -> bool:
        """Whether it has made the last evaluation of a draft."""
        return self.evaluations_done == self.draft_at

    @property
    def spans(self) -> tuple[RenderSpan, ...]:
        """Return where it was made so far, in all stages."""
        before: tuple[RenderSpan, ...] = () if self.first is None else self.first.spans
        before = before if self.checkpoint is None else self.checkpoint.made.spans
        own = () if self.span is None else (self.span._replace(stop=self.evaluations_done),)
        if own and self._goes_on_from_fork:
            # by the same engine, with the same rows
            before, own = (), (own[0]._replace(start=0),)
        return (*before, *(span for span in own if span.start < span.stop))

    @property
    def interrupted(self) -> bool:
        """Whether it was put down at least once."""
        put_down = self.checkpoint is not None and not self._goes_on_from_fork
        return put_down or (self.first is not None and self.first.interrupted)

    @property
    def _goes_on_from_fork(self) -> bool:
        """Whether it goes on from the beginning of another image, and was not put down since."""
        return self.forked > 0 and self.checkpoint is not None and self.checkpoint is self.given

    @property
    def all_timings(self) -> dict[str, float]:
        """Return the seconds of all stages."""
        before = {} if self.first is None else self.first.timings
        return {name: before.get(name, 0.0) + self.timings.get(name, 0.0) for name in {**before, **self.timings}}

    @property
    def adapters(self) -> tuple[UsedAdapter, ...]:
        """Return what it is made with in all stages, the embeddings of its prompts included, each once."""
        before = () if self.first is None else self.first.adapters
        held = (UsedAdapter(each.alias, each.kind, each.digest) for hold in self.holds for each in hold.adapters)
        named = (
            UsedAdapter(each.alias, AdapterKind.EMBEDDING, each.digest)
            for prompt in self.prompts
            for each in prompt.tokens.embeddings
        )
        return tuple(dict.fromkeys((*before, *held, *named)))

    @property
    def all_frames(self) -> tuple[torch.Tensor, ...]:
        """Return the latents of the intermediates of all stages, float32 (C, h, w) each."""
        return (*(() if self.first is None else self.first.frames), *self.frames)

    def start(self, text_s: float) -> None:
        """Begin its time in the batch; its prompts took ``text_s`` seconds."""
        self.started = time.perf_counter()
        self.put_down = 0.0
        self._spend("text", text_s)
        self._spend("wait", self.started - self.queued - text_s)

    def leave(self) -> None:
        """End its time in the batch."""
        self._spend("denoise", time.perf_counter() - self.started)

    def _spend(self, name: str, seconds: float) -> None:
        self.timings[name] = self.timings.get(name, 0.0) + seconds

    def reserve_adapters(self) -> bool:
        """Keep room on the device for the adapters; return False, and keep none, if other images have it now."""
        reserved = all(hold.reserve() for hold in self.holds)
        if not reserved:
            self.release_adapters()
        return reserved

    def release_adapters(self) -> None:
        """Release the room for adapters of an image that has not begun; those of one in the batch stay."""
        for hold in self.holds if self.place < 0 else ():
            hold.release()

    def restart(self) -> None:
        """Go back to the checkpoint that it began from, or to the first evaluation. It must not be in a batch."""
        self.noise.restart()
        self.paused, self.place, self.rows, self.span = False, -1, 0, None
        begun = self.checkpoint
        self.step_index = 0 if begun is None else begun.step_index
        self.frames = [] if begun is None else [*begun.frames]
        self.timings = {} if begun is None else dict(begun.timings)
        # a second start does not repeat them
        self.previews = self.previews if begun is None else max(self.previews, begun.previews)

    def table(self) -> torch.Tensor:
        """Return the numbers of each evaluation, float32 (evaluations, 3 + COLUMNS), on the host.

        The columns are timestep, input scale, guidance scale and the ring coefficients. They are those of the
        checkpoint from which it goes on.
        """
        if self.checkpoint is not None:
            return self.checkpoint.table
        plan, scale = self.plan, self.job.guidance_scale
        lines = zip(plan.timesteps, plan.input_scales, plan.ring_coefficients, strict=True)
        return torch.tensor([[timestep, input_scale, scale, *ring] for timestep, input_scale, ring in lines])


@contextmanager
def release_unless_begun(images: Iterable[ImageState]) -> Iterator[None]:
    """Release the room for adapters of those images that do not begin within this."""
    try:
        yield
    finally:
        for image in images:
            image.release_adapters()


def prompts_of(images: Iterable[ImageState]) -> list[Prompt]:
    """Return the prompts of images in their order."""
    return [prompt for image in images for prompt in image.prompts]


def following(images: Sequence[ImageState]) -> list[Prompt]:
    """Return the prompts of images, and behind them those of their second stages and of images that may come next.

    These are left out if an image had trouble, since the cause could be theirs, and if one is urgent.
    """
    quiet = not any(image.cohort is not None or image.urgent for image in images)
    seconds = prompts_of(image.second for image in images if image.second is not None)
    return [*prompts_of(images), *seconds, *(prompt for image in images if quiet for prompt in image.following)]
