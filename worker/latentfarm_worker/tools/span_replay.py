"""Render an image again as it was made: in spans, put down between them, each with its own rows of a call of the model.

So an image that went on elsewhere has its bytes again, if all of it was made on devices like this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine, Failed, Rendered
from latentfarm_worker.engine.image_checkpoint import ImageCheckpoint, RenderSpan
from latentfarm_worker.engine.job_inputs import JobInputs
from latentfarm_worker.models.base import Family, conditions_of, precision_of

#: from the rows of a call and from whether they are of the second stage to an engine that makes such calls
EngineOf = Callable[[int, bool], Engine]


def spans_of(receipt: Mapping[str, Any]) -> list[RenderSpan]:
    """Return where the image of a receipt was made; none for an image that was never put down."""
    return [RenderSpan(**span) for span in receipt.get("spans", ())]


def made_otherwise(family: Family, receipt: Mapping[str, Any]) -> list[RenderSpan]:
    """Return the spans of a receipt's image that were made elsewhere than by this model, or with other rows of a call.

    The rows are compared with those in the receipt.
    """
    stages = [receipt, *(receipt[name] for name in ("hires", "refinement") if name in receipt)]
    rows = {stage.get("micro_batch") for stage in stages}
    return [span for span in spans_of(receipt) if not _here(family, span) or span.micro_batch not in rows]


def can_replay(family: Family, receipt: Mapping[str, Any]) -> bool:
    """Return whether the spans of a receipt's image differ, but only in their rows."""
    return bool(made_otherwise(family, receipt)) and all(_here(family, span) for span in spans_of(receipt))


def replay(job: Job, inputs: JobInputs, spans: Sequence[RenderSpan], engine_of: EngineOf) -> Rendered | Failed:
    """Render a job in spans.

    Raises:
        JobError: as ``Engine.prepare``.
    """
    checkpoint: ImageCheckpoint | None = None
    for span in spans:
        second = checkpoint is not None and (checkpoint.stage == 2 or checkpoint.step_index == len(checkpoint.table))
        engine = engine_of(span.micro_batch, second)
        image = engine.prepare(job, inputs=inputs, checkpoint=checkpoint, finish=True)
        engine.admit(image)
        left = image.evaluations - span.stop
        while engine.busy and (not left or dict(engine.remaining())[job.name] != left):
            for outcome in engine.step():
                return outcome
        [parked] = engine.park([job.name])
        checkpoint = parked.checkpoint
    raise AssertionError(f"{job.name}: its spans end before its last evaluation")


def _here(family: Family, span: RenderSpan) -> bool:
    return (span.device, span.dtype) == (conditions_of(family), precision_of(family))
