"""A call that breaks: one job is the cause, it alone fails, and the other images are what they are without it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engines import JOBS, BreakingFamily, Faulty, make, pixels, run, run_isolating

from latentfarm.job import Job
from latentfarm_worker.engine.device_batch import DeviceBatch
from latentfarm_worker.engine.engine import Engine, Failed, Rendered
from latentfarm_worker.engine.image_state import ImageState
from latentfarm_worker.latent_shape import LatentShape
from latentfarm_worker.models import Family
from latentfarm_worker.text_encoders.prompt import Tensors

pytestmark = pytest.mark.unit

STEPS = 3


def quick(index: int, **fields: Any) -> Job:
    return make(index, **{"num_inference_steps": STEPS, "scheduler": "euler", "width": 64, "height": 64, **fields})


def engine_of(family: Any, *, slots: int, count: int = 0, **options: Any) -> Engine:
    engine = Engine(cast("Family", family), slots=slots, **options)
    for index in range(count):
        engine.admit(quick(index))
    return engine


def failures(done: dict[int, Rendered | Failed]) -> dict[int, str]:
    """Return the messages of the failed jobs, all of which may run again."""
    failed = {index: each for index, each in done.items() if isinstance(each, Failed)}
    assert all((each.error.code, each.retry) == ("engine_error", True) for each in failed.values())
    return {index: str(each.error) for index, each in failed.items()}


def break_once(error: Exception) -> Callable[[], None]:
    """Return a function whose third call raises."""
    calls = iter(range(1_000_000))

    def count() -> None:
        if next(calls) == 2:
            raise error

    return count


# -- the model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [8, 30, 64])
@pytest.mark.parametrize("below", [1001.0, 1.0], ids=["in its first step", "in its last step"])
def test_a_job_that_always_breaks_a_step_fails_alone_after_about_two_more_runs_of_each_image(
    count: int, below: float
) -> None:
    bad = count // 3
    family = BreakingFamily(predict=[bad], below=below)
    engine = engine_of(family, slots=64, count=count)
    evaluations: list[int] = []
    family.before_predict = lambda: evaluations.append(len(engine.at_risk()))
    done = run_isolating(engine)
    assert failures(done) == {bad: f"RuntimeError: predict of job {bad} broke"}
    assert len(done) == count
    assert sum(evaluations) - (count - 1) * STEPS <= 2 * (count + 1) * STEPS


def test_two_bad_jobs_fail_and_no_other() -> None:
    done = run_isolating(engine_of(BreakingFamily(predict=[3, 4]), slots=8, count=16))
    assert failures(done) == {n: f"RuntimeError: predict of job {n} broke" for n in (3, 4)}
    assert len(done) == 16


def test_after_an_error_that_does_not_come_again_every_image_has_its_bytes_and_none_fails(
    sd1: Any, alone: list[bytes]
) -> None:
    count = break_once(ValueError("a passing fault"))

    def predict(*inputs: Any) -> torch.Tensor:
        count()
        return sd1.predict(*inputs)  # type: ignore[no-any-return]

    engine = engine_of(Faulty(sd1, predict=predict), slots=3)
    for index, job in enumerate(JOBS[:2]):
        engine.admit(job.model_copy(update={"index": index}))
    done = run_isolating(engine)
    assert [pixels(done[index]) for index in range(2)] == alone[:2]


@pytest.mark.parametrize("call", ["predict", "encode", "decode"])
def test_an_error_that_does_not_come_again_charges_not_even_an_image_that_was_alone(sd1: Any, call: str) -> None:
    [wanted] = run(engine_of(sd1, slots=2, count=1)).values()
    raised: list[int] = []

    def break_once(*args: Any, **options: Any) -> Any:
        if not raised:
            raised.append(1)
            raise ValueError("a passing fault")
        return getattr(sd1, call)(*args, **options)

    broken: dict[str, Any] = {call: break_once}
    [done] = run_isolating(engine_of(Faulty(sd1, **broken), slots=2, count=1)).values()
    assert raised
    assert pixels(done) == pixels(wanted)


def test_images_of_different_cohorts_have_their_bytes_and_no_call_in_common(sd1: Any, alone: list[bytes]) -> None:
    engine = Engine(sd1, slots=3)
    calls: list[set[object]] = []
    engine.on_forward = lambda: calls.append({*engine.at_risk()})
    cohorts = {"a": None, "b": "lost", "c": "c"}
    for handle, cohort in cohorts.items():
        engine.admit(engine.prepare(JOBS[0], handle, cohort=cohort))
        engine.admit(engine.prepare(make(1, num_inference_steps=2), f"{handle}'s neighbour", cohort=cohort))
    done: dict[object, Rendered | Failed] = {}
    while engine.busy:
        done |= {each.handle: each for each in engine.step()}
    assert [pixels(done[handle]) for handle in cohorts] == [alone[0]] * 3
    assert all(len({str(handle)[0] for handle in call}) <= 1 for call in calls)


def test_images_of_the_broken_call_are_at_risk_and_between_steps_none_is() -> None:
    engine = engine_of(BreakingFamily(predict=[3]), slots=4, count=6)
    assert engine.at_risk() == []
    with pytest.raises(RuntimeError):
        engine.step()
    assert engine.at_risk() == [f"b/{n}" for n in range(4)]
    engine.isolate(RuntimeError())
    assert engine.at_risk() == []
    engine.step()
    assert engine.at_risk() == []


# -- text ----------------------------------------------------------------------------------------------------


def test_a_text_that_cannot_be_encoded_fails_its_job_and_the_running_images_go_on() -> None:
    family = BreakingFamily(encode=[5])
    engine = engine_of(family, slots=8, count=2)
    engine.step()
    calls: list[list[object]] = []
    family.before_predict = lambda: calls.append(engine.at_risk())
    for index in range(2, 8):
        engine.admit(quick(index))
    done = run_isolating(engine)
    assert failures(done) == {5: "RuntimeError: encode of job 5 broke"}
    assert len(done) == 8
    assert sum("b/0" in call for call in calls) == STEPS - 1, "it did not start again"


def test_an_image_whose_rows_cannot_be_written_fails_alone(sd1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table = ImageState.table

    def break_for_one(image: ImageState) -> torch.Tensor:
        if image.job.index == 2:
            raise RuntimeError("no table")
        return table(image)

    monkeypatch.setattr(ImageState, "table", break_for_one)
    done = run_isolating(engine_of(sd1, slots=4, count=4))
    assert failures(done) == {2: "RuntimeError: no table"}
    assert len(done) == 4


# -- decoder, observer ---------------------------------------------------------------------------------------


class StillFamily(BreakingFamily):
    """A model that returns zeros: it leaves the latents a multiple of the initial noise, so they name their image."""

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        return torch.zeros_like(super().predict(latents, timesteps, conditioning))


@pytest.mark.parametrize("group", [1, 4])
def test_a_latent_that_cannot_be_decoded_fails_its_job_and_the_others_are_not_rendered_again(
    group: int,
) -> None:
    family = StillFamily()
    engine = engine_of(family, slots=8, count=8, decode_group=group)
    decode, sizes = family.decode, []
    bad = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(6))[0]

    def break_for_one(latents: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(engine.at_risk()))
        if any(torch.allclose(each / each.std(), bad / bad.std(), atol=1e-4) for each in latents):
            raise RuntimeError("no pixels")
        return decode(latents, **options)

    family.decode = break_for_one  # type: ignore[method-assign]
    calls: list[list[object]] = []
    family.before_predict = lambda: calls.append(engine.at_risk())
    done = run_isolating(engine)
    assert failures(done) == {6: "RuntimeError: no pixels"}
    assert len(done) == 8
    # two micro-batches a step
    assert len(calls) == 2 * STEPS
    assert max(sizes) == group


def test_an_image_that_cannot_be_decoded_again_in_float32_fails_alone(sd1: Any) -> None:
    def decode(latents: torch.Tensor, *, float32: bool = False) -> Any:
        if float32:
            raise ValueError("no float32")
        decoded, finite = sd1.decode(latents)
        return decoded, finite & (next(bad) != 1)

    bad = iter(range(100))
    done = run_isolating(engine_of(Faulty(sd1, vae_dtype=torch.float16, decode=decode), slots=4, count=4))
    assert failures(done) == {1: "ValueError: no float32"}
    assert len(done) == 4


# -- memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_a_job_without_memory_for_it_alone_fails_alone_and_the_others_get_their_slots_back(
    error: Callable[[str], Exception],
) -> None:
    engine = engine_of(BreakingFamily(predict=[2], error=error), slots=8, count=8)
    done = run_isolating(engine)
    assert [index for index, each in done.items() if isinstance(each, Failed)] == [2]
    failed = done[2]
    assert isinstance(failed, Failed)
    assert (failed.error.code, failed.retry) == ("oom", False)
    assert engine.free == 8
    engine.admit(quick(9))
    [later] = run(engine).values()
    assert isinstance(later, Rendered)
    assert later.micro_batch == 8


def test_an_image_that_fits_in_no_tile_leaves_the_groups_of_the_others_as_they_were(sd1: Any) -> None:
    wanted = run(engine_of(sd1, slots=4, count=4, decode_group=4))
    tried: list[tuple[int, bool]] = []
    marks: list[torch.Tensor] = []

    def decode(latents: torch.Tensor, *, tiled: bool = False) -> Any:
        tried.append((len(latents), tiled))
        marks.extend(latents[:1])
        if any(torch.equal(each, marks[0]) for each in latents):
            raise MemoryError
        return sd1.decode(latents, tiled=tiled)

    done = run_isolating(engine_of(Faulty(sd1, decode=decode), slots=4, count=4, decode_group=4))
    assert tried == [(4, False), (2, False), (1, False), (1, True), (4, False)]
    assert isinstance(done[0], Failed)
    assert [pixels(done[n]) for n in (1, 2, 3)] == [pixels(wanted[n]) for n in (1, 2, 3)]


def test_memory_that_runs_out_before_an_image_has_begun_halves_the_batch_and_fails_no_job() -> None:
    family = BreakingFamily()
    encode = family.encode

    def encode_few(prompts: Any) -> Any:
        if len(prompts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(prompts)

    family.encode = encode_few  # type: ignore[method-assign]
    engine = engine_of(family, slots=8, count=8)
    done = run_isolating(engine)
    assert all(isinstance(each, Rendered) for each in done.values())
    assert len(done) == 8
    assert engine._queue.max_rows(LatentShape(8, 8)) == 4


def test_a_batch_of_another_shape_is_made_after_the_last_one_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[DeviceBatch]] = []
    alive: list[int] = []
    initialize = DeviceBatch.__init__

    def initialize_and_count(batch: DeviceBatch, *args: Any, **options: Any) -> None:
        alive.append(sum(each() is not None for each in made))
        made.append(weakref.ref(batch))
        initialize(batch, *args, **options)

    monkeypatch.setattr(DeviceBatch, "__init__", initialize_and_count)
    engine = engine_of(BreakingFamily(), slots=2)
    for index, width in enumerate([64, 128, 96]):
        engine.admit(quick(index, width=width))
    run(engine)
    assert alive == [0, 0, 0]


# -- everything ----------------------------------------------------------------------------------------------

INDICES = st.sets(st.integers(0, 11), max_size=4)
COHORTS = st.lists(st.sampled_from([None, None, "lost", "alone"]), min_size=12, max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    encode=INDICES,
    predict=INDICES,
    decode=INDICES,
    cohorts=COHORTS,
    passing=st.sets(st.integers(0, 40), max_size=3),
    slots=st.integers(1, 8),
    below=st.sampled_from([1.0, 600.0, 1001.0]),
)
def test_any_jobs_that_break_fail_and_all_others_are_rendered_in_calls_of_one_cohort(
    encode: Collection[int],
    predict: Collection[int],
    decode: Collection[int],
    cohorts: list[str | None],
    passing: Collection[int],
    slots: int,
    below: float,
) -> None:
    family = BreakingFamily(encode=encode, predict=predict, below=below)
    engine = engine_of(family, slots=slots)
    of = {n: f"alone {n}" if cohort == "alone" else cohort for n, cohort in enumerate(cohorts)}
    decode_any, calls = family.decode, iter(range(1_000_000))

    def decode_some(latents: torch.Tensor, **options: Any) -> Any:
        if {*decode}.intersection(cast("list[int]", engine.at_risk())):
            raise RuntimeError(f"decode of job {engine.at_risk()[0]} broke")
        return decode_any(latents, **options)

    def check() -> None:
        assert len({of[cast("int", index)] for index in engine.at_risk()}) == 1
        if next(calls) in passing:
            raise ValueError("a passing fault")

    family.decode = decode_some  # type: ignore[method-assign]
    family.before_predict = check
    for index, cohort in of.items():
        engine.admit(engine.prepare(quick(index), index, cohort=cohort))
    done = run_isolating(engine)
    bad = {*encode, *predict, *decode}
    assert failures(done).keys() >= bad
    # only two passing faults, both times alone, charge a job without fault
    assert len(failures(done).keys() - bad) <= len(passing) // 2
    assert len(done) == 12
