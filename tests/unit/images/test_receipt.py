"""The receipt of an image that was put down midway."""

from __future__ import annotations

from typing import cast

import pytest
from tests.support.engines import make, run
from tests.support.exact import ExactFamily

from latentfarm.storage.embedded_receipt import embedded_receipt
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.images.receipt import ImageFileEncoder
from latentfarm_worker.models import Family

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("micro_batch", [4, 2])
def test_a_file_has_the_spans_of_an_image_only_if_their_conditions_differ(micro_batch: int) -> None:
    family, job = cast("Family", ExactFamily()), make(0, num_inference_steps=6, draft=0.5)
    first, second = (Engine(family, slots=2, micro_batch=rows) for rows in (4, micro_batch))
    first.admit(job)
    draft = run(first)[0]
    assert isinstance(draft, Rendered)
    second.admit(second.prepare(job, finish=True, checkpoint=draft.checkpoint))
    done = run(second)[0]
    assert isinstance(done, Rendered)
    assert (done.evaluations, done.evaluations_made) == (6, 3)
    encoder = ImageFileEncoder(second, model="exact", embed_metadata=True)
    spans = encoder.provenance(done)["spans"]
    assert [(span["start"], span["stop"], span["micro_batch"]) for span in spans] == [(0, 3, 4), (3, 6, micro_batch)]
    embedded = embedded_receipt(encoder.encode(done), "0.png", job.name)
    assert embedded is not None
    assert embedded.get("spans") == (None if micro_batch == 4 else spans)
