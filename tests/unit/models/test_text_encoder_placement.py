"""Text encoders that are moved give the same bits, are moved once for many prompts, and are chosen by their size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.engines import make, pixels, run
from tests.support.tiny import Kind, make_tiny

from latentfarm.settings import Settings
from latentfarm_worker.build import make_engine
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.models import Memory, load_family
from latentfarm_worker.text_encoders.embedding_files import EmbeddingFiles
from latentfarm_worker.text_encoders.placement import EncoderPlacement, bytes_of, choose_placement
from latentfarm_worker.text_encoders.prompt import Prompt

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
KINDS: list[Kind] = ["sd1", "sdxl", "sd3", "sd3-no-t5", "flux", "flux2", "zimage"]


def load(folder: Path, placement: Any = "auto") -> Any:
    return load_family(folder, dtype=torch.float32, device=CPU, memory=Memory(text_encoder=placement))


def moving(family: Any) -> list[list[int]]:
    """Let the family's encoders be copied for each call, as to a GPU; return the addresses that they had in each."""
    placed = family.encoder_placement
    placed.placement = "offload"
    seen: list[list[int]] = []
    encode = family.encode

    def watched(prompts: Any) -> Any:
        seen.append(addresses(family))
        return encode(prompts)

    family.encode = watched
    return seen


def addresses(family: Any) -> list[int]:
    return [tensor.data_ptr() for part in family.encoder_parts for tensor in family.modules[part].parameters()]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / request.param, kind=request.param)


def test_on_a_cpu_every_placement_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "sd1")
    images = set()
    for placement in ("auto", "resident", "offload", "cpu"):
        family = load(folder, placement)
        assert family.encoder_placement.is_resident
        engine = Engine(family, slots=1)
        engine.admit(make(0, prompt="a cat", num_inference_steps=1))
        images.add(pixels(run(engine)[0]))
    assert len(images) == 1


