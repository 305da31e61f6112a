"""Images that are put down and go on have the bytes of a run without interruption.

So it is with every scheduler, with guidance, inputs, adapters and second stages, in company, and in another process.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engines import make, pixels
from tests.support.exact import ExactFamily
from tests.support.input_images import Inputs, paint, paint_mask
from tests.support.loras import ATTENTION, catalogue_of, changes, write_peft
from tests.support.refined import make_refinable, refined
from tests.support.tiny import SD_SCHEDULE, make_tiny
from tests.support.tiny.controlnets import make_controlnet

from latentfarm import schedulers
from latentfarm.adapter_kind import AdapterKind
from latentfarm.job import Job
from latentfarm_worker.adapters.base import UsedAdapter
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.engine.image_checkpoint import (
    CheckpointError,
    CheckpointMismatchError,
    ImageCheckpoint,
    decode,
    encode,
)
from latentfarm_worker.engine.job_inputs import NO_INPUTS, JobInputs
from latentfarm_worker.input_images.reader import InputReader
from latentfarm_worker.models import Family, load_family

pytestmark = pytest.mark.unit

GUIDANCE: tuple[dict[str, Any], ...] = (
    {"guidance_scale": 1.0},
    {"guidance_scale": 4.0},
    {"guidance_scale": 6.0, "guidance_interval": (0.2, 0.7)},
)


def load(folder: Path) -> Any:
    return load_family(folder, dtype=torch.float32, device=torch.device("cpu"))


def whole(family: Family, jobs: Sequence[Job], inputs: Sequence[JobInputs] = (), **options: Any) -> list[bytes]:
    """Return the images, or strips, of jobs that nothing interrupts; each has its place as its handle."""
    engine = Engine(family, **options)
    for at, job in enumerate(jobs):
        engine.admit(engine.prepare(job, at, inputs=inputs[at] if inputs else NO_INPUTS))
    done = {outcome.handle: outcome for outcome in outcomes_of(engine)}
    return [bytes_of(done[at]) for at in range(len(jobs))]


def outcomes_of(engine: Engine) -> list[Rendered]:
    """Step until the engine is empty."""
    done: list[Rendered] = []
    while engine.busy:
        for outcome in engine.step():
            assert isinstance(outcome, Rendered), outcome
            done.append(outcome)
        engine.check_integrity()
    return done


def bytes_of(outcome: Rendered) -> bytes:
    return pixels(outcome) if outcome.strip is None else outcome.strip.numpy().tobytes()


def drafts_of(engine: Engine, jobs: Sequence[Job], inputs: Sequence[JobInputs] = ()) -> dict[tuple[int, int], Rendered]:
    """Return a draft of each job after every number of evaluations, by the place of the job and that number."""
    # each is made by itself
    engine.shares_beginnings = False
    for at, job in enumerate(jobs):
        given = inputs[at] if inputs else NO_INPUTS
        for evaluations in range(1, engine.prepare(job, inputs=given).evaluations):
            image = engine.prepare(job, (at, evaluations), inputs=given)
            for stage in filter(None, (image, image.second)):
                stage.draft_at = evaluations
            engine.admit(image)
    found = {outcome.handle: outcome for outcome in outcomes_of(engine)}
    for (_, evaluations), outcome in found.items():  # type: ignore[misc]
        assert outcome.checkpoint is not None
        assert outcome.checkpoint.evaluations == evaluations
        assert outcome.strip is None
    return found  # type: ignore[return-value]


def check_all_drafts(
    family: Family,
    jobs: Sequence[Job],
    inputs: Sequence[JobInputs] = (),
    *,
    other: Family | None = None,
    **options: Any,
) -> None:
    """Draft each job after every evaluation, finish the drafts from their files in random company, and compare."""
    wanted = whole(family, jobs, inputs, **options)
    assert len({*wanted}) == len(jobs)
    drafts = drafts_of(Engine(family, **options), jobs, inputs)
    engine = Engine(other or family, **options)
    # longest first, and their neighbours are as far as they are
    for (at, evaluations), draft in sorted(drafts.items(), key=lambda each: -each[0][1]):
        assert draft.checkpoint is not None
        checkpoint = decode(encode(draft.checkpoint))
        given = inputs[at] if inputs else NO_INPUTS
        engine.admit(engine.prepare(jobs[at], (at, evaluations), inputs=given, checkpoint=checkpoint, finish=True))
    for outcome in outcomes_of(engine):
        at, evaluations = outcome.handle  # type: ignore[misc]
        assert bytes_of(outcome) == wanted[at], (jobs[at], evaluations)
        assert (outcome.spans[0].start, outcome.spans[0].stop) == (0, evaluations) or outcome.second
        assert all(one.stop == other.start for one, other in zip(outcome.spans, outcome.spans[1:], strict=False))


# -- schedulers ----------------------------------------------------------------------------------------------


STABLE_DIFFUSION = {"_class_name": "PNDMScheduler", **SD_SCHEDULE, "skip_prk_steps": True}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


def scheduler_cases() -> list[Any]:
    names = [name for name, spec in schedulers.SHORT_NAMES.items() if not spec.class_name.startswith("FlowMatch")]
    cases = [(name, STABLE_DIFFUSION) for name in names]
    cases += [(name, FLOW) for name in ("flow_euler", "flow_heun", "dpm++2m-sde", "unipc", "sa_solver", "deis")]
    # a schedule of noise levels changes the numbers of a solver and not its past
    slow = {name for name in names if name not in schedulers.SOLVERS}
    return [
        pytest.param(name, config, id=name + "-flow" * (config is FLOW), marks=[pytest.mark.slow] * (name in slow))
        for name, config in cases
    ]


@pytest.mark.filterwarnings("ignore")  # diffusers warns about its own use of numpy
@pytest.mark.parametrize(("name", "config"), scheduler_cases())
def test_drafts_of_every_scheduler_after_every_evaluation_have_all_of_its_past(
    name: str, config: dict[str, Any]
) -> None:
    # those of second order make two evaluations a step
    steps = 4 if name.startswith(("heun", "kdpm2", "flow_heun")) else 7
    family = ExactFamily(**config)
    jobs = [make(at, scheduler=name, num_inference_steps=steps, **guidance) for at, guidance in enumerate(GUIDANCE)]
    check_all_drafts(family, jobs, slots=10, other=ExactFamily(**config))


def test_the_noise_of_an_image_that_goes_on_is_drawn_before_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # the noise of one step at a time is held
    monkeypatch.setattr("latentfarm_worker.engine.noise.MAX_BYTES", 1)
    family, job = ExactFamily(), make(0, scheduler="euler_a", num_inference_steps=6)
    check_all_drafts(family, [job], slots=3)
    checkpoint = checkpoint_after(job, 3)
    engine = Engine(family, slots=1)
    engine.admit(engine.prepare(job, checkpoint=checkpoint))
    randn = torch.randn
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", None)
        engine.step()
    assert torch.randn is randn
    assert bytes_of(outcomes_of(engine)[0]) == whole(family, [job], slots=1)[0]


# -- models, inputs, adapters, stages ------------------------------------------------------------------------


def test_drafts_of_text_images_masks_adapters_and_second_stages_in_one_batch(tmp_path: Path) -> None:
    folder, found = make_tiny(tmp_path / "model"), tmp_path / "loras"
    family = load(folder)
    found.mkdir()
    write_peft(found / "one.safetensors", changes(family, rank=4, seed=1, ends=ATTENTION))
    make_controlnet(found / "net", folder)
    family.use_catalogue(catalogue_of(found, tmp_path))
    inputs = Inputs()
    image, mask = inputs.add(paint(1)), inputs.add(paint_mask())
    small: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 4}
    jobs = [
        make(0, scheduler="euler_a", save_intermediates=True, guidance_interval=(0.0, 0.5), **small),
        make(1, scheduler="dpm++2m", image=image, strength=0.8, guidance_scale=1.0, **small),
        make(2, scheduler="heun", image=image, mask_image=mask, mask_blur=2, strength=0.7, **small),
        make(3, scheduler="unipc", loras="one:0.7", **small),
        make(4, scheduler="euler_a", hires_scale=1.5, hires_strength=0.6, save_intermediates=True, **small),
        make(5, scheduler="dpm++2m-sde", hires_scale=1.5, hires_upscaler="pixel", hires_strength=0.5, **small),
        make(6, scheduler="lms", controlnet=("net",), control_image=(image,), control_guidance_end=0.5, **small),
    ]
    reader: Any = InputReader
    check_all_drafts(family, jobs, [reader(inputs, family).read(job) for job in jobs], slots=3)


def test_drafts_of_sdxl_with_a_refiner(tmp_path: Path) -> None:
    family = make_refinable(tmp_path).family
    jobs = [
        refined(0, "dpm++2m", num_inference_steps=4, save_intermediates=True),
        refined(1, "euler_a", num_inference_steps=4, guidance_interval=(0.0, 0.5), guidance_scale=4.0),
        make(2, scheduler="heun", num_inference_steps=2, width=64, height=64),
    ]
    check_all_drafts(family, jobs, slots=3)


@pytest.mark.parametrize("kind", ["sd3", pytest.param("flux", marks=pytest.mark.slow)])
def test_drafts_of_flow_matching_models_by_a_model_that_is_loaded_again(kind: Any, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / kind, kind=kind)
    small: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 3}
    jobs = [
        make(0, guidance_scale=4.0, **small),
        make(1, scheduler="flow_heun", guidance_scale=1.0, **small),
        make(2, scheduler="dpm++2m-sde", hires_scale=1.5, **small),
    ]
    check_all_drafts(load(folder), jobs, slots=3, other=load(folder))


CHILD = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.engine.image_checkpoint import decode
from latentfarm_worker.models import load_family
folder, file, job = sys.argv[1:]
engine = Engine(load_family(Path(folder), dtype=torch.float32, device=torch.device("cpu")), slots=3)
job = Job.model_validate_json(job)
engine.admit(engine.prepare(job, checkpoint=decode(Path(file).read_bytes())))
while engine.busy:
    for outcome in engine.step():
        sys.stdout.buffer.write(outcome.pixels.numpy().tobytes())
"""


