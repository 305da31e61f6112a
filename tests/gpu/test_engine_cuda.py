"""Test the engine on a CUDA device as on the CPU, in the dtypes and programs that workers use there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.pipelines import render
from tests.support.tiny import Kind, make_tiny

from latentfarm.job import Job
from latentfarm.settings import Settings
from latentfarm_worker.calibration.cache import device_name
from latentfarm_worker.compilation import compile_or_run_eagerly
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.engine.image_checkpoint import decode, encode
from latentfarm_worker.images.receipt import ImageFileEncoder
from latentfarm_worker.models import Memory, load_family

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA = torch.device("cuda")
#: plans without noise in their steps, and with it: ancestral, SDE, LCM; None is the model's own
NAMES = ["euler", "euler_a", "dpm++2m", "heun", "unipc", "dpm++2m-sde", "lcm", None]
#: three chunks of 77 tokens, which are single bytes
LONG = "a cat " * 30


def jobs(**fields: Any) -> list[Job]:
    """Return jobs of different schedulers, steps, guidance and text lengths; one saves its intermediates.

    Another has partial images.
    """
    return [
        Job(
            batch="b",
            index=index,
            prompt=LONG if index % 4 == 1 else f"image {index}",
            prompt_syntax="a1111",
            seed=index,
            scheduler=name,
            num_inference_steps=4 + index,
            guidance_scale=1.0 if index % 3 == 2 else 7.5,
            save_intermediates=index == 3,
            partial_images=2 if index == 4 else 0,
            **fields,
        )
        for index, name in enumerate(NAMES)
    ]


def run(family: Any, wanted: list[Job], **options: Any) -> dict[int, torch.Tensor]:
    engine = Engine(family, slots=4, **{"micro_batch": 4, **options})
    return {index: image.pixels for index, image in render(engine, wanted).items()}


@contextmanager
def waits_forbidden() -> Iterator[None]:
    """Let every operation raise that makes the host wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind: Kind = request.param
    return make_tiny(tmp_path_factory.mktemp("models") / kind, kind=kind)


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_image_has_the_same_bytes_alone_and_in_a_batch(
    folder: Path, dtype: torch.dtype, *, cuda_graphs: bool
) -> None:
    family = load_family(folder, dtype=dtype, device=CUDA)
    together = run(family, jobs(), cuda_graphs=cuda_graphs)
    for job in jobs():
        alone = run(family, [job], cuda_graphs=cuda_graphs)
        assert torch.equal(alone[job.index], together[job.index]), job


@pytest.mark.timeout(900)
def test_a_compiled_image_has_the_same_bytes_alone_in_a_batch_and_when_compiled_again(
    folder: Path, tmp_path: Path
) -> None:
    results = []
    for _ in range(2):
        family = load_family(folder, dtype=torch.float16, device=CUDA)
        compile_or_run_eagerly(family, Settings(cache_dir=tmp_path))
        assert family.compiled
        together = run(family, jobs())
        for job in jobs()[:3]:
            assert torch.equal(run(family, [job])[job.index], together[job.index]), job
        results.append(together)
    assert all(torch.equal(results[0][index], results[1][index]) for index in results[0])


