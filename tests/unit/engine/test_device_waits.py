"""Nothing in a step waits for the device, and a step stays within its budget of copies and operations.

The model is on the meta device, where reading a number raises and every copy can be counted. The model itself is
replaced by one operation, so that what is counted is the engine's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.engines import Faulty, make
from tests.support.tiny import Kind, make_tiny
from tests.support.transfers import META, Transfers, send_to_meta

from latentfarm_worker.engine import device_batch, micro_batch, noise
from latentfarm_worker.engine.continuation import columns_read, made_by
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.engine.image_checkpoint import ImageCheckpoint
from latentfarm_worker.models import load_family
from latentfarm_worker.text_encoders import clip, t5

pytestmark = pytest.mark.unit

#: operations of the engine for one micro-batch in a step without admissions
STEP_BUDGET = 75
#: the same for the noise of all images of a step
NOISE_BUDGET = 8
#: the same for the estimate of a partial image
ESTIMATE_BUDGET = 8
#: the same for what is read of the slots, an image
VIEW_BUDGET = 10
#: copies from the host for an image that begins: latents, plan, and the indices of the step's micro-batches
ADMISSION_BUDGET = 3


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    loaded = load_family(make_tiny(tmp_path / "tiny"), dtype=torch.float16, device=META)
    for module in (device_batch, micro_batch, noise, clip):
        monkeypatch.setattr(module, "send", send_to_meta)
    return Faulty(loaded, predict=lambda latents, *_: latents.clone())


def engine_with(family: Any, *schedulers: str, **fields: Any) -> Engine:
    """Return an engine in which a job of each scheduler has begun."""
    engine = Engine(family, slots=4)
    for index, scheduler in enumerate(schedulers):
        engine.admit(make(index, scheduler=scheduler, num_inference_steps=12, **fields))
    engine.step()
    return engine


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_a_step_copies_nothing_from_the_host_and_stays_within_its_operations(
    family: Any, guidance_scale: float
) -> None:
    engine = engine_with(family, "euler", "dpm++2m", "heun", "unipc", guidance_scale=guidance_scale)
    for _ in range(3):
        with Transfers() as transfers:
            engine.step()
        assert transfers.copies == []
        assert len(transfers.operations) <= STEP_BUDGET, transfers.operations


@pytest.mark.parametrize("kind", ["sd3", "flux", "schnell", "chroma"])
def test_a_step_of_a_flow_model_copies_nothing_from_the_host_its_transformer_included(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (device_batch, micro_batch, noise, clip, t5):
        monkeypatch.setattr(module, "send", send_to_meta)
    family = load_family(make_tiny(tmp_path / "tiny", kind=kind), dtype=torch.float16, device=META)
    engine = engine_with(family, "flow_euler", "flow_heun", "dpm++2m", "unipc", guidance_scale=3.5)
    for _ in range(2):
        with Transfers() as transfers:
            engine.step()
        assert transfers.copies == []
        assert len(transfers.operations) > STEP_BUDGET, "the transformer runs"
    replaced = engine_with(Faulty(family, predict=lambda latents, *_: latents.clone()), "flow_euler")
    with Transfers() as transfers:
        replaced.step()
    assert len(transfers.operations) <= STEP_BUDGET, transfers.operations


def test_the_operations_of_a_step_do_not_grow_with_its_images(family: Any) -> None:
    counts = []
    for images in (1, 4):
        engine = engine_with(family, *["euler"] * images)
        with Transfers() as transfers:
            engine.step()
        counts.append(len(transfers.operations))
    assert counts[0] == counts[1]


def test_noise_of_a_step_is_drawn_and_sent_before_it(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_with(family, "euler_a", "lcm", "dpm++2m-sde")
    monkeypatch.setattr(torch, "randn", None)
    for _ in range(3):
        with Transfers() as transfers:
            engine.step()
        assert transfers.copies == []
        # a view of each image's noise, besides
        assert len(transfers.operations) <= STEP_BUDGET + NOISE_BUDGET + 3 * 2, transfers.operations


def test_an_image_with_intermediates_costs_a_step_no_copy_to_the_host(family: Any) -> None:
    engine = engine_with(family, "euler", save_intermediates=True)
    with Transfers() as transfers:
        engine.step()
        engine.step()
    assert transfers.copies == []
    [image] = engine._running
    assert len(image.frames) == 2


def test_the_estimate_of_a_partial_image_costs_few_operations_and_no_copy_to_the_host(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    # what the decoder costs is not the engine's, and its copy waits on a stream of its own
    monkeypatch.setattr("latentfarm_worker.engine.previews.Previews.advance", lambda _: None)
    for wanted in (0, 3):
        engine = engine_with(family, "euler", partial_images=wanted)
        engine.step()
        # the third of twelve
        with Transfers() as transfers:
            engine.step()
        assert transfers.copies == []
        counts.append(len(transfers.operations))
    assert 0 < counts[1] - counts[0] <= ESTIMATE_BUDGET


def test_a_view_of_the_slots_costs_few_operations_and_reads_no_number(family: Any) -> None:
    engine = engine_with(family, "euler", "heun", "unipc", "lcm")
    engine.step()
    with Transfers() as transfers:
        engine.view_slots()
    # its copy to the host waits on a stream of its own
    assert transfers.copies == []
    assert 0 < len(transfers.operations) <= 4 * VIEW_BUDGET, transfers.operations


def record_sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return the shapes of the tensors that the batch sends to the device from now on."""
    sent: list[tuple[int, ...]] = []

    def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        sent.append(tuple(tensor.shape))
        return send_to_meta(tensor, device)

    for module in (device_batch, micro_batch):
        monkeypatch.setattr(module, "send", send)
    return sent


