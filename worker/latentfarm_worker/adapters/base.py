"""The interface between the engine and a model's adapters.

A part has the adapters of one kind. A job that uses some of them gets a hold, which keeps them in memory while its
image is in the engine, and adds conditioning tensors to its rows. Rows whose conditioning tensors have other names are
in other calls of the model. So a call without adapters computes and costs what it does without this package.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from latentfarm.adapter_kind import AdapterKind
from latentfarm.job import Job
from latentfarm_worker.adapters.catalogue import Adapter
from latentfarm_worker.text_encoders.prompt import PromptLora, Tensors

if TYPE_CHECKING:
    from latentfarm_worker.engine.job_inputs import JobInputs
    from latentfarm_worker.engine.sampling_plan import SamplingPlan


class UsedAdapter(NamedTuple):
    """An adapter that an image was made with: its name, and the sha256 of its file or files."""

    name: str
    kind: AdapterKind
    sha256: str


class Hold(Protocol):
    """The adapters of one kind that an image uses. Its methods are called on the engine's thread.

    Attributes:
        draws: noises of the latents' size that it draws from a generator with the job's seed, before all others.
    """

    draws: int

    @property
    def adapters(self) -> Sequence[Adapter]:
        """Return the files of the adapters."""

    @property
    def text_loras(self) -> Sequence[PromptLora]:
        """Return the LoRAs with which the image's prompts are encoded."""

    def reserve(self) -> bool:
        """Keep room for the adapters on the device; return False if other images have it now, and the image waits.

        Without other images there is room.
        """

    def release(self) -> None:
        """Release the room of ``reserve``, if there is any: the image does not begin now."""

    def at(self, evaluation: int) -> Hashable:
        """Return what the adapters add at an evaluation, beside their weights and what is the same in all of them."""

    def begin(self, rows: int) -> Sequence[Tensors]:
        """Move the adapters to the device if necessary; return the conditioning of each of the image's rows.

        The first row is that of the prompt, the second that of the negative prompt. The tensors are on the device,
        without a dimension for rows.

        Raises:
            JobError: code ``oom``: the device has no room for them. Then there is nothing to end.
        """

    def end(self) -> None:
        """Release the adapters: the image has left the batch, finished or not. It may begin again."""


class AdapterPart(Protocol):
    """The adapters of one kind of a model."""

    def prepare(self, job: Job, inputs: JobInputs, plan: SamplingPlan) -> Hold | None:
        """Load the adapters of a job to the host, and check them; None if it uses none. Thread-safe.

        Raises:
            JobError: code ``adapter_unknown``, ``adapter_mismatch`` for one of another base model,
                ``adapter_invalid``.
        """


def has_own_weights(conditioning: Tensors) -> bool:
    """Return whether a call uses adapters with weights of their own, which leave the device when others need its room.

    The names of their tensors have a colon.
    """
    return any(":" in name for name in conditioning)
