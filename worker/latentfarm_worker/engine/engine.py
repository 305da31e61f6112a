"""Continuous batching at the denoising step. The engine imports no Redis, no S3 and no Celery.

An image joins the batch at any step and leaves it after its own last step, independent of the other images' step count,
scheduler, guidance or prompt. ``Engine.step`` is one iteration: admit, denoise one step, retire.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable
from contextlib import suppress

import torch

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm.schedulers import is_flow
from latentfarm_worker import device_errors
from latentfarm_worker.engine.admission import AdmissionQueue
from latentfarm_worker.engine.broken_calls import BrokenCalls
from latentfarm_worker.engine.continuation import go_on
from latentfarm_worker.engine.decoder import Decoder
from latentfarm_worker.engine.device_call import DeviceCall, RunAhead
from latentfarm_worker.engine.forks import Forks
from latentfarm_worker.engine.image_checkpoint import ImageCheckpoint
from latentfarm_worker.engine.image_state import ImageState, following, prompts_of, release_unless_begun
from latentfarm_worker.engine.job_inputs import NO_INPUTS, JobInputs
from latentfarm_worker.engine.micro_batch import checked_rows
from latentfarm_worker.engine.outcomes import Failed, Parked, Preview, Rendered, engine_error, first_line, out_of_memory
from latentfarm_worker.engine.parking import Parking
from latentfarm_worker.engine.preparation import prepare
from latentfarm_worker.engine.previews import Previews
from latentfarm_worker.engine.running_images import RunningImages
from latentfarm_worker.engine.second_stage import FirstImage, begin_second, encode_enlarged, needs_pixels
from latentfarm_worker.engine.slot_views import SlotViewer
from latentfarm_worker.engine.text_cache import TextCache
from latentfarm_worker.models.base import Family, native_shape
from latentfarm_worker.text_encoders.embedding_files import EmbeddingFiles

__all__ = ["Engine", "Failed", "Rendered"]


class Engine:
    """Renders jobs on one device, many at once.

    The model is called with micro-batches of one fixed number of rows, so an image has the same bytes in any company.

    If memory runs out, a shape gets half its slots for good. It gets them back if the memory turns out to be one job's
    fault. Images start again if a call of the model then has other rows. So their bytes are those of one micro-batch.

    Only ``prepare`` and what is marked so is thread-safe; the rest belongs to one thread.

    Args:
        family: the loaded model.
        slots: guided images of the native size that run together.
        micro_batch: rows of a call of the model at the native size, an even number; larger images have fewer, in
            inverse proportion to their area [default: 8, or those of all slots if they are fewer].
        decode_group: images of the native size in a call of the decoder.
        deterministic: pad each micro-batch to its full number of rows. Without it a step with few images is faster, and
            an image's bytes depend on its company.
        cuda_graphs: run each evaluation of the model as a CUDA graph.
        embeddings: encoded prompts on disk.

    Attributes:
        on_forward: called before each forward pass of the text encoder, the model and the decoder, as a sign of life.
        slot_viewer: has what ``view_slots`` reads.
        shares_beginnings: whether images that are admitted from now on share what they have in common with others.
    """

    def __init__(
        self,
        family: Family,
        *,
        slots: int,
        micro_batch: int | None = None,
        decode_group: int = 1,
        deterministic: bool = True,
        cuda_graphs: bool = False,
        embeddings: EmbeddingFiles | None = None,
    ) -> None:
        self.family = family
        self.slots = slots
        self.micro_batch = checked_rows(micro_batch, slots=slots)
        self.deterministic = deterministic
        self.on_forward: Callable[[], None] = lambda: None
        self._call = DeviceCall(lambda: self.on_forward())  # noqa: PLW0108 (on_forward may be replaced later)
        self._texts = TextCache.of(family, embeddings, on_forward=self._call.again)
        self._decoder = Decoder(family, self._call, group=decode_group)
        self._previews = Previews(self._decoder.groups, self._decoder.group_size)
        self.slot_viewer = SlotViewer(family.device)
        self._queue: AdmissionQueue[ImageState] = AdmissionQueue(slots=slots, native=native_shape(family))
        self._running = RunningImages(family, micro_batch=self.micro_batch, pad=deterministic, cuda_graphs=cuda_graphs)
        #: of the images that began last
        self._cohort: Hashable = None
        self._run_ahead = RunAhead(family.device)
        self._parking = Parking(family, self._running, self._queue, self._decoder)
        self.shares_beginnings = True
        self._forks = Forks(family, self._running, self._queue, slots=slots)
        self._broken = BrokenCalls(self._call, self._running, self._queue, self._decoder, self._parking)

    # -- state, thread-safe ----------------------------------------------------------------------------------

    @property
    def usable_slots(self) -> int:
        """Return the slots of the native size: fewer than ``slots`` after it ran out of memory."""
        return self._queue.max_slots(native_shape(self.family))

    @property
    def free(self) -> int:
        """Return how many more images of the native size fit now: of two rows, or one if guidance is embedded."""
        return self.free_within(0)

    def free_within(self, evaluations: int, *, urgent: bool = False) -> int:
        """Return ``free`` after so many model evaluations. ``urgent`` images wait only for their like."""
        running = (image for image in self._running if image.urgent or not urgent)
        staying = (image.rows_held for image in running if image.evaluations_left > evaluations)
        rows_of_image = 2 - self.family.embeds_guidance
        return self._queue.free_slots(sum(staying), urgent=urgent, rows_of_image=rows_of_image)

    @property
    def slots_taken(self) -> float:
        """Return the slots of the running images: 1 for one with guidance, 0.5 without."""
        return sum(image.rows for image in self._running) / 2

    @property
    def busy(self) -> bool:
        """Whether any image waits, runs or is decoded."""
        return bool(self._queue or self._running or self._decoder.images)

    def remaining(self) -> list[tuple[Hashable, int | None]]:
        """Return each image's handle and the model evaluations that it still needs.

        None for one that waits and has made no evaluation here: without it, no work is lost.
        """
        waiting = [(image.handle, image.evaluations_left if image.evaluations_made else None) for image in self._queue]
        decoding = [(image.handle, image.evaluations_left) for image in self._decoder.images]
        return [*waiting, *decoding, *((image.handle, image.evaluations_left) for image in self._running)]

    def at_risk(self) -> list[Hashable]:
        """Return the handles of the images in the call of the device that runs now, or that broke.

        A GPU works behind the host, so an error may be that of an earlier call: then these are all images that began.
        """
        images = self._call.images
        if self.family.device.type == "cuda":
            images = [*dict.fromkeys((*images, *self._running, *self._decoder.images))]
        return [image.handle for image in images]

    def interactive_progress(self) -> list[tuple[Hashable, int, int]]:
        """Return each interactive image that runs: its handle, the evaluations that are done, and all of them."""
        running = (image for image in self._running if image.interactive)
        return [(image.handle, image.evaluations_done, image.evaluations) for image in running]

    def paused(self) -> list[tuple[Hashable, float]]:
        """Return the images that urgent ones have paused or suspended: handles, and the seconds since."""
        return self._parking.paused()

    def prepare(
        self,
        job: Job,
        handle: Hashable = None,
        *,
        inputs: JobInputs = NO_INPUTS,
        cohort: Hashable = None,
        interactive: bool = False,
        urgent: bool = False,
        finish: bool = False,
        checkpoint: ImageCheckpoint | None = None,
    ) -> ImageState:
        """Return a job that is ready to be admitted, as ``preparation.prepare``. Thread-safe.

        ``handle`` is the key under which it is cancelled and reported [default: the job's name]. The image goes on from
        ``checkpoint`` [default: it begins].

        Raises:
            CheckpointMismatchError: as ``continuation.go_on``.
        """
        image = prepare(
            self.family,
            job,
            job.name if handle is None else handle,
            inputs=inputs,
            cohort=cohort,
            interactive=interactive,
            urgent=urgent,
            finish=finish,
        )
        return image if checkpoint is None else go_on(self.family, image, checkpoint)

    # -- control ---------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Render a throwaway image and build the default sampling plan: else the first job waits for both."""
        job = Job(batch="warm-up", index=0, prompt="", seed=0, num_inference_steps=self.family.recommended.steps)
        with suppress(JobError):
            # a model's own scheduler may have no plan; its jobs name another
            self.prepare(job)
        scheduler = "flow_euler" if is_flow(self.family.scheduler_config) else "euler"
        self.admit(job.model_copy(update={"num_inference_steps": 2, "scheduler": scheduler}))
        while self.busy:
            self.step()

    def forget_graphs(self) -> None:
        """Capture CUDA graphs again: the weights have moved."""
        self._running.forget_graphs()

    def admit(self, job: Job | ImageState) -> None:
        """Queue a job, prepared or not. It starts at the next ``step`` that has room for it.

        Raises:
            JobError: as ``prepare``; then nothing is queued.
        """
        image = job if isinstance(job, ImageState) else self.prepare(job)
        if self.shares_beginnings:
            self._forks.add(image)
        self._queue.append(image)

    @torch.inference_mode()
    def cancel(self, handle: Hashable) -> bool:
        """Drop an image that waits, runs or is decoded; its rows are free before the next step.

        Return whether it was there.
        """
        self._previews.drop(handle)
        for images, remove in ((self._running, self._running.remove), (self._queue, self._queue.remove)):
            for image in images:
                if image.handle == handle:
                    remove(image)
                    return True
        return self._decoder.drop(handle)

    @torch.inference_mode()
    def park(self, handles: Collection[Hashable]) -> list[Parked]:
        """Take images out of the engine midway: if they run, are paused or suspended, or are between two stages.

        Those that have made no evaluation here stay, and so do those that are only decoded. It waits for the device.
        """
        return self._parking.park(handles)

    def abort_all(self) -> list[Hashable]:
        """Drop every image that waits, runs or is decoded; return their handles."""
        handles = [image.handle for image in (*self._running, *self._queue, *self._decoder.images)]
        self._queue.clear()
        self._running.clear()
        self._decoder.clear()
        self._previews.clear()
        self._call.images = ()
        return handles

    @torch.inference_mode()
    def step(self) -> list[Rendered | Failed]:
        """Admit waiting images, denoise all running ones by one step, and retire the finished ones.

        After an exception, ``isolate`` or ``abort_all`` must follow.
        """
        self._call.images = ()
        try:
            self._admit_waiting()
            self._denoise()
            self._forks.keep()
            self._retire()
            self._previews.advance()
        except Exception as error:
            if not device_errors.is_out_of_memory(error):
                raise
            message = first_line(error)
        else:
            outcomes = self._decode()
            self._call.images = ()
            return outcomes
        # outside the handler, whose traceback holds the step's tensors
        return [*self._broken.reduce_batch(message)]

    def take_previews(self) -> list[Preview]:
        """Return the partial images that were finished since the last call."""
        return self._previews.take()

    @torch.inference_mode()
    def view_slots(self) -> None:
        """Begin to read what is on the device now, for ``slot_viewer``."""
        self.slot_viewer.begin(self._running.batch, [*self._running], self._decoder.examples)

    @torch.inference_mode()
    def isolate(self, error: Exception) -> list[Failed]:
        """Go on after a step that raised ``error``; return the job whose fault it was, once it is known.

        Only the images in the broken call are suspects: those that began, the running ones, or one group of the
        decoder. They are split in halves, which run one after the other until the cause is alone. Each other image goes
        on, or starts again and has the same bytes.
        """
        return self._broken.isolate(error)

    def check_integrity(self) -> None:
        """Raise AssertionError unless each running image, and no other, has a place of its own in the batch."""
        if not self._running.is_whole:
            raise AssertionError(f"places: {[image.place for image in self._running]}")

    # -- admit -----------------------------------------------------------------------------------------------

    def _admit_waiting(self) -> None:
        """Start the waiting images that fit, and encode their prompts together."""
        self._parking.make_way()
        self._forks.settle()
        running = self._running.key
        key = self._queue.next_key(running) or running
        if key is None:
            return
        if running is None:
            # the first to allocate memory for a batch
            self._call.images = [image for image in (self._queue.first(),) if image is not None]
        batch = self._running.batch_of(key.shape, self._queue.max_rows(key.shape))
        free = batch.make_room(self._queue.urgent_rows(key))
        starting = self._queue.next_images(key, rows=batch.rows, free=free, reserve=ImageState.reserve_adapters)
        if starting:
            self._cohort = key.cohort
            with release_unless_begun(starting):
                self._begin(starting)

    def _begin(self, starting: list[ImageState]) -> None:
        """Encode the prompts of images, and let them run."""
        # the others of the cohort, too, if their prompts may be encoded now
        encoding = [image for image in self._queue if image.cohort == self._cohort] if self._texts.moves else starting
        self._call.begin(encoding)
        began = time.perf_counter()
        texts = iter(self._texts.get(prompts_of(starting), following(encoding)))
        text_s = (time.perf_counter() - began) / len(starting)
        for image in starting:
            image.start(text_s)
            self._call.images = [image]
            self._running.add(image, [next(texts) for _ in image.prompts])
            self._queue.remove(image)

    # -- denoise, retire -------------------------------------------------------------------------------------

    def _denoise(self) -> None:
        """Run one evaluation of the model for every running image and update its latents."""
        batch = self._running.batch
        if batch is None or not self._running:
            return
        self._call.images = [image for image in self._running if not image.paused]
        for micro_batch in batch.begin_step():
            self._call.begin(micro_batch.images)
            batch.denoise(micro_batch)
            # before the next call: if that breaks, these images may go on
            for image in micro_batch.images:
                if image.step_index in image.frame_steps:
                    image.frames.append(batch.frame(image))
                if image.preview_due:
                    self._previews.add(image, batch.estimate(image))
        self._run_ahead.limit()

    def _retire(self) -> None:
        """Free the rows of finished images and drafts; they are decoded, or wait for their second stage."""
        for image in [image for image in self._running if image.finished or image.drafted]:
            self._call.images = [image]
            batch = self._running.batch
            assert batch is not None  # noqa: S101 (an image runs)
            image.leave()
            if image.drafted:
                self._decoder.add_draft(image, batch.estimate(image), batch.columns(image))
            elif needs_pixels(image):
                self._decoder.add(image, batch.latents(image))
            else:
                self._queue.resume(begin_second(image, batch.latents(image)))
            self._running.remove(image)

    def _decode(self) -> list[Rendered | Failed]:
        """Return the images that are decoded by now, and those that cannot be."""
        # nothing of another cohort is called while these are decoded, so an error shows whose it is
        following = self._queue.next_key(None)
        flush = not self._running and (following is None or following.cohort != self._cohort)
        outcomes: list[Rendered | Failed] = []
        for outcome in self._decoder.advance(flush=flush):
            outcomes += self._begin_second(outcome) if isinstance(outcome, FirstImage) else [outcome]
        return outcomes

    def _begin_second(self, made: FirstImage) -> list[Failed]:
        """Let an image wait for its second stage; return its error if it cannot be encoded."""
        image = made.image
        self._call.begin([image])
        try:
            self._queue.resume(encode_enlarged(self.family, made))
        except Exception as error:
            if device_errors.is_fatal(error):
                raise
            if device_errors.is_out_of_memory(error):
                return [Failed(image.job, image.handle, out_of_memory(first_line(error)))]
            return [Failed(image.job, image.handle, engine_error(error), retry=True)]
        return []
