"""The images that run, and the batch of the device that has their rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from latentfarm_worker.engine.admission import BatchKey
from latentfarm_worker.engine.device_batch import DeviceBatch
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.engine.micro_batch import rows_of_call
from latentfarm_worker.latent_shape import LatentShape
from latentfarm_worker.models.base import Family, native_shape
from latentfarm_worker.text_encoders.prompt import Tensors


class RunningImages:
    """The images that run: of one latent shape, together in one batch.

    Iteration and the length are thread-safe. The methods belong to the engine's thread.

    Args:
        family: the loaded model.
        micro_batch: rows of a call of the model at the native size.
        pad: whether each call has exactly its number of rows.
        cuda_graphs: run evaluations as CUDA graphs.

    Attributes:
        batch: that of the images; without images, that of the last ones, or None.
    """

    def __init__(self, family: Family, *, micro_batch: int, pad: bool, cuda_graphs: bool) -> None:
        self._family = family
        self._micro_batch = micro_batch
        self._pad = pad
        self._cuda_graphs = cuda_graphs
        self._images: list[ImageState] = []
        self.batch: DeviceBatch | None = None

    def __iter__(self) -> Iterator[ImageState]:
        # a copy, since other threads iterate while the engine's thread changes the list
        return iter(tuple(self._images))

    def __len__(self) -> int:
        return len(self._images)

    @property
    def key(self) -> BatchKey | None:
        """Return what the images have in common; None if there is none."""
        return BatchKey(self._images[0].shape, self._images[0].cohort) if self._images else None

    @property
    def is_whole(self) -> bool:
        """Whether each image, and no other, has a place of its own in the batch."""
        return self.batch.is_whole(self._images) if self.batch is not None else not self._images

    def batch_of(self, shape: LatentShape, rows: int) -> DeviceBatch:
        """Return the batch of a shape, a new one of ``rows`` if there is none. Images of another shape must not run."""
        if self.batch is None or self.batch.shape != shape:
            # first drop the other one: there may be no memory for both
            self.clear()
            self.batch = DeviceBatch(
                self._family,
                shape,
                rows=rows,
                micro_batch=self.rows_of_call(shape, rows),
                # each other number of rows would be compiled for itself
                pad=self._pad or self._family.compiled,
                cuda_graphs=self._cuda_graphs,
            )
        return self.batch

    def rows_of_call(self, shape: LatentShape, rows: int) -> int:
        """Return the rows of a call of the model in a batch of ``rows``."""
        return rows_of_call(self._micro_batch, shape, native_shape(self._family), most=rows)

    def add(self, image: ImageState, texts: Sequence[Tensors]) -> None:
        """Start an image with the tensors of each of its prompts. Its batch must be there."""
        assert self.batch is not None  # noqa: S101 (its batch is there)
        self.batch.allocate(image, texts)
        self._images.append(image)

    def remove(self, image: ImageState) -> None:
        """Remove an image and free its rows."""
        assert self.batch is not None  # noqa: S101 (an image runs)
        self._images.remove(image)
        self.batch.release(image)

    def clear(self) -> None:
        """Remove all images and the batch, which may be half written."""
        self._images.clear()
        if self.batch is not None:
            self.batch.release_all()
            self.batch = None

    def forget_graphs(self) -> None:
        """Capture CUDA graphs again: the weights have moved."""
        if self.batch is not None:
            self.batch.forget_graphs()