def test_cuda_graphs_change_no_byte(folder: Path) -> None:
    family = load_family(folder, dtype=torch.float16, device=CUDA)
    plain, graphed = run(family, jobs()), run(family, jobs(), cuda_graphs=True)
    assert all(torch.equal(plain[index], graphed[index]) for index in plain)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_no_step_waits_for_the_device(folder: Path, *, cuda_graphs: bool) -> None:
    family = load_family(folder, dtype=torch.float16, device=CUDA)
    engine = Engine(family, slots=4, micro_batch=4, decode_group=2, cuda_graphs=cuda_graphs)
    # the first call with each shape may wait: it chooses kernels, allocates memory and captures graphs
    render(engine, jobs())
    engine.take_previews()
    prepared = [engine.prepare(job) for job in jobs(negative_prompt="rain")]
    with waits_forbidden():
        done = render(engine, prepared)
    assert len(done) == len(NAMES)
    assert len(done[3].frames) > 1
    assert len(engine.take_previews()) == 2


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_slots_are_read_without_a_wait_and_images_have_the_same_bytes(folder: Path, *, cuda_graphs: bool) -> None:
    family = load_family(folder, dtype=torch.float16, device=CUDA)
    plain = run(family, jobs(), cuda_graphs=cuda_graphs)
    engine = Engine(family, slots=4, micro_batch=4, cuda_graphs=cuda_graphs)
    engine.warm_up()
    for job in jobs():
        engine.admit(job)
    done, taken = {}, []
    while engine.busy:
        done.update({each.job.index: each.pixels for each in engine.step() if isinstance(each, Rendered)})
        with waits_forbidden():
            engine.view_slots()
            views = engine.slot_viewer.take()
        taken += [views] if views else []
    assert all(torch.equal(done[index], plain[index]) for index in plain)
    seen = [latents for views in taken for latents in views.estimates.values()]
    assert seen
    assert all(latents.device.type == "cpu" and latents.isfinite().all() for latents in seen)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_an_image_that_is_paused_for_an_interactive_one_has_the_same_bytes(folder: Path, *, cuda_graphs: bool) -> None:
    family = load_family(folder, dtype=torch.float16, device=CUDA)
    wanted = jobs()[:3]
    plain = run(family, wanted, cuda_graphs=cuda_graphs)
    engine = Engine(family, slots=2, micro_batch=4, cuda_graphs=cuda_graphs)
    for job in wanted[:2]:
        engine.admit(job)
    engine.step()
    engine.admit(engine.prepare(wanted[2], interactive=True))
    engine.step()
    assert any(image.paused for image in engine._running)
    done = render(engine, [])
    assert all(torch.equal(done[index].pixels, plain[index]) for index in plain)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_drafts_wait_for_no_copy_and_are_finished_to_the_same_bytes(folder: Path, *, cuda_graphs: bool) -> None:
    family = load_family(folder, dtype=torch.float16, device=CUDA)
    plain = run(family, jobs(), cuda_graphs=cuda_graphs)
    engine = Engine(family, slots=4, micro_batch=4, cuda_graphs=cuda_graphs)
    render(engine, jobs())
    prepared = [engine.prepare(job.model_copy(update={"draft": 2})) for job in jobs()]
    with waits_forbidden():
        drafts = render(engine, prepared)
    checkpoints = [each.checkpoint for _, each in sorted(drafts.items()) if each.checkpoint is not None]
    again = [
        engine.prepare(job, checkpoint=decode(encode(checkpoint)))
        for job, checkpoint in zip(jobs(), checkpoints, strict=True)
    ]
    with waits_forbidden():
        done = render(engine, again)
    assert all(torch.equal(done[index].pixels, plain[index]) for index in plain)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_parked_and_suspended_images_have_the_same_bytes(folder: Path, *, cuda_graphs: bool) -> None:
    family = load_family(folder, dtype=torch.float16, device=CUDA)
    wanted = jobs()[:4]
    plain = run(family, wanted, cuda_graphs=cuda_graphs)
    engine = Engine(family, slots=4, micro_batch=4, cuda_graphs=cuda_graphs)
    for job in wanted:
        engine.admit(job)
    engine.step()
    engine.admit(engine.prepare(jobs(width=128, height=64)[4], urgent=True))
    engine.step()
    assert len(engine.paused()) == 4
    while engine.paused():
        engine.step()
    engine.step()
    parked = engine.park([job.name for job in wanted])
    assert len(parked) == 4
    again = [engine.prepare(each.job, checkpoint=decode(encode(each.checkpoint))) for each in parked]
    done = render(engine, again)
    assert all(torch.equal(done[index].pixels, plain[index]) for index in plain)
    assert all(len(done[index].spans) == 3 for index in plain)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="the GPU has no FP8 units"
)
def test_an_fp8_image_has_the_same_bytes_alone_and_in_a_batch_and_it_is_in_the_receipt(folder: Path) -> None:
    pytest.importorskip("torchao")
    family = load_family(folder, dtype=torch.bfloat16, device=CUDA, memory=Memory("fp8"))
    together = run(family, jobs())
    for job in jobs()[:3]:
        assert torch.equal(run(family, [job])[job.index], together[job.index]), job
    engine = Engine(family, slots=2, micro_batch=4)
    [image] = render(engine, jobs()[:1]).values()
    assert ImageFileEncoder(engine, model="tiny", embed_metadata=True).provenance(image)["quantization"] == "fp8"


def test_float32_images_are_within_two_levels_of_the_cpus(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    on_cpu = run(load_family(folder, dtype=torch.float32, device=torch.device("cpu")), jobs())
    on_gpu = run(load_family(folder, dtype=torch.float32, device=CUDA), jobs())
    for index, image in on_cpu.items():
        assert (image.int() - on_gpu[index].int()).abs().max() <= 2, index


def test_a_receipt_names_the_gpu_as_the_list_of_workers_does_and_its_libraries(folder: Path) -> None:
    family = load_family(folder, dtype=torch.float16, device=CUDA)
    engine = Engine(family, slots=2, micro_batch=4)
    [image] = render(engine, jobs()[:1]).values()
    receipt = ImageFileEncoder(engine, model="tiny", embed_metadata=True).provenance(image)
    expected = {
        "device": "cuda",
        "device_name": device_name(CUDA),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "dtype": "float16",
        "micro_batch": 4,
    }
    assert expected.items() <= receipt.items()
    assert not {"threads", "processor", "instruction_set"} & receipt.keys()
