"""Compare images that were rendered again with their receipts and their stored files."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from latentfarm.batch import Batch
from latentfarm.image_formats import JPEG, PILLOW_FORMATS, format_of
from latentfarm.storage.bucket import MissingObjectError
from latentfarm.storage.embedded_receipt import embedded_receipt
from latentfarm_worker.engine.engine import Engine, Failed, Rendered
from latentfarm_worker.images.receipt import ImageFileEncoder
from latentfarm_worker.tools.span_replay import made_otherwise

#: fields that describe a device, so they say nothing if the devices are of two kinds
_OF_THE_DEVICE = ("device_name", "cudnn", "processor", "instruction_set", "threads")
#: the fields of a receipt that an image's bytes depend on; if all are equal, the bytes must be
CONDITIONS = (
    "device",
    *_OF_THE_DEVICE,
    "torch",
    "dtype",
    "quantization",
    "text_encoder",
    "text_encoder_quantization",
    "micro_batch",
    "decode_group",
    "compiled",
    "tiled",
    "deterministic",
)
#: the largest allowed difference of a channel, of 255, under other conditions: in float32, and in a shorter dtype
#: (measured with mini, 12 steps: 1 for another number of threads or slots, 25 between float32 and bfloat16)
TOLERANCE, SHORT_DTYPE_TOLERANCE = 2, 64
#: added for a JPEG, whose quantisation amplifies small differences (measured on 17 images: 27 from a difference of 2)
JPEG_TOLERANCE = 32
_MAX_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class ComparisonResult:
    """The result for one image.

    Attributes:
        job: the job's name.
        differences: what differs from the receipt or from the image rendered again; empty if the image passes.
        tolerance: the largest allowed difference of a channel, of 255; 0 if the bytes must be equal.
        other_conditions: the conditions that differ from the receipt's; then the bytes may differ.
        same_bytes: the file has the same bytes as the one rendered again.
        largest_difference: the largest difference of a channel; None if there are no two images of one size.
    """

    job: str
    differences: tuple[str, ...]
    tolerance: int
    other_conditions: tuple[str, ...] = ()
    same_bytes: bool = False
    largest_difference: int | None = None


def cannot_render(job: str, error: Exception) -> ComparisonResult:
    """Return the result for a job that cannot be rendered again."""
    return ComparisonResult(job, (f"cannot be rendered again: {error}",), tolerance=0)


class Comparison:
    """Compare images that were rendered again with their receipts and their stored files."""

    def __init__(self, batch: Batch, engine: Engine, model: str, *, tolerance: bool) -> None:
        self._bucket = batch.connection.bucket
        self._family = engine.family
        self._tolerance = tolerance
        # a receipt does not say whether the file has metadata, so both forms are accepted
        self._encoders = [ImageFileEncoder(engine, model=model, embed_metadata=embed) for embed in (True, False)]

    def compare(self, line: dict[str, Any], image: Rendered | Failed) -> ComparisonResult:
        """Compare an image with its receipt's line and its file."""
        if isinstance(image, Failed):
            return cannot_render(line["job"], image.error)
        rendered = self._encoders[0].provenance(image)
        others = (*_other_conditions(line, rendered), *self._other_spans(line, rendered))
        tolerance = _tolerance(line, rendered) if others or self._tolerance else 0
        try:
            stored = self._bucket.get(line["key"])
        except MissingObjectError:
            return ComparisonResult(line["job"], (f"the object {line['key']} is missing",), tolerance, others)
        files = [encoder.encode(image) for encoder in self._encoders]
        same_bytes = stored in files
        largest = 0 if same_bytes else _largest_difference(stored, files[0])
        found = _sha256_differs(stored, line["sha256"])
        embedded = embedded_receipt(stored, line["key"], line["job"])
        found += _fields_that_differ(line, embedded, rendered, same_conditions=not others)
        if largest is None:
            found.append(f"the object is not an image of {image.width}x{image.height}")
        elif tolerance == 0 and not same_bytes:
            found.append(f"the bytes differ from the image rendered again; largest difference {largest}/255")
        elif largest > tolerance:
            found.append(f"largest difference {largest}/255, more than {tolerance}/255")
        return ComparisonResult(line["job"], tuple(found), tolerance, others, same_bytes, largest)

    def _other_spans(self, line: dict[str, Any], rendered: dict[str, Any]) -> tuple[str, ...]:
        """Return a description of each span of an image that was put down, and made otherwise than it was here."""
        if line.get("spans") == rendered.get("spans"):
            return ()
        return tuple(
            f"evaluations {span.start} to {span.stop}: {span.micro_batch} rows, {span.dtype}, {span.device}"
            for span in made_otherwise(self._family, line)
        )


