"""Textual inversion embeddings, against diffusers' ``load_textual_inversion``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.support.engines import make, run
from tests.support.pipelines import by_pipeline, config_of, difference, open_pipeline, render
from tests.support.tiny import make_tiny

from latentfarm.adapter_kind import AdapterKind
from latentfarm.errors import JobError
from latentfarm_worker.adapters.catalogue import open_catalogue
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.engine.text_cache import TextCache
from latentfarm_worker.models import load_family
from latentfarm_worker.text_encoders.conditions import embedding_conditions
from latentfarm_worker.text_encoders.embedding_files import EmbeddingFiles
from latentfarm_worker.text_encoders.prompt import FIRST_VECTOR, Prompt

pytestmark = pytest.mark.unit

#: aliases and their numbers of vectors
VECTORS = {"nested": 1, "many": 5, "long-one": 40}
#: names of the tensors in a file for a model with so many text encoders
NAMES = {1: ("emb_params",), 2: ("clip_l", "clip_g")}


def write_embedding(path: Path, widths: Sequence[int], count: int, *, seed: int = 0, scale: float = 0.5) -> Path:
    """Write the file of an embedding with random vectors."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(count, width, generator=generator) * scale for width in widths]
    save_file(dict(zip(NAMES[len(widths)], tensors, strict=True)), path)
    return path


def refuse_store(name: str) -> Any:
    raise AssertionError(f"no store is opened, but {name} was")


def use_files(family: Any, folder: Path) -> Any:
    """Let the prompts of a family name the files of a folder; return the family."""
    catalogue = open_catalogue(str(folder), cache=folder / "cache", max_bytes=10**9, open_store=refuse_store)
    family.use_embeddings(catalogue)
    return family


