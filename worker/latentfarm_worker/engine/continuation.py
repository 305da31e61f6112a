"""What an image goes on from: its checkpoint is made, and checked where it is begun with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch

from latentfarm.job import Job
from latentfarm_worker.engine.image_checkpoint import CheckpointMismatchError, ImageCheckpoint, Made
from latentfarm_worker.engine.image_state import SCHEDULE_COLUMNS, ImageState
from latentfarm_worker.engine.sampling_plan import HISTORY
from latentfarm_worker.models.base import Family, precision_of

#: the largest difference of timesteps, input scales and guidance, relative to the number or 1: machines round
#: otherwise, and other schedules differ by more
_SAME_SCHEDULE = 1e-4


def columns_read(ring_coefficients: Sequence[Sequence[float]], step_index: int) -> tuple[int, ...]:
    """Return the ring columns that the evaluations from ``step_index`` on read before they are written again."""
    read, written = {step_index % HISTORY}, set[int]()
    for index in range(step_index, len(ring_coefficients)):
        # an evaluation stores its output first, and the next latents last
        written.add(HISTORY + index % HISTORY)
        numbers = ring_coefficients[index][: 2 * HISTORY]
        read |= {column for column, number in enumerate(numbers) if number and column not in written}
        written.add((index + 1) % HISTORY)
    return tuple(sorted(read))


def made_by(family: Family, image: ImageState) -> Made:
    """Return what an image is made by. Thread-safe."""
    return Made(
        job=job_digest(image.job),
        model=family.model_digest,
        dtype=precision_of(family),
        plan=image.plan_digest,
        adapters=image.adapters,
        spans=image.spans,
    )


def job_digest(job: Job) -> str:
    """Return a sha256 over the fields of a job that determine its image."""
    return hashlib.sha256(json.dumps(job.request(), sort_keys=True).encode()).hexdigest()


def checkpoint_of(
    family: Family, image: ImageState, columns: Mapping[int, torch.Tensor], frames: Sequence[torch.Tensor]
) -> ImageCheckpoint:
    """Return the checkpoint of an image, with its columns and the frames of all stages on the host."""
    own = len(frames) - len(image.frames)
    first = None if image.first is None else image.first._replace(frames=tuple(frames[:own]))
    return ImageCheckpoint(
        made=made_by(family, image),
        stage=1 if first is None else 2,
        step_index=image.step_index,
        evaluations=image.evaluations_done,
        columns=columns,
        table=image.table(),
        frames=tuple(frames[own:]),
        previews=image.previews,
        timings=dict(image.timings),
        first=first,
    )


def go_on(family: Family, image: ImageState, checkpoint: ImageCheckpoint) -> ImageState:
    """Return the stage of an image with which it goes on from a checkpoint.

    It goes on with the table of the checkpoint. For a plan is fitted: another machine may find other coefficients of
    the same run, which read another past.

    Args:
        family: the model.
        image: the prepared image, which has not begun.
        checkpoint: where it goes on from.

    Raises:
        CheckpointMismatchError: the checkpoint is that of another job, plan, model, dtype or adapter; or of a draft,
            and the image ends as one that is no further.
    """
    stage = image.second if checkpoint.stage == 2 else image
    if stage is None:
        raise _mismatch("stage", f"second, and {image.job.name} has one only")
    # the adapters of the first stage are checked with those of the second
    stage.first = checkpoint.first
    ours = made_by(family, stage)
    for name in ("job", "model", "dtype", "adapters"):
        theirs = getattr(checkpoint.made, name)
        if theirs != getattr(ours, name):
            raise _mismatch(name, f"{theirs}, and here it is {getattr(ours, name)}")
    if not _is_of_schedule(checkpoint, stage.table()):
        raise _mismatch("plan", f"{checkpoint.made.plan}, and here it is {ours.plan}")
    shape = (family.latent_channels, *stage.shape)
    stored = {column for column, tensor in checkpoint.columns.items() if tensor.shape == shape}
    ring_coefficients = checkpoint.table[:, SCHEDULE_COLUMNS:].tolist()
    if not stored.issuperset(columns_read(ring_coefficients, checkpoint.step_index)):
        raise _mismatch("past", f"of other evaluations or of another size than {shape}")
    if image.draft_at is not None and checkpoint.evaluations >= image.draft_at:
        raise _mismatch("draft", f"at evaluation {checkpoint.evaluations}, and it ends as one at {image.draft_at}")
    stage.checkpoint = stage.given = checkpoint
    stage.restart()
    if any(stage.plan.uses_noise[checkpoint.step_index :]):
        # here, and not within a step, which would wait for it
        stage.noise.skip_to(stage.plan.draws_before[checkpoint.step_index])
    return stage


def _is_of_schedule(checkpoint: ImageCheckpoint, ours: torch.Tensor) -> bool:
    """Return whether a checkpoint has the evaluations of a table, and is between two of them."""
    theirs = checkpoint.table
    if theirs.shape != ours.shape or not 0 <= checkpoint.step_index <= len(ours):
        return False
    return torch.allclose(
        theirs[:, :SCHEDULE_COLUMNS], ours[:, :SCHEDULE_COLUMNS], rtol=_SAME_SCHEDULE, atol=_SAME_SCHEDULE
    )


def _mismatch(name: str, found: str) -> CheckpointMismatchError:
    return CheckpointMismatchError(f"the image checkpoint has another {name}: {found}; the image begins again")