def test_an_image_goes_on_in_another_process(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "model")
    family = load(folder)
    job = make(0, scheduler="dpm++2m-sde", num_inference_steps=5)
    engine = Engine(family, slots=3)
    engine.admit(job)
    for _ in range(3):
        engine.step()
    [parked] = engine.park([job.name])
    (tmp_path / "checkpoint").write_bytes(encode(parked.checkpoint))
    arguments = [str(folder), str(tmp_path / "checkpoint"), job.model_dump_json()]
    child = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, check=True)
    assert child.stdout == whole(family, [job], slots=3)[0]


# -- the file ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made() -> tuple[Job, ImageCheckpoint]:
    job = make(0, scheduler="dpm++2m", num_inference_steps=6, hires_scale=1.5)
    return job, checkpoint_after(job, 8)


def checkpoint_after(job: Job, evaluations: int, family: Family | None = None) -> ImageCheckpoint:
    engine = Engine(family or ExactFamily(), slots=1)
    engine.admit(job)
    while engine.remaining()[0][1] != engine.prepare(job).evaluations - evaluations:
        engine.step()
    return engine.park([job.name])[0].checkpoint


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_wherever_the_damage_is(
    made: tuple[Job, ImageCheckpoint], data: st.DataObject
) -> None:
    body = bytearray(encode(made[1]))
    at = data.draw(st.integers(0, len(body) - 1))
    if data.draw(st.booleans()):
        body[at] ^= data.draw(st.integers(1, 255))
    else:
        del body[at:]
    # what is between the entries of the header is no part of the checkpoint
    with suppress(CheckpointError):
        again = decode(bytes(body))
        assert encode(again) == encode(made[1])
        assert at < 8 + int.from_bytes(encode(made[1])[:8], "little")