def test_encoders_that_are_moved_give_the_same_bits_and_come_back(folder: Path) -> None:
    family = load(folder)
    prompts = [Prompt(family.tokenize("a cat")), Prompt(family.tokenize(""), negative=True)]
    with torch.inference_mode():
        before = [dict(text) for text in family.encode(prompts)]
    at_home = addresses(family)
    seen = moving(family)
    after = family.encoder_placement.encode(family.encode, prompts)
    assert len(seen) == 1
    assert not {*seen[0]} & {*at_home}, "it computed with copies"
    assert addresses(family) == at_home
    for one, other in zip(before, after, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_encoders_are_moved_once_for_all_waiting_images_and_their_bytes_stay(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "sd1")
    jobs = [make(index, num_inference_steps=2 + index % 2) for index in range(6)]
    done = []
    for moved in (False, True):
        family = load(folder)
        seen = moving(family) if moved else []
        engine = Engine(family, slots=2)
        for job in jobs:
            engine.admit(job)
        done.append({index: pixels(image) for index, image in run(engine).items()})
        if moved:
            # seven prompts, the empty negative one among them, in groups of at most four; moved once
            assert len(seen) == 2
            assert seen[0] == seen[1]
    assert done[0] == done[1]


def test_a_prompt_that_breaks_the_encoder_is_found_among_the_waiting_images(tmp_path: Path) -> None:
    family = load(make_tiny(tmp_path / "sd1"))
    moving(family)
    encode = family.encode
    bad = family.tokenize("image 4")

    def breaks(prompts: list[Prompt]) -> Any:
        if any(prompt.tokens == bad for prompt in prompts):
            raise RuntimeError("the encoder broke")
        return encode(prompts)

    family.encode = breaks
    engine = Engine(family, slots=2)
    for index in range(6):
        engine.admit(make(index))
    done: dict[int, Any] = {}
    while engine.busy:
        try:
            outcomes = engine.step()
        except RuntimeError as error:
            outcomes = [*engine.isolate(error)]
        done.update({each.job.index: each for each in outcomes})
    assert {index for index, image in done.items() if isinstance(image, Rendered)} == {0, 1, 2, 3, 5}
    assert done[4].error.code == "engine_error"


def test_encoders_are_resident_where_a_quarter_of_the_memory_stays_free_and_moved_where_they_fit() -> None:
    gigabyte = 10**9
    # FLUX.1 in bfloat16, 24 GB of transformer, T5 and CLIP of 9.8 GB
    assert choose_placement(10 * gigabyte, free=56 * gigabyte, total=80 * gigabyte) == "resident"
    assert choose_placement(10 * gigabyte, free=16 * gigabyte, total=40 * gigabyte) == "offload"
    assert choose_placement(10 * gigabyte, free=8 * gigabyte, total=32 * gigabyte) == "cpu"
    # SD 1.5 on 8 GB
    assert choose_placement(gigabyte // 4, free=6 * gigabyte, total=8 * gigabyte) == "resident"


def test_shared_weights_count_and_are_moved_once() -> None:
    one, other = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    other.weight = one.weight
    assert bytes_of([one, other]) == 64
    placed = EncoderPlacement([one, other], "meta", "offload")
    with placed.ready(), placed.ready():
        assert one.weight is other.weight
        assert one.weight.is_meta
        assert isinstance(one.weight, torch.nn.Parameter)
    assert one.weight is other.weight
    assert not one.weight.is_meta


# -- what is on disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(tmp_path: Path) -> tuple[Any, list[int]]:
    family = load(make_tiny(tmp_path / "model"))
    calls: list[int] = []
    encode = family.encode

    def counts(prompts: Any) -> Any:
        calls.append(len(prompts))
        return encode(prompts)

    family.encode = counts
    return family, calls


def key_of(family: Any, tmp_path: Path) -> str:
    files = EmbeddingFiles(tmp_path / "unused", conditions=family.text_conditions, max_bytes=1)
    return files.key(Prompt(family.tokenize("a cat")))


def test_an_embedding_has_another_key_for_other_weights_dtypes_configs_and_tokenizers(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "model", kind="flux")
    same = make_tiny(tmp_path / "other-folder", kind="flux")
    keys = [key_of(load(folder), tmp_path)]
    assert key_of(load(same), tmp_path) == keys[0]
    keys.append(key_of(load(make_tiny(tmp_path / "other-weights", kind="flux", seed=1)), tmp_path))
    keys.append(key_of(load_family(folder, dtype=torch.bfloat16, device=CPU), tmp_path))
    for file, field, value in (
        ("text_encoder/config.json", "hidden_act", "gelu"),
        ("text_encoder_2/config.json", "relative_attention_max_distance", 64),
        ("tokenizer_2/tokenizer_config.json", "model_max_length", 40),
    ):
        changed = make_tiny(tmp_path / field, kind="flux")
        config = json.loads((changed / file).read_text())
        assert config.get(field) != value
        (changed / file).write_text(json.dumps({**config, field: value}))
        keys.append(key_of(load(changed), tmp_path))
    assert len({*keys}) == len(keys) == 6


def test_many_rows_with_few_prompts_encode_each_once_and_after_a_restart_none(
    counted: tuple[Any, list[int]], tmp_path: Path
) -> None:
    family, calls = counted
    texts = [f"prompt number {number}" for number in range(6)]
    jobs = [make(index, prompt=texts[index % 6], num_inference_steps=1) for index in range(60)]

    def engine() -> Engine:
        files = EmbeddingFiles(tmp_path / "embeddings", conditions=family.text_conditions, max_bytes=2**30)
        engine = Engine(family, slots=8, embeddings=files)
        # as if a prompt were as large as those of FLUX.1: one fits
        engine._texts._max_bytes = 40_000
        return engine

    images = []
    for _ in range(2):
        rendering = engine()
        for job in jobs:
            rendering.admit(job)
        images.append({index: pixels(image) for index, image in run(rendering).items()})
    assert len(images[0]) == 60
    assert images[0] == images[1]
    assert sum(calls) == 7, "six prompts and the empty negative one"
    without = Engine(family, slots=8)
    without.admit(jobs[7])
    assert pixels(run(without)[7]) == images[0][7], "the bytes are those of a fresh encoding"


def test_a_worker_that_starts_again_reads_what_it_encoded_and_without_bytes_it_stores_nothing(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "model")
    encoded = []
    images = set()
    for size in (2**20, 2**20, 0):
        settings = Settings(slots=2, micro_batch=4, cache_dir=tmp_path / "cache", embedding_cache_bytes=size)
        engine = make_engine(load(folder), settings)
        # it has encoded the empty prompt
        engine.warm_up()
        engine.admit(make(0, prompt="a cat"))
        images.add(pixels(run(engine)[0]))
        encoded.append(engine._texts.encoded)
        if engine._texts._files is not None:
            engine._texts._files.flush()
    assert encoded == [3, 0, 3], "the prompt, the empty negative prompt, and that of the warm-up"
    assert len(images) == 1
    assert len([*(tmp_path / "cache" / "embeddings").glob("*/*")]) == 3
