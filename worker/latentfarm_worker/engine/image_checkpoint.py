"""An image between two evaluations of the model: all that it goes on from, on any worker, to the same bytes.

It has no state of a generator: the noise of later steps follows from the seed and from the number of draws before them,
which the sampling plan has. Nor has it inputs or adapters, which are prepared again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError

from latentfarm.adapter_kind import AdapterKind
from latentfarm.errors import LatentfarmError
from latentfarm_worker.adapters.base import UsedAdapter

#: of the form of a file; others are refused
VERSION = 1
#: the entry of a file's metadata with the facts, as JSON, and that with the sha256 over facts and tensors
_FACTS, _SHA256 = "image_checkpoint", "sha256"
#: what a damaged file raises
_DAMAGES = (ValueError, TypeError, LookupError, RecursionError, MemoryError, SafetensorError)


class CheckpointError(LatentfarmError):
    """An image checkpoint cannot be used: it is damaged, or another version wrote it. The image begins again."""


class CheckpointMismatchError(CheckpointError):
    """An image checkpoint is that of another image: of another job, plan, model, dtype or adapter."""


class RenderSpan(NamedTuple):
    """Evaluations of an image that were made without interruption, and what their rounding depends on.

    Attributes:
        start, stop: evaluations of all stages that were done before and after.
        micro_batch: rows of a call of the model.
        device: its conditions, as of a receipt.
        dtype: of the model, and how it is quantized.
    """

    start: int
    stop: int
    micro_batch: int
    device: str
    dtype: str


class FirstStage(NamedTuple):
    """What remains of a first stage that has ended.

    Attributes:
        width, height: pixels.
        evaluations: of the model.
        plan_digest, micro_batch, timings, adapters: as of an image.
        frames: the latents of its intermediates.
        spans: where it was made.
        interrupted: whether it was put down.
    """

    width: int
    height: int
    evaluations: int
    plan_digest: str
    micro_batch: int
    timings: dict[str, float]
    adapters: tuple[UsedAdapter, ...]
    frames: tuple[torch.Tensor, ...]
    spans: tuple[RenderSpan, ...] = ()
    interrupted: bool = False


class Made(NamedTuple):
    """What an image was made by, which it must go on with; and where, which may change.

    Attributes:
        job: sha256 over the fields of the job that determine the image.
        model: the model's digest.
        dtype: of the model, and how it is quantized.
        plan: digest of the stage's sampling plan. A plan is fitted, so its last bits depend on the machine.
        adapters: those of all stages so far.
        spans: where it was made, from the first evaluation to the last.
    """

    job: str
    model: str
    dtype: str
    plan: str
    adapters: tuple[UsedAdapter, ...]
    spans: tuple[RenderSpan, ...]


@dataclass(frozen=True, eq=False)
class ImageCheckpoint:
    """The state of an image between two evaluations of the model. All tensors are on the host.

    Attributes:
        made: by what.
        stage: 1 or 2.
        step_index: evaluations of the stage that are done.
        evaluations: those of all stages.
        columns: by ring column of the batch's state, float32 (C, h, w): those that later evaluations read.
        table: the numbers of each evaluation of the stage, as ``ImageState.table``.
        frames: the latents of the stage's intermediates so far, float32 (C, h, w) each.
        previews: partial images so far.
        timings: seconds of the stage by what took them.
        first: the first stage, of the second one.
    """

    made: Made
    stage: int
    step_index: int
    evaluations: int
    columns: Mapping[int, torch.Tensor]
    table: torch.Tensor
    frames: tuple[torch.Tensor, ...] = ()
    previews: int = 0
    timings: Mapping[str, float] = field(default_factory=dict)
    first: FirstStage | None = None

    @property
    def size(self) -> int:
        """Return the bytes of the tensors."""
        return sum(tensor.nbytes for tensor in _tensors(self).values())


def encode(checkpoint: ImageCheckpoint) -> bytes:
    """Return a checkpoint as a file of safetensors, with all else in its metadata. Thread-safe."""
    tensors = {name: tensor.contiguous() for name, tensor in _tensors(checkpoint).items()}
    facts = json.dumps(_facts(checkpoint))
    return safetensors.torch.save(tensors, {_FACTS: facts, _SHA256: _digest(facts, tensors)})


def decode(body: bytes) -> ImageCheckpoint:
    """Return the checkpoint in a file. Thread-safe.

    Raises:
        CheckpointError: the file is damaged, or another version wrote it.
    """
    try:
        metadata = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]
        facts = json.loads(metadata[_FACTS])
        if facts["version"] != VERSION:
            raise CheckpointError(
                f"the image checkpoint has version {facts['version']}, and this worker reads version {VERSION}; the "
                "image begins again"
            )
        tensors = safetensors.torch.load(body)
        if _digest(metadata[_FACTS], tensors) != metadata[_SHA256]:
            raise ValueError("its sha256 is another")
        return _checkpoint(facts, tensors)
    except _DAMAGES as error:
        raise CheckpointError(
            f"the image checkpoint of {len(body)} bytes is damaged ({error}); the image begins again"
        ) from error


def _tensors(checkpoint: ImageCheckpoint) -> dict[str, torch.Tensor]:
    first = () if checkpoint.first is None else checkpoint.first.frames
    return {
        "table": checkpoint.table,
        **{f"column.{column}": tensor for column, tensor in checkpoint.columns.items()},
        **{f"frame.{at}": frame for at, frame in enumerate(checkpoint.frames)},
        **{f"first.{at}": frame for at, frame in enumerate(first)},
    }


def _facts(checkpoint: ImageCheckpoint) -> dict[str, Any]:
    """Return all but the tensors, in a JSON form."""
    first = checkpoint.first
    return {
        "version": VERSION,
        "made": checkpoint.made._asdict(),
        "stage": checkpoint.stage,
        "step_index": checkpoint.step_index,
        "evaluations": checkpoint.evaluations,
        "columns": [*checkpoint.columns],
        "frames": len(checkpoint.frames),
        "previews": checkpoint.previews,
        "timings": dict(checkpoint.timings),
        "first": None if first is None else {**first._asdict(), "frames": len(first.frames)},
    }


def _checkpoint(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> ImageCheckpoint:
    made, first = facts["made"], facts["first"]
    if first is not None:
        frames = tuple(tensors[f"first.{at}"] for at in range(first["frames"]))
        first = FirstStage(**{**first, "frames": frames, "adapters": _adapters(first), "spans": _spans(first)})
    return ImageCheckpoint(
        made=Made(**{**made, "adapters": _adapters(made), "spans": _spans(made)}),
        stage=facts["stage"],
        step_index=facts["step_index"],
        evaluations=facts["evaluations"],
        columns={column: tensors[f"column.{column}"] for column in facts["columns"]},
        table=tensors["table"],
        frames=tuple(tensors[f"frame.{at}"] for at in range(facts["frames"])),
        previews=facts["previews"],
        timings=facts["timings"],
        first=first,
    )


def _adapters(facts: Mapping[str, Any]) -> tuple[UsedAdapter, ...]:
    return tuple(UsedAdapter(name, AdapterKind(kind), sha256) for name, kind, sha256 in facts["adapters"])


def _spans(facts: Mapping[str, Any]) -> tuple[RenderSpan, ...]:
    return tuple(RenderSpan(*span) for span in facts["spans"])


def _digest(facts: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