def test_a_file_of_another_version_is_refused(
    made: tuple[Job, ImageCheckpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentfarm_worker.engine.image_checkpoint.VERSION", 2)
    body = encode(made[1])
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has version 2, and this worker reads version 1"):
        decode(body)


def test_a_file_has_only_what_later_evaluations_read() -> None:
    sizes = {}
    for name in ("euler", "deis", "dpm++2m-sde", "lms"):
        checkpoint = checkpoint_after(make(0, scheduler=name, num_inference_steps=8), 4)
        latents = next(iter(checkpoint.columns.values())).nbytes
        assert len(encode(checkpoint)) < checkpoint.size + 3_000
        sizes[name] = (checkpoint.size - checkpoint.table.nbytes) / latents
    # the latents; with an output; with those before, too; with three outputs
    assert sizes == {"euler": 1, "deis": 2, "dpm++2m-sde": 3, "lms": 4}


def test_a_checkpoint_of_another_image_is_refused_and_one_of_another_device_is_not(
    made: tuple[Job, ImageCheckpoint],
) -> None:
    job, checkpoint = made
    family = ExactFamily()
    engine = Engine(family, slots=3)

    def refused(name: str, checkpoint: ImageCheckpoint = checkpoint, job: Job = job) -> None:
        with pytest.raises(CheckpointMismatchError, match=f"another {name}"):
            engine.prepare(job, checkpoint=checkpoint)

    refused("job", job=job.model_copy(update={"seed": 9}))
    refused("stage", replace(checkpoint, stage=2), job.model_copy(update={"hires_scale": None}))
    refused("draft", job=job.model_copy(update={"draft": 0.5}))
    refused("model", replace(checkpoint, made=checkpoint.made._replace(model="1" * 64)))
    refused("dtype", replace(checkpoint, made=checkpoint.made._replace(dtype="bfloat16")))
    used = (UsedAdapter("one", AdapterKind.LORA, "2" * 64),)
    refused("adapters", replace(checkpoint, made=checkpoint.made._replace(adapters=used)))
    refused("plan", replace(checkpoint, table=checkpoint.table * 1.01))
    refused("plan", replace(checkpoint, step_index=7))
    refused("plan", replace(checkpoint, table=checkpoint.table[1:]))
    refused("past", replace(checkpoint, columns={0: checkpoint.columns[min(checkpoint.columns)]}))
    refused("past", replace(checkpoint, columns={at: each[:1] for at, each in checkpoint.columns.items()}))
    [span, *_] = checkpoint.made.spans
    elsewhere = (span._replace(device="cuda, another", micro_batch=64), *checkpoint.made.spans[1:])
    moved = replace(
        checkpoint,
        made=checkpoint.made._replace(spans=elsewhere, plan="0" * 64),
    )
    image = engine.prepare(job, checkpoint=moved)
    engine.admit(image)
    [outcome] = outcomes_of(engine)
    assert [(each.start, each.stop, each.micro_batch) for each in outcome.spans] == [(0, 6, 64), (6, 8, 2), (8, 10, 2)]
    assert outcome.spans[0].device == "cuda, another"
    assert outcome.second is not None
    assert outcome.second.plan_digest == "0" * 64
    assert bytes_of(outcome) == whole(family, [job], slots=3)[0]