def test_an_image_that_begins_costs_few_copies_and_reads_no_number(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_with(family, "euler")
    image = engine.prepare(make(9, scheduler="euler_a"))
    sent = record_sent(monkeypatch)
    engine.admit(image)
    with Transfers() as transfers:
        engine.step()
    assert transfers.copies == []
    # one more is the place of the images whose noise is new
    assert len(sent) <= ADMISSION_BUDGET + 1, sent


def test_a_draft_costs_its_step_few_operations_and_no_copy_to_the_host(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what the decoder costs is not the engine's, and its copy waits on a stream of its own
    monkeypatch.setattr("latentfarm_worker.engine.decoder.Decoder.advance", lambda *_, **__: [])
    counts = []
    for draft_at in (None, 2):
        engine = engine_with(family, "euler", "dpm++2m-sde", save_intermediates=True)
        for image in engine._running:
            image.draft_at = draft_at
        with Transfers() as transfers:
            engine.step()
        assert transfers.copies == []
        counts.append(len(transfers.operations))
    assert len(engine._decoder.images) == 2
    # their estimates, and copies of their ring columns
    assert 0 < counts[1] - counts[0] <= 2 * (ESTIMATE_BUDGET + 2 * 4)


def test_an_image_that_goes_on_costs_a_copy_more_for_each_ring_column(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_with(family, "euler")
    image = engine.prepare(make(9, scheduler="dpm++2m-sde", num_inference_steps=8))
    columns = {at: torch.zeros(4, 8, 8) for at in columns_read(image.ring_coefficients, 3)}
    image.checkpoint = ImageCheckpoint(made_by(family, image), 1, 3, 3, columns, image.table())
    image.restart()
    sent = record_sent(monkeypatch)
    engine.admit(image)
    with Transfers() as transfers:
        engine.step()
    assert transfers.copies == []
    # they are in the place of the latents
    assert len(columns) > 1
    assert len(sent) <= ADMISSION_BUDGET + len(columns), sent


def test_a_number_that_the_host_reads_within_a_step_fails_this_test(family: Any) -> None:
    engine = engine_with(Faulty(family, predict=lambda latents, *_: latents * float(latents.sum())))
    engine.admit(make(1, scheduler="euler"))
    with pytest.raises(Exception, match="meta"):
        engine.step()


def test_a_tensor_that_is_sent_by_a_plain_copy_is_counted(family: Any) -> None:
    with Transfers() as transfers:
        torch.ones(4).to(META)
    assert len(transfers.copies) == 1
    del family
