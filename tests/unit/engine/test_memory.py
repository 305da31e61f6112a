"""Out of memory: the engine halves its slots and restarts its images; a job that does not fit alone fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.engines import Faulty, make, pixels, run

from latentfarm_worker.engine.engine import Engine, Failed, Rendered
from latentfarm_worker.latent_shape import LatentShape
from latentfarm_worker.text_encoders.prompt import Tensors

pytestmark = pytest.mark.unit


def short_of_memory(family: Any, *, rows: int) -> Faulty:
    """Return the family on a device that holds at most so many rows."""

    def predict(latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        if len(latents) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return family.predict(latents, timesteps, conditioning)  # type: ignore[no-any-return]

    return Faulty(family, predict=predict)


def test_without_memory_slots_are_halved_for_good_and_bytes_are_those_of_the_smaller_micro_batch(
    sd1: Any,
) -> None:
    engine = Engine(short_of_memory(sd1, rows=4), slots=8)
    jobs = [make(index, num_inference_steps=index + 2) for index in range(8)]
    for job in jobs:
        engine.admit(job)
    done = run(engine)
    assert len(done) == 8
    assert engine.free == 2  # for the rest of its life
    for job in jobs[:3]:
        few = Engine(sd1, slots=2)
        few.admit(job)
        assert pixels(done[job.index]) == pixels(run(few)[job.index])
    assert {result.micro_batch for result in done.values() if isinstance(result, Rendered)} == {4}


def test_memory_that_runs_out_half_way_restarts_the_running_images(sd1: Any) -> None:
    calls = iter(range(1000))

    def predict(latents: torch.Tensor, *more: Any) -> torch.Tensor:
        if next(calls) == 2:
            raise RuntimeError("HIP out of memory")
        return sd1.predict(latents, *more)  # type: ignore[no-any-return]

    engine = Engine(Faulty(sd1, predict=predict), slots=4)
    job = make(0, num_inference_steps=5, scheduler="euler_a")  # its generator has advanced
    engine.admit(job)
    [got] = run(engine).values()
    few = Engine(sd1, slots=2)
    few.admit(job)
    assert pixels(got) == pixels(run(few)[0])


def test_intermediates_restart_with_their_job(sd1: Any) -> None:
    job = make(0, num_inference_steps=5, scheduler="euler", save_intermediates=True)
    strips = []
    for slots, breaks_at in ((4, 3), (2, None)):
        calls = iter(range(1000))

        def predict(latents: torch.Tensor, *more: Any, calls: Any = calls, at: Any = breaks_at) -> torch.Tensor:
            if next(calls) == at:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return sd1.predict(latents, *more)  # type: ignore[no-any-return]

        engine = Engine(Faulty(sd1, predict=predict), slots=slots)
        engine.admit(job)
        result = run(engine)[0]
        assert isinstance(result, Rendered)
        strips.append(result.strip)
    assert strips[0] is not None
    assert strips[1] is not None
    assert torch.equal(strips[0], strips[1])


def test_only_the_shape_without_memory_gets_fewer_slots(sd1: Any) -> None:
    def predict(latents: torch.Tensor, *more: Any) -> torch.Tensor:
        if latents.shape[2:] == (16, 16) and len(latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sd1.predict(latents, *more)  # type: ignore[no-any-return]

    engine = Engine(Faulty(sd1, predict=predict), slots=16, micro_batch=16)
    for index in range(3):
        engine.admit(make(index, width=128, height=128))
    assert all(isinstance(result, Rendered) for result in run(engine).values())
    assert engine.free == engine.usable_slots == 16
    assert [engine._queue.max_rows(shape) for shape in [LatentShape(16, 16), LatentShape(8, 8)]] == [2, 32]


@pytest.mark.parametrize("method", ["predict", "decode", "encode"])
def test_a_job_without_memory_for_it_alone_fails_with_code_oom(sd1: Any, method: str) -> None:
    def run_out(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    short = Faulty(sd1)
    setattr(short, method, run_out)
    engine = Engine(short, slots=4)
    for index in range(3):
        engine.admit(make(index, num_inference_steps=1, scheduler="euler"))
    done = run(engine)
    assert {result.error.code for result in done.values() if isinstance(result, Failed)} == {"oom"}
    assert len(done) == 3


def test_without_memory_to_decode_an_image_it_and_the_next_ones_are_decoded_in_tiles(sd1: Any) -> None:
    tiles: list[bool] = []

    def decode(latents: torch.Tensor, *, tiled: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        tiles.append(tiled)
        if not tiled:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sd1.decode(latents, tiled=True)  # type: ignore[no-any-return]

    engine, whole = Engine(Faulty(sd1, decode=decode), slots=2), Engine(sd1, slots=2)
    for index in range(2):
        for each in (engine, whole):
            each.admit(make(index, width=128, height=128))
    done, wanted = run(engine), run(whole)
    assert tiles == [False, True, True]
    for index, got in done.items():
        assert isinstance(got, Rendered)
        reference = wanted[index]
        assert isinstance(reference, Rendered)
        assert (got.tiled, reference.tiled) == (True, False)
        assert got.pixels.shape == reference.pixels.shape == (128, 128, 3)
        # each tile is normalized by itself
        assert not torch.equal(got.pixels, reference.pixels)