def load(folder: Path) -> Any:
    return load_family(folder, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of embeddings for the model."""
    folder = tmp_path_factory.mktemp("embeddings")
    widths = load(model).embedding_widths
    for seed, (alias, count) in enumerate(VECTORS.items()):
        write_embedding(folder / f"{alias}.safetensors", widths, count, seed=seed)
    return folder


@pytest.fixture(scope="module")
def named(model: Path, folder: Path) -> Any:
    """A family whose prompts may name the embeddings."""
    return use_files(load(model), folder)


def load_into_pipeline(pipe: Any, folder: Path, aliases: Sequence[str]) -> Any:
    """Load embeddings into a pipeline, in this order; return it."""
    for alias in aliases:
        path = folder / f"{alias}.safetensors"
        if not hasattr(pipe, "text_encoder_2"):
            pipe.load_textual_inversion(str(path), token=f"<{alias}>")
            continue
        from safetensors.torch import load_file

        tensors = load_file(path)
        for name, suffix in (("clip_l", ""), ("clip_g", "_2")):
            pipe.load_textual_inversion(
                tensors[name],
                token=f"<{alias}>",
                text_encoder=getattr(pipe, f"text_encoder{suffix}"),
                tokenizer=getattr(pipe, f"tokenizer{suffix}"),
            )
    return pipe


@pytest.fixture(scope="module")
def inverted(model: Path, folder: Path) -> Any:
    """The pipeline with the embeddings."""
    return load_into_pipeline(open_pipeline(model), folder, list(VECTORS))


def ids_by_pipeline(pipe: Any, text: str) -> tuple[list[int], int]:
    """Return the ids of a prompt, without start and end, and the first id of an added token."""
    converted = pipe.maybe_convert_prompt(text, pipe.tokenizer)
    ids = pipe.tokenizer([converted], add_special_tokens=False, truncation=False, verbose=False).input_ids[0]
    return list(ids), len(pipe.tokenizer) - sum(VECTORS.values())


TEXTS = [
    "<nested>",
    "a circle, <nested>",
    "a<nested>b",
    "<many> and <nested> and <many>",
    "<NESTED> <unknown> <nested",
    "x " * 70 + "<long-one> at the end",
    "<long-one> " * 3,
]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_the_pipelines(named: Any, inverted: Any, text: str) -> None:
    ids, first = ids_by_pipeline(inverted, text.lower())
    before = {alias: sum([*VECTORS.values()][:at]) for at, alias in enumerate(VECTORS)}
    tokens = named.tokenize(text)
    found = [each.alias for each in tokens.embeddings for _ in range(len(each))]
    places = [at for each in tokens.embeddings for at in range(len(each))]
    expected = [
        number
        if number < FIRST_VECTOR
        else first + before[found[number - FIRST_VECTOR]] + places[number - FIRST_VECTOR]
        for number in tokens.chunks[0]
    ]
    assert expected == ids[:75]
    assert (tokens.count, tokens.truncated) == (len(ids) + 2, len(ids) > 75)


@given(st.lists(st.sampled_from(["<nested>", "<many>", "a", " ", "é", ", ", "<", ">", "tree", "🎨"]), max_size=20))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_number_of_tokens_is_the_pipelines_for_any_text(named: Any, inverted: Any, words: list[str]) -> None:
    text = "".join(words)
    ids, first = ids_by_pipeline(inverted, text)
    tokens = named.tokenize(text)
    assert [min(number, first) for number in ids[:75]] == [min(number, first) for number in tokens.chunks[0]]
    assert tokens.count == len(ids) + 2


@pytest.mark.parametrize("text", [*TEXTS[:4], *TEXTS[5:]])
def test_hidden_states_are_the_pipelines_to_the_bit(named: Any, inverted: Any, text: str) -> None:
    with torch.no_grad():
        wanted = inverted.encode_prompt(
            text, device=torch.device("cpu"), num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    [found] = named.encode([Prompt(named.tokenize(text))])
    assert torch.equal(found["encoder_hidden_states"], wanted[0][0])
    if "text_embeds" in found:
        assert torch.equal(found["text_embeds"], wanted[2][0])


def test_images_in_one_run_with_others_are_the_pipelines(named: Any, inverted: Any) -> None:
    jobs = [
        make(0, prompt="a circle, <nested>", num_inference_steps=4),
        make(1, prompt="a circle", num_inference_steps=5),
        make(2, prompt="<many> on a table", negative_prompt="<nested>", num_inference_steps=3),
        make(3, prompt="<nested> <many>", guidance_scale=1.0, scheduler="euler"),
    ]
    config = config_of(inverted)
    done = render(Engine(named, slots=3), jobs)
    found = {job.index: difference(by_pipeline(inverted, config, job), done[job.index]) for job in jobs}
    assert max(found.values()) <= 1, found


def test_an_embedding_changes_its_own_image_only(named: Any, family: Any) -> None:
    plain = make(0, prompt="a circle, <nested>"), make(1, prompt="a circle")
    engines = Engine(named, slots=2), Engine(family, slots=2)
    with_it, without = (render(engine, plain) for engine in engines)
    assert not torch.equal(with_it[0].pixels, without[0].pixels)
    assert torch.equal(with_it[1].pixels, without[1].pixels)


def test_pooled_texts_of_an_old_config_are_the_pipelines(sdxl: Any, tmp_path: Path) -> None:
    # transformers then takes the state of the greatest id, which is that of the last added token
    old, folder = tmp_path / "old", tmp_path / "files"
    shutil.copytree(sdxl.name, old)
    folder.mkdir()
    for seed, alias in enumerate(("many", "nested")):
        write_embedding(folder / f"{alias}.safetensors", sdxl.embedding_widths, VECTORS[alias], seed=seed)
    path = old / "text_encoder_2" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 2}))
    named, pipe = use_files(load(old), folder), load_into_pipeline(open_pipeline(old), folder, ["many", "nested"])
    text = "<many>, a circle, <nested> on paper"
    with torch.no_grad():
        *_, wanted, _ = pipe.encode_prompt(text, do_classifier_free_guidance=False)
    [found] = named.encode([Prompt(named.tokenize(text))])
    assert torch.equal(found["text_embeds"], wanted[0])
    # the web UI takes that of the end
    [at_end] = named.encode([Prompt(named.tokenize(text, "a1111"))])
    assert torch.equal(at_end["encoder_hidden_states"], found["encoder_hidden_states"])
    assert not torch.equal(at_end["text_embeds"], found["text_embeds"])


def test_in_a1111_the_alias_is_a_word_too(named: Any) -> None:
    for text in ("a (nested:1.3) hut", "a (<nested>:1.3) hut", "a (Nested:1.3) hut"):
        tokens = named.tokenize(text, "a1111")
        assert [each.alias for each in tokens.embeddings] == ["nested"]
        assert tokens == named.tokenize("a (<nested>:1.3) hut", "a1111")
        assert tokens.weights[0][tokens.chunks[0].index(-1)] == 1.3
    for text in ("nestedness", "unnested", "nested_1"):
        assert named.tokenize(text, "a1111").embeddings == ()
    assert named.tokenize("a nested hut").embeddings == ()
    assert [each.alias for each in named.tokenize("long-one many", "a1111").embeddings] == ["long-one", "many"]


def test_in_a1111_an_embedding_stays_in_one_chunk(named: Any) -> None:
    words = "x " * 73
    tokens = named.tokenize(f"{words}many x", "a1111")
    vectors = (-1, -2, -3, -4, -5)
    assert [len(chunk) for chunk in tokens.chunks] == [73, 6]
    assert tokens.chunks[1][:5] == vectors
    assert tokens.count == 73 + 5 + 1 + 2
    # where it fits, it stays
    tokens = named.tokenize(f"{'x ' * 70}many x", "a1111")
    assert [len(chunk) for chunk in tokens.chunks] == [75, 1]
    assert tokens.chunks[0][-5:] == vectors


@given(st.lists(st.sampled_from(["many", "x", ",", "long-one", " BREAK "]), max_size=60))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks_have_whole_embeddings_and_all_tokens(named: Any, words: list[str]) -> None:
    text = " ".join(words)
    tokens = named.tokenize(text, "a1111")
    assert all(len(chunk) <= 75 for chunk in tokens.chunks)
    by_alias = {each.alias: 0 for each in tokens.embeddings}
    starts = {}
    for each in tokens.embeddings:
        starts[each.alias] = -1 - sum(len(other) for other in tokens.embeddings[: tokens.embeddings.index(each)])
    for chunk in tokens.chunks:
        for each in tokens.embeddings:
            first, last = starts[each.alias], starts[each.alias] - len(each) + 1
            assert chunk.count(first) == chunk.count(last)
            by_alias[each.alias] += chunk.count(first)
    assert by_alias == {alias: words.count(alias) for alias in by_alias}
    assert tokens.count == sum(map(len, tokens.chunks)) + 2


def test_a_prompt_of_an_embedding_has_cached_numbers_of_its_own_file(named: Any, tmp_path: Path) -> None:
    [prompt, plain] = [Prompt(named.tokenize(text)) for text in ("<nested>", "nested")]
    conditions = embedding_conditions(named.text_conditions, torch.device("cpu"))
    files = EmbeddingFiles(tmp_path / "texts", conditions=conditions, max_bytes=10**8)
    [fresh, _] = TextCache.of(named, files, on_forward=lambda: None).get([prompt, plain])
    files.flush()
    again = TextCache.of(named, files, on_forward=lambda: None)
    [stored] = again.get([prompt])
    assert again.encoded == 0
    assert torch.equal(stored["encoder_hidden_states"], fresh["encoder_hidden_states"])
    # another file under the same name
    other = tmp_path / "other"
    other.mkdir()
    write_embedding(other / "nested.safetensors", named.embedding_widths, 1, seed=9)
    changed = Prompt(use_files(load(Path(named.name)), other).tokenize("<nested>"))
    assert changed.tokens.chunks == prompt.tokens.chunks
    assert changed != prompt
    assert files.key(changed) != files.key(prompt)
    assert changed not in files


def test_many_threads_tokenize_at_once_and_the_tokenizer_stays_as_it_is(named: Any) -> None:
    encoder = named.text_encoders[0]
    before = encoder.tokenizer.get_vocab()
    texts = [f"{'x ' * number}<many> {number}" for number in range(24)]
    wanted = [named.tokenize(text) for text in texts]
    with ThreadPoolExecutor(6) as pool:
        assert [*pool.map(named.tokenize, texts * 4)] == wanted * 4
    assert encoder.tokenizer.get_vocab() == before
    assert encoder.model.get_input_embeddings().weight.shape[0] == encoder.model.config.vocab_size


def test_a_file_of_diffusers_has_one_tensor_under_the_name_of_its_token(sd1: Any, tmp_path: Path) -> None:
    [width] = sd1.embedding_widths
    save_file({"<cat-toy>": torch.arange(float(width))}, tmp_path / "toy.safetensors")
    family = use_files(load(Path(sd1.name)), tmp_path)
    [embedding] = family.tokenize("a <toy>").embeddings
    assert torch.equal(embedding.vectors[0], torch.arange(float(width))[None])


@pytest.mark.parametrize(
    ("tensors", "code", "message"),
    [
        ({"emb_params": torch.ones(2, 768)}, "adapter_mismatch", "of 768 numbers, and the text encoders .* take 64;"),
        ({"clip_l": torch.ones(1, 64), "clip_g": torch.ones(1, 64)}, "adapter_mismatch", "of 64 and 64 numbers"),
        ({"emb_params": torch.full((1, 64), torch.nan)}, "adapter_invalid", "vectors are finite numbers"),
        ({"emb_params": torch.ones(1, 64, dtype=torch.int64)}, "adapter_invalid", r"is \(1, 64\) of torch.int64"),
    ],
)
def test_an_embedding_that_does_not_fit_fails_its_own_job(
    sd1: Any, tmp_path: Path, tensors: dict[str, torch.Tensor], code: str, message: str
) -> None:
    save_file(tensors, tmp_path / "bad.safetensors")
    family = use_files(load(Path(sd1.name)), tmp_path)
    engine = Engine(family, slots=1)
    with pytest.raises(JobError, match=message) as raised:
        engine.prepare(make(0, prompt="a <bad> one"))
    assert raised.value.code == code
    engine.admit(make(1, prompt="a good one"))
    assert isinstance(run(engine)[1], Rendered)


def test_encoders_need_as_many_vectors_each(sdxl: Any, tmp_path: Path) -> None:
    tensors = {
        name: torch.ones(at + 1, width)
        for at, (name, width) in enumerate(zip(NAMES[2], sdxl.embedding_widths, strict=True))
    }
    save_file(tensors, tmp_path / "bad.safetensors")
    family = use_files(load(Path(sdxl.name)), tmp_path)
    with pytest.raises(JobError, match="has 1 and 2 vectors for the text encoders; export it"):
        family.tokenize("<bad>")


def test_an_embedding_with_more_vectors_than_a_chunk_is_cut_in_plain_and_refused_in_a1111(
    sd1: Any, tmp_path: Path
) -> None:
    write_embedding(tmp_path / "huge.safetensors", sd1.embedding_widths, 80)
    family = use_files(load(Path(sd1.name)), tmp_path)
    tokens = family.tokenize("<huge>")
    assert (len(tokens.chunks[0]), tokens.truncated, tokens.count) == (75, True, 82)
    with pytest.raises(JobError, match="huge has 80 vectors, and a chunk has room for 75"):
        family.tokenize("<huge>", "a1111")


def test_a_model_that_takes_none_fails_a_job_that_names_one(tmp_path: Path) -> None:
    family = use_files(load(make_tiny(tmp_path / "sd3", kind="sd3")), write_embedding_folder(tmp_path))
    engine = Engine(family, slots=1)
    with pytest.raises(JobError, match=r"<nested> is an embedding, and .* takes none") as raised:
        engine.prepare(make(0, prompt="a <nested> hut"))
    assert raised.value.code == "adapter_mismatch"
    # a word is a word
    assert engine.prepare(make(0, prompt="a nested hut", prompt_syntax="a1111")).prompts


def write_embedding_folder(folder: Path) -> Path:
    (folder / "files").mkdir()
    write_embedding(folder / "files" / "nested.safetensors", (64,), 1)
    return folder / "files"


def test_the_catalogue_knows_the_files_as_embeddings(folder: Path) -> None:
    catalogue = open_catalogue(str(folder), cache=folder / "cache", max_bytes=10**9, open_store=refuse_store)
    assert catalogue.names(AdapterKind.EMBEDDING) == tuple(sorted(VECTORS))
    assert np.unique([catalogue.get(AdapterKind.EMBEDDING, alias).digest for alias in VECTORS]).size == len(VECTORS)
