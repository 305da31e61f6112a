"""The running images of one latent shape: their state on the device, and the micro-batches of a step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import torch

from latentfarm_worker.adapters.base import Hold
from latentfarm_worker.cuda_graph import Evaluate, GraphedEvaluation
from latentfarm_worker.engine.continuation import columns_read
from latentfarm_worker.engine.image_checkpoint import RenderSpan
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.input_latents import KeptRegion
from latentfarm_worker.engine.latent_update import NOISE, TABLE_COLUMNS, LatentState, begin, update
from latentfarm_worker.engine.micro_batch import MicroBatch, form
from latentfarm_worker.engine.sampling_plan import COLUMNS, HISTORY, SamplingPlan
from latentfarm_worker.host_copy import send
from latentfarm_worker.latent_shape import LatentShape
from latentfarm_worker.models.base import Family, conditions_of, native_shape, precision_of
from latentfarm_worker.text_encoders.prompt import Tensors

#: evaluations that a table holds at first
_EVALUATIONS = 64


class DeviceBatch:
    """The images of one latent ``shape`` that run together.

    Args:
        family: the model.
        shape: the latent shape.
        rows: rows that the images may take together.
        micro_batch: rows of a call of the model, an even number.
        pad: whether each call has exactly that many rows; if not, an image's bytes depend on its company.
        cuda_graphs: run evaluations as CUDA graphs; only with ``pad``.
    """

    def __init__(
        self,
        family: Family,
        shape: LatentShape,
        *,
        rows: int,
        micro_batch: int,
        pad: bool = True,
        cuda_graphs: bool = False,
    ) -> None:
        self.family = family
        self.shape = shape
        self.rows = rows
        self.micro_batch = micro_batch
        self._pad = pad
        self._device = device = family.device
        self._conditions = conditions_of(family)
        #: of the images that run and as many that are paused; the next one takes what other rows write
        self._places = 2 * rows
        self._state = LatentState(
            history=torch.zeros((self._places + 1, COLUMNS, family.latent_channels, *shape), device=device),
            table=torch.zeros((self._places + 1, _EVALUATIONS, TABLE_COLUMNS), device=device),
            step_index=torch.zeros(self._places + 1, dtype=torch.int64, device=device),
        )
        self._begin, self._update = begin, update
        if family.compiled and shape == native_shape(family):
            self._begin = torch.compile(begin, fullgraph=True, dynamic=False)
            self._update = torch.compile(update, fullgraph=True, dynamic=False)
        self._cuda_graphs = cuda_graphs and pad
        self._run = self._make_run()
        #: by image: the tensors of each of its prompts
        self._images: dict[ImageState, Sequence[Tensors]] = {}
        #: by image with a mask: what is kept
        self._kept: dict[ImageState, KeptRegion] = {}
        #: formed again before the next step if None
        self._micro_batches: list[MicroBatch] | None = None
        #: the places that the last noise went to, on the host and on the device
        self._noisy: tuple[int, ...] = ()
        self._noisy_places = torch.empty(0, dtype=torch.int64)

    @property
    def free_rows(self) -> int:
        """Return the rows that no image takes."""
        return self.rows - sum(image.rows for image in self._images)

    def is_whole(self, images: Sequence[ImageState]) -> bool:
        """Return whether the batch has exactly these images, each at a place of its own."""
        places = {image.place for image in images}
        return {*images} == {*self._images} and len(places) == len(images) and places <= {*range(self._places)}

    def allocate(self, image: ImageState, texts: Sequence[Tensors]) -> None:
        """Give an image a place and a row for each of its prompts.

        ``texts`` are the tensors of each prompt, without a dimension for rows.

        Raises:
            JobError: that of ``Hold.begin``; then the image has no place.
        """
        taken = {other.place for other in self._images}
        place = next(place for place in range(self._places) if place not in taken)
        table = image.table()
        self._extend_table(len(table))
        self._state.history[place].zero_()
        self._write_beginning(image, self._state.history[place])
        self._state.table[place, : len(table)] = send(table, self._device)
        self._state.step_index[place].fill_(image.step_index)
        common = {name: send(tensor, self._device) for name, tensor in image.conditioning.items()}
        rows: list[Tensors] = [{**text, **common} for text in texts]
        try:
            self._images[image] = _begin_holds(image, rows)
        except Exception:
            self._kept.pop(image, None)
            raise
        image.place, image.rows, image.micro_batch = place, image.rows_held, self.micro_batch
        done = image.evaluations_done
        image.span = RenderSpan(done, done, self.micro_batch, self._conditions, precision_of(self.family))
        self._micro_batches = None

    def _write_beginning(self, image: ImageState, history: torch.Tensor) -> None:
        """Write what an image begins with to its history (COLUMNS, C, h, w), and hold what its mask keeps."""
        origin, begun = image.origin, image.checkpoint
        if begun is not None:
            for column, tensor in begun.columns.items():
                history[column].copy_(send(tensor, self._device))
        elif origin is not None:
            history[0].copy_(send(origin.initial, self._device))
        else:
            torch.mul(send(image.noise.initial, self._device), image.plan.init_noise_sigma, out=history[0])
        if origin is not None and origin.painted is not None:
            self._kept[image] = KeptRegion(origin, origin.painted, self._device)

    def release(self, image: ImageState) -> None:
        """Free an image's place and rows."""
        del self._images[image]
        self._kept.pop(image, None)
        self._micro_batches = None
        for hold in image.holds:
            hold.end()

    def release_all(self) -> None:
        """Release the adapters of all images; the batch must not be used any more."""
        for image in self._images:
            for hold in image.holds:
                hold.end()

    def make_room(self, rows: int) -> int:
        """Pause images so that urgent ones find this many free rows; return the rows that may be taken now.

        Those that have begun last are paused. They go on, with the same numbers, before any other image begins.
        """
        running = [image for image in self._images if not image.paused and not image.urgent]
        running.sort(key=lambda image: image.evaluations_left)
        while self.free_rows < rows and running:
            self._set_paused(running.pop(), paused=True)
        paused = sorted((image for image in self._images if image.paused), key=lambda image: image.evaluations_left)
        while paused and self.free_rows >= rows + paused[0].rows_held:
            self._set_paused(paused.pop(0), paused=False)
        return min(rows, self.free_rows) if paused else self.free_rows

    def _set_paused(self, image: ImageState, *, paused: bool) -> None:
        image.paused, image.put_down = paused, time.perf_counter() if paused else 0.0
        image.rows = 0 if paused else image.rows_held
        self._micro_batches = None

    def latents(self, image: ImageState) -> torch.Tensor:
        """Return a view of an image's latents, float32 (C, h, w)."""
        return self._state.history[image.place, image.step_index % HISTORY]

    def columns(self, image: ImageState, others: Iterable[SamplingPlan] = ()) -> dict[int, torch.Tensor]:
        """Return views of the ring columns that later evaluations of an image read, float32 (C, h, w) each.

        So with those that the evaluations of other plans read from here on.
        """
        plans = [image.ring_coefficients, *(plan.ring_coefficients for plan in others)]
        read = {at for plan in plans for at in columns_read(plan, image.step_index)}
        return {at: self._state.history[image.place, at] for at in sorted(read)}

    def frame(self, image: ImageState) -> torch.Tensor:
        """Return an image's latents for an intermediate, float32 (C, h, w), a copy."""
        latents = self.latents(image)
        # some schedulers carry latents far beyond the unit variance that the VAE was trained on
        return latents / latents.std().clamp(min=1.0)

    def estimate(self, image: ImageState) -> torch.Tensor:
        """Return the estimate of an image's finished latents by its last evaluation, float32 (C, h, w), a copy."""
        done = image.step_index - 1
        of_latents, of_output = image.plan.estimates[done]
        history = self._state.history[image.place]
        return torch.add(history[done % HISTORY] * of_latents, history[HISTORY + done % HISTORY], alpha=of_output)

    def begin_step(self) -> list[MicroBatch]:
        """Send the noise of this step to the device; return the step's micro-batches."""
        running = [image for image in self._images if not image.paused and not image.finished]
        self._send_noise([image for image in running if image.plan.uses_noise[image.step_index]])
        if self._micro_batches is None:
            self._micro_batches = form(
                running,
                self._images,
                rows=self.micro_batch,
                pad=self._pad,
                unused=self._places,
                device=self._device,
            )
        return self._micro_batches

    def denoise(self, micro_batch: MicroBatch) -> None:
        """Evaluate the model for a micro-batch and update the latents of its images."""
        self._run(micro_batch.indices, micro_batch.conditioning)
        for image in micro_batch.images:
            rows = image.rows_computed
            image.step_index += 1
            image.rows = image.rows_held
            if image in self._kept:
                self._kept[image].restore(self.latents(image), image.plan.noised[image.step_index])
            if image.rows_computed != rows:
                self._micro_batches = None

    def forget_graphs(self) -> None:
        """Capture CUDA graphs again: what they read is elsewhere now."""
        self._run = self._make_run()

    def _make_run(self) -> Evaluate:
        """Return what evaluates the model and updates the latents of images."""
        family, state = self.family, self._state
        begin_step, update_latents = self._begin, self._update

        # it must not hold this object: in a circle of references, the memory would stay until the next collection
        def evaluate(indices: torch.Tensor, conditioning: Tensors) -> None:
            evaluation = begin_step(state, indices)
            inputs = {**conditioning, "step_index": evaluation.step_index}
            output = family.predict(evaluation.latents, evaluation.timesteps, inputs)
            update_latents(state, indices, evaluation, output, family.combine)

        if not self._cuda_graphs:
            return evaluate
        idle = torch.full((3, self.micro_batch), self._places, device=self._device)
        idle[2] = torch.arange(self.micro_batch, device=self._device)
        return GraphedEvaluation(evaluate, idle)

    def _send_noise(self, images: Sequence[ImageState]) -> None:
        if not images:
            return
        places = tuple(image.place for image in images)
        if places != self._noisy:
            self._noisy, self._noisy_places = places, send(torch.tensor(places), self._device)
        noise = [image.noise.at(image.plan.draws_before[image.step_index]) for image in images]
        self._state.history[self._noisy_places, NOISE] = torch.stack(noise)

    def _extend_table(self, evaluations: int) -> None:
        missing = evaluations - self._state.table.shape[1]
        if missing > 0:
            more = self._state.table.new_zeros((len(self._state.table), missing, TABLE_COLUMNS))
            self._state = self._state._replace(table=torch.cat([self._state.table, more], dim=1))
            # the old one, and its graphs, use the old table
            self.forget_graphs()


def _begin_holds(image: ImageState, rows: Sequence[Tensors]) -> Sequence[Tensors]:
    """Begin the adapters of an image, all or none; return the tensors of its rows with theirs."""
    begun: list[Hold] = []
    try:
        for hold in image.holds:
            rows = [{**row, **added} for row, added in zip(rows, hold.begin(len(rows)), strict=True)]
            begun.append(hold)
    except Exception:
        for hold in begun:
            hold.end()
        raise
    return rows
