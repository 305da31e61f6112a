"""Loading models, encoding prompts, and the tiny model itself."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from tests.support.tiny import Kind, make_tiny

from latentfarm.errors import ModelError
from latentfarm_worker.engine.text_cache import TextCache
from latentfarm_worker.models import load_family, token_counter
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors, TokenizedPrompt

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("templates")
    return {kind: make_tiny(folder / kind, kind=kind) for kind in ("sd1", "sdxl")}


@pytest.fixture
def folder(templates: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a model of kind sd1, which a test may change."""
    return shutil.copytree(templates["sd1"], tmp_path / "model")


@pytest.fixture
def xl_folder(templates: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a model of kind sdxl, which a test may change."""
    return shutil.copytree(templates["sdxl"], tmp_path / "model")


def load(folder: Path | str, dtype: torch.dtype = torch.float32) -> Any:
    return load_family(folder, dtype=dtype, device=CPU)


def states_of(family: Any, prompt: str) -> torch.Tensor:
    states: torch.Tensor = family.encode([Prompt(family.tokenize(prompt))])[0]["encoder_hidden_states"]
    return states


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("prompt", ["", "a cat", "ÄÖ 言葉 🎨\n\ttabs", "(a:1.3), [b]", "word " * 100, "x" * 76])
def test_hidden_states_are_the_pipelines(family: Any, pipeline: Any, prompt: str) -> None:
    with torch.no_grad():
        wanted = pipeline.encode_prompt(prompt, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False)[
            0
        ][0]
    states = states_of(family, prompt)
    assert states.shape == (77, family.unet.config.cross_attention_dim)
    assert torch.equal(states, wanted)


@pytest.mark.parametrize("zeros", [True, False])
def test_both_texts_of_xl_are_the_pipelines(xl_folder: Path, zeros: bool) -> None:  # noqa: FBT001
    edit(xl_folder / "model_index.json", force_zeros_for_empty_prompt=zeros)
    family = load(xl_folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = StableDiffusionXLPipeline.from_pretrained(xl_folder, use_safetensors=True, local_files_only=True)
    for negative in ("", "blurry"):
        with torch.no_grad():
            wanted = pipe.encode_prompt("a cat", device=CPU, negative_prompt=negative or None)
        prompts = [Prompt(family.tokenize("a cat")), Prompt(family.tokenize(negative), negative=True)]
        encoded = [text[name] for name in ("encoder_hidden_states", "text_embeds") for text in family.encode(prompts)]
        for got, expected in zip(encoded, wanted, strict=True):
            assert torch.equal(got, expected[0])
        assert bool((encoded[1] == 0).all()) is (zeros and not negative)


def test_an_empty_prompt_is_never_zeros(sdxl: Any) -> None:
    [text] = sdxl.encode([Prompt(sdxl.tokenize(""))])
    assert text["encoder_hidden_states"].any()
    assert text["text_embeds"].any()


def test_the_projected_text_of_a_long_prompt_is_its_first_chunks(sdxl: Any) -> None:
    tokens = sdxl.tokenize("a cat")
    short, long = sdxl.encode([Prompt(tokens), Prompt(tokens.padded(3))])
    assert long["encoder_hidden_states"].shape == (3 * 77, short["encoder_hidden_states"].shape[1])
    assert torch.equal(long["text_embeds"], short["text_embeds"])


def test_layers_that_an_xl_model_never_reads_cannot_be_skipped(sd1: Any, sdxl: Any) -> None:
    # of two layers one is left, of three the last is not read
    assert (sd1.max_clip_skip, sdxl.max_clip_skip) == (1, 1)


def test_an_xl_model_is_conditioned_on_the_image_size(sdxl: Any) -> None:
    assert sdxl.row_conditioning(96, 64, 7.5)["time_ids"].tolist() == [64, 96, 0, 0, 64, 96]
    [text] = sdxl.encode([Prompt(sdxl.tokenize("a cat"))])
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = []
    for side in (64, 512):
        tensors = {**text, **sdxl.row_conditioning(side, side, 7.5)}
        conditioning = {name: tensor[None] for name, tensor in tensors.items()}
        outputs.append(sdxl.predict(latents, torch.tensor([500.0]), conditioning))
    assert not torch.equal(*outputs)


def test_latents_are_shifted_by_the_xl_vaes_config(xl_folder: Path) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    plain = load(xl_folder)
    mean, std = [0.1, -0.2, 0.3, 0.4], [2.0, 1.0, 0.5, 1.5]
    edit(xl_folder / "vae" / "config.json", latents_mean=mean, latents_std=std)
    shifted, factor = load(xl_folder), plain.vae.config.scaling_factor
    moved = latents * torch.tensor(std).view(1, 4, 1, 1) + factor * torch.tensor(mean).view(1, 4, 1, 1)
    images = [shifted.decode(latents)[0].int(), plain.decode(moved)[0].int(), plain.decode(latents)[0].int()]
    assert (images[0] - images[1]).abs().max() <= 1
    assert (images[0] - images[2]).abs().max() > 3


def test_tokens_are_counted_as_the_model_does(model: Path, family: Any) -> None:
    count = token_counter(model)
    for prompt in ("", "a cat", "word " * 100):
        assert count(prompt) == family.tokenize(prompt).count


@pytest.mark.parametrize(("letters", "truncated"), [(0, False), (75, False), (76, True), (500, True)])
def test_truncation_is_reported(sd1: Any, letters: int, truncated: bool) -> None:  # noqa: FBT001
    tokens = sd1.tokenize("x" * letters)
    assert (tokens.count, tokens.truncated) == (letters + 2, truncated)


def test_the_text_cache_is_bounded_and_drops_the_least_recently_used() -> None:
    encoded: list[list[int]] = []

    def encode(prompts: Sequence[Prompt]) -> list[Tensors]:
        encoded.append([prompt.tokens.count for prompt in prompts])
        return [{"encoder_hidden_states": torch.tensor(prompt.tokens.count)} for prompt in prompts]

    # a number has eight bytes
    cache = TextCache(encode, max_bytes=2 * 8)
    for wanted in [[1], [2], [1], [3], [1], [2], [4, 1, 5, 4, 2]]:
        got = cache.get([Prompt(TokenizedPrompt(((),), count=each)) for each in wanted])
        assert [int(each["encoder_hidden_states"]) for each in got] == wanted
    assert encoded == [[1], [2], [3], [2], [4, 5]]
    assert (len(cache), cache.size_bytes) == (2, 16)


def test_texts_that_are_larger_than_the_cache_are_encoded_and_not_kept() -> None:
    cache = TextCache(lambda prompts: [{"encoder_hidden_states": torch.zeros(9)} for _ in prompts], max_bytes=4 * 9)
    prompts = [Prompt(TokenizedPrompt(((),), count=count)) for count in range(3)]
    assert len(cache.get(prompts)) == 3
    assert (len(cache), cache.size_bytes) == (1, 36)
    small = TextCache(lambda prompts: [{"encoder_hidden_states": torch.zeros(9)} for _ in prompts], max_bytes=35)
    assert len(small.get(prompts)) == 3
    assert (len(small), small.size_bytes) == (0, 0)


def test_a_cached_text_counts_with_the_whole_storage_of_its_tensors() -> None:
    cache = TextCache(lambda prompts: [{"text_embeds": torch.zeros(8, 4)[0]} for _ in prompts])
    cache.get([Prompt(TokenizedPrompt(((),), count=1))])
    assert cache.size_bytes == 8 * 4 * 4


def test_facts_of_a_model(folder: Path) -> None:
    family = load(folder)
    assert (family.native_width, family.native_height, family.vae_scale_factor) == (64, 64, 8)
    assert family.latent_channels == 4
    assert family.scheduler_config["_class_name"] == "PNDMScheduler"
    assert family.scheduler_config["clip_sample"] is False


def test_old_scheduler_configs_are_corrected_as_the_pipeline_does(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", clip_sample=True, steps_offset=0)
    config = load(folder).scheduler_config
    assert (config["clip_sample"], config["steps_offset"]) == (False, 1)


def test_the_schedulers_of_xl_models_are_left_as_they_are(xl_folder: Path) -> None:
    edit(xl_folder / "scheduler" / "scheduler_config.json", steps_offset=0)
    config = load(xl_folder).scheduler_config
    assert (config["steps_offset"], config["timestep_spacing"]) == (0, "leading")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(model: Path, dtype: torch.dtype) -> None:
    family = load(model, dtype)
    upcast = dtype == torch.float16 and family.pipeline == "StableDiffusionXLPipeline"
    assert family.vae.dtype == (torch.float32 if upcast else dtype)
    [text] = family.encode([Prompt(family.tokenize("a cat"))])
    assert {tensor.dtype for tensor in text.values()} == {dtype}
    conditioning = {name: tensor[None] for name, tensor in {**text, **family.row_conditioning(64, 64, 7.5)}.items()}
    output = family.predict(torch.randn(1, 4, 8, 8), torch.tensor([500.0]), conditioning)
    assert output.dtype == torch.float32
    images, finite = family.decode(torch.randn(2, 4, 8, 8))
    assert (images.shape, images.dtype, finite.tolist()) == ((2, 64, 64, 3), torch.uint8, [True, True])


@pytest.mark.parametrize("named", [True, False, None])
def test_only_the_vae_of_an_xl_model_is_upcast_as_in_the_pipelines(
    folder: Path,
    templates: dict[str, Path],
    named: bool | None,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    xl_folder = shutil.copytree(templates["sdxl"], tmp_path / "xl")
    for each in (folder, xl_folder):
        config = json.loads((each / "vae" / "config.json").read_text())
        config.pop("force_upcast")
        # the files of SD 1.x and 2.x do not name it, and the default of diffusers is true
        config |= {} if named is None else {"force_upcast": named}
        (each / "vae" / "config.json").write_text(json.dumps(config))
    assert load(folder, torch.float16).vae_dtype == torch.float16
    assert load(xl_folder, torch.float16).vae_dtype == (torch.float16 if named is False else torch.float32)


def test_decoding_in_float32_is_exact_and_leaves_the_vae_as_it_was(folder: Path) -> None:
    half, latents = load(folder, torch.bfloat16), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    before, _ = half.decode(latents)
    exact, _ = half.decode(latents, float32=True)
    assert half.vae.dtype == half.vae_dtype == torch.bfloat16
    assert torch.equal(half.decode(latents)[0], before)
    half.vae.to(torch.float32)
    assert torch.equal(half.decode(latents)[0], exact)
    assert not torch.equal(exact, before)


def test_a_folder_of_pickles_is_refused(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"only diffusion_pytorch_model\.bin there; .*safetensors only"):
        load(folder)


def test_a_folder_or_name_without_a_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no model_index\.json there"):
        load(tmp_path)
    with pytest.raises(ModelError, match=r"no model_index\.json there"):
        load(tmp_path / "nowhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"unknown/nothing: not in the local hub cache, .*HF_HUB_OFFLINE"):
        load("unknown/nothing")


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("model_index.json", {"_class_name": "LTXPipeline"}, "names the pipeline 'LTXPipeline'"),
        ("unet/config.json", {"in_channels": 9}, "models of StableDiffusionPipeline have 4"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type is 'timestep', not None; use a plain"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time', not None"),
        ("unet/config.json", {"block_out_channels": [32, 128]}, "cannot be loaded"),
        ("scheduler/scheduler_config.json", {"_class_name": "Nonsense"}, "no scheduler 'Nonsense'"),
    ],
)
def test_unsupported_models_are_refused(folder: Path, file: str, fields: dict[str, Any], message: str) -> None:
    edit(folder / file, **fields)
    with pytest.raises(ModelError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("unet/config.json", {"projection_class_embeddings_input_dim": 208}, "is 208, but .* make 240: use a base"),
        ("unet/config.json", {"addition_embed_type": None}, "addition_embed_type is None, not 'text_time'"),
        ("unet/config.json", {"in_channels": 9}, "models of StableDiffusionXLPipeline have 4"),
        ("tokenizer_2/vocab.json", {"<|more|>": 514}, "tokenizer and tokenizer_2 have different vocabularies"),
    ],
)
def test_unsupported_xl_models_are_refused(xl_folder: Path, file: str, fields: dict[str, Any], message: str) -> None:
    edit(xl_folder / file, **fields)
    with pytest.raises(ModelError, match=message):
        load(xl_folder)


def test_a_missing_or_invalid_part_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    with pytest.raises(ModelError, match="vae: no weights there"):
        load(folder)
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        load(folder)


def test_the_digest_depends_on_the_weights_only(templates: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    first, again = templates["sd1"], folder
    other = make_tiny(tmp_path / "other", seed=1)
    digests = [load(place).model_digest for place in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]
    edit(folder / "model_index.json", note="not weights")
    assert load(folder).model_digest == digests[0]


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "flux2", "zimage", "pixart"])
def test_the_tiny_model_has_the_same_bytes_each_time(tmp_path: Path, kind: Kind) -> None:
    state = torch.get_rng_state()
    places = [make_tiny(tmp_path / name, kind=kind) for name in ("a", "b")]
    assert torch.equal(torch.get_rng_state(), state)
    files = sorted(path.relative_to(places[0]) for path in places[0].rglob("*") if path.is_file())
    assert files
    for file in files:
        assert (places[0] / file).read_bytes() == (places[1] / file).read_bytes(), file
    assert make_tiny(places[0], seed=7) == places[0]  # unchanged
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_tiny_models_cover_both_layouts(model: Path, pipeline: Any) -> None:
    kind = model.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = pipeline.unet.config
    assert config.use_linear_projection is (kind != "sd1")
    assert pipeline.scheduler.config.prediction_type == ("v_prediction" if kind == "sd2" else "epsilon")
    assert sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) < 8e6