def _other_conditions(receipt: dict[str, Any], rendered: dict[str, Any]) -> tuple[str, ...]:
    """Return a description of each condition that is not as in the receipt."""
    differ = [name for name in CONDITIONS if receipt.get(name) != rendered.get(name)]
    if "device" in differ:
        differ = [name for name in differ if name not in _OF_THE_DEVICE]
    # older receipts have fewer fields
    missing = [name for name in differ if name not in receipt]
    known = [
        f"{name}: {receipt[name]} in the receipt, {rendered.get(name, 'none')} here"
        for name in differ
        if name not in missing
    ]
    return (*known, *([f"not in the receipt: {', '.join(missing)}"] if missing else []))


def _tolerance(line: dict[str, Any], rendered: dict[str, Any]) -> int:
    exact = line.get("dtype") == rendered["dtype"] == "float32" and "quantization" not in rendered
    tolerance = TOLERANCE if exact else SHORT_DTYPE_TOLERANCE
    return tolerance + (JPEG_TOLERANCE if format_of(line["key"]) is JPEG else 0)


def _sha256_differs(body: bytes, expected: str) -> list[str]:
    found = hashlib.sha256(body).hexdigest()
    return [] if found == expected else [f"the object has sha256 {found}, its receipt {expected}"]


def _fields_that_differ(
    receipt: dict[str, Any], embedded: dict[str, Any] | None, rendered: dict[str, Any], *, same_conditions: bool
) -> list[str]:
    """Return a description of each field whose values differ between receipt, file and the image rendered again."""
    # a plan's coefficients are fitted, so their last bits, and with them the digest, depend on the machine
    ignored = set() if same_conditions else {*CONDITIONS, "plan", "hires", "refinement"}
    sources = {
        "in the receipt": _flatten(receipt),
        "in the image": _flatten(embedded or {}),
        # as JSON, which has lists and no tuples
        "rendered again": {
            name: value for name, value in _flatten(json.loads(json.dumps(rendered))).items() if name not in ignored
        },
    }
    found = []
    for name in _flatten(rendered):
        values = {where: fields[name] for where, fields in sources.items() if name in fields}
        if any(one != other for one, other in pairwise(values.values())):
            found.append(f"{name}: " + ", ".join(f"{_abbreviate(value)} {where}" for where, value in values.items()))
    return found


def _flatten(provenance: dict[str, Any]) -> dict[str, Any]:
    fields = {**provenance, **provenance.get("request", {})}
    return {name: value for name, value in fields.items() if name != "request"}


def _abbreviate(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else f"{text[: _MAX_SHOWN_CHARACTERS - 3]}..."


def _largest_difference(stored: bytes, rendered: bytes) -> int | None:
    """Return the largest difference of a channel between two files; None if the first is no image of that size."""
    ours = _decoded(rendered)
    try:
        with Image.open(io.BytesIO(stored), formats=PILLOW_FORMATS) as image:
            # check the size before decoding: a forged file may claim gigabytes
            if image.size != (ours.shape[1], ours.shape[0]):
                return None
        theirs = _decoded(stored)
    except (OSError, SyntaxError, ValueError):
        return None
    return int(np.abs(theirs - ours).max())


def _decoded(body: bytes) -> np.ndarray[Any, np.dtype[np.int16]]:
    with Image.open(io.BytesIO(body), formats=PILLOW_FORMATS) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)
