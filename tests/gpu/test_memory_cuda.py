"""Text encoders that are moved or stay on the host, embeddings on disk, and NF4 weights, on a CUDA device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.engines import make, run
from tests.support.tiny import Kind, make_tiny

from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.images.receipt import ImageFileEncoder
from latentfarm_worker.models import Memory, load_family
from latentfarm_worker.models.nf4 import pack
from latentfarm_worker.text_encoders.conditions import embedding_conditions
from latentfarm_worker.text_encoders.embedding_files import EmbeddingFiles
from latentfarm_worker.text_encoders.placement import bytes_of
from latentfarm_worker.text_encoders.prompt import Prompt

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
KINDS: list[Kind] = ["sdxl", "sd3", "flux", "flux2", "zimage"]
JOBS = [make(index, num_inference_steps=2 + index % 3) for index in range(6)]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / request.param, kind=request.param)


def load(folder: Path, memory: Memory, dtype: torch.dtype = torch.bfloat16) -> Any:
    return load_family(folder, dtype=dtype, device=CUDA, memory=memory)


def render(family: Any, **options: Any) -> dict[int, torch.Tensor]:
    engine = Engine(family, slots=2, **options)
    for job in JOBS:
        engine.admit(job)
    done = run(engine)
    return {index: image.pixels for index, image in done.items() if isinstance(image, Rendered)}


def devices_of(family: Any) -> set[str]:
    return {tensor.device.type for part in family.encoder_parts for tensor in family.modules[part].parameters()}


def test_moved_encoders_give_the_bytes_of_resident_ones_and_their_memory_is_free_between(folder: Path) -> None:
    resident = load(folder, Memory(text_encoder="resident"))
    moved = load(folder, Memory(text_encoder="offload"))
    assert devices_of(resident) == {"cuda"}
    assert devices_of(moved) == {"cpu"}
    expected, found = render(resident), render(moved)
    assert len(found) == len(JOBS)
    assert all(torch.equal(found[index], expected[index]) for index in expected)
    assert devices_of(moved) == {"cpu"}
    modules = [moved.modules[part] for part in moved.encoder_parts]
    before = torch.cuda.memory_allocated(CUDA)
    with moved.encoder_placement.ready():
        assert torch.cuda.memory_allocated(CUDA) - before >= bytes_of(modules)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated(CUDA) == before


def test_encoders_on_the_host_compute_there_and_the_receipt_has_it(folder: Path) -> None:
    family = load(folder, Memory(text_encoder="cpu"), torch.float32)
    plain = load(folder, Memory(text_encoder="resident"), torch.float32)
    engine = Engine(family, slots=2)
    engine.admit(JOBS[0])
    [image] = run(engine).values()
    assert isinstance(image, Rendered)
    assert devices_of(family) == {"cpu"}
    assert "text_encoder" in ImageFileEncoder(engine, model="tiny", embed_metadata=True).provenance(image)
    difference = (image.pixels.int() - render(plain)[0].int()).abs().max()
    assert difference <= 2
    # their embeddings on disk are others
    keys = {
        EmbeddingFiles(
            Path("unused"),
            conditions=embedding_conditions(each.text_conditions, each.encoder_placement.device),
            max_bytes=1,
        ).key(Prompt(each.tokenize("a cat")))
        for each in (family, plain)
    }
    assert len(keys) == 2


def test_embeddings_on_disk_have_the_bits_of_those_on_the_gpu_and_nothing_is_encoded_again(
    folder: Path, tmp_path: Path
) -> None:
    family = load(folder, Memory())
    calls: list[int] = []
    encode = family.encode

    def counts(prompts: Any) -> Any:
        calls.append(len(prompts))
        return encode(prompts)

    expected = render(family)
    family.encode = counts
    for _ in range(2):
        files = EmbeddingFiles(tmp_path, conditions=family.text_conditions, max_bytes=2**30)
        found = render(family, embeddings=files)
        files.flush()
        assert all(torch.equal(found[index], expected[index]) for index in expected)
    assert sum(calls) == len({prompt for job in JOBS for prompt in Engine(family, slots=1).prepare(job).prompts})


def test_nf4_packs_the_bits_of_the_cpu_and_images_have_the_same_bytes_in_any_company(folder: Path) -> None:
    weight = torch.randn(256, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    for one, other in zip(pack(weight), pack(weight.cuda()), strict=True):
        assert torch.equal(one, other.cpu())
    family = load(folder, Memory("nf4", text_encoder="offload"))
    together = render(family)
    for job in JOBS[:3]:
        engine = Engine(family, slots=2)
        engine.admit(job)
        [alone] = run(engine).values()
        assert isinstance(alone, Rendered)
        assert torch.equal(alone.pixels, together[job.index])
