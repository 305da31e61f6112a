"""Loading models, encoding prompts, and the stand-in model itself."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import make_tiny

from latentfarm.errors import ModelError
from latentfarm_worker.families import load_family
from latentfarm_worker.text import Prompt, Tensors, TextCache, Tokens

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny(tmp_path / "model")


def load(folder: Path | str, dtype: torch.dtype = torch.float32) -> Any:
    return load_family(folder, dtype=dtype, device=CPU)


def states_of(family: Any, prompt: str) -> torch.Tensor:
    states: torch.Tensor = family.encode([Prompt(family.tokenize(prompt))])[0]["states"]
    return states


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("prompt", ["", "a cat", "ÄÖ 言葉 🎨\n\ttabs", "(a:1.3), [b]", "word " * 100, "x" * 76])
def test_text_states_are_the_pipelines(family: Any, pipeline: Any, prompt: str) -> None:
    with torch.no_grad():
        wanted = pipeline.encode_prompt(prompt, CPU, 1, do_classifier_free_guidance=False)[0][0]
    states = states_of(family, prompt)
    assert states.shape == (77, family.text_encoder.model.config.hidden_size)
    assert torch.equal(states, wanted)


@pytest.mark.parametrize(("letters", "truncated"), [(0, False), (75, False), (76, True), (500, True)])
def test_truncation_is_told(sd1: Any, letters: int, truncated: bool) -> None:  # noqa: FBT001
    tokens = sd1.tokenize("x" * letters)
    assert (tokens.count, tokens.truncated) == (letters + 2, truncated)


def test_the_cache_is_bounded_and_forgets_the_least_recently_used() -> None:
    encoded: list[list[int]] = []

    def encode(prompts: Sequence[Prompt]) -> list[Tensors]:
        encoded.append([prompt.tokens.count for prompt in prompts])
        return [{"states": torch.tensor(prompt.tokens.count)} for prompt in prompts]

    cache = TextCache(encode, size=2)
    for wanted in [[1], [2], [1], [3], [1], [2], [4, 1, 5, 4, 2]]:
        got = cache.get([Prompt(Tokens(((),), count=each)) for each in wanted])
        assert [int(each["states"]) for each in got] == wanted
    assert encoded == [[1], [2], [3], [2], [4, 5]]
    assert len(cache) == 2


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(folder: Path, dtype: torch.dtype) -> None:
    family = load(folder, dtype)
    assert family.vae.dtype == (torch.float32 if dtype == torch.float16 else dtype)  # force_upcast
    states = states_of(family, "a cat")
    assert states.dtype == dtype
    output = family.predict(torch.randn(1, 4, 8, 8), torch.tensor([500.0]), {"states": states[None]})
    assert output.dtype == torch.float32
    pictures, finite = family.decode(torch.randn(2, 4, 8, 8))
    assert (pictures.shape, pictures.dtype, finite.tolist()) == ((2, 64, 64, 3), torch.uint8, [True, True])


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


def test_what_is_no_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no model_index\.json there"):
        load(tmp_path)
    with pytest.raises(ModelError, match=r"no model_index\.json there"):
        load(tmp_path / "nowhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"nobody/nothing: not in the local hub cache .*HF_HUB_OFFLINE"):
        load("nobody/nothing")


@pytest.mark.parametrize(
    ("file", "fields", "says"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "names the pipeline 'FluxPipeline'"),
        ("unet/config.json", {"in_channels": 9}, "no text-to-image model"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "time_cond_proj_dim is 256"),
        ("unet/config.json", {"block_out_channels": [32, 128]}, "cannot be loaded"),
        ("scheduler/scheduler_config.json", {"_class_name": "Nonsense"}, "no scheduler 'Nonsense'"),
    ],
)
def test_models_that_are_not_ours_are_refused(folder: Path, file: str, fields: dict[str, Any], says: str) -> None:
    edit(folder / file, **fields)
    with pytest.raises(ModelError, match=says):
        load(folder)


def test_a_broken_or_missing_part_is_refused(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        load(folder)
    shutil.rmtree(folder / "vae")
    with pytest.raises(ModelError, match="vae: no weights there"):
        load(folder)


def test_the_digest_belongs_to_the_weights(tmp_path: Path) -> None:
    first = make_tiny(tmp_path / "first")
    again = make_tiny(tmp_path / "again")
    other = make_tiny(tmp_path / "other", seed=1)
    digests = [load(place).model_digest for place in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]
    edit(first / "model_index.json", note="not weights")
    assert load(first).model_digest == digests[0]


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_the_stand_in_is_the_same_bytes_each_time(tmp_path: Path, kind: Any) -> None:
    state = torch.get_rng_state()
    places = [make_tiny(tmp_path / name, kind=kind) for name in ("a", "b")]
    assert torch.equal(torch.get_rng_state(), state)
    files = sorted(path.relative_to(places[0]) for path in places[0].rglob("*") if path.is_file())
    assert files
    for file in files:
        assert (places[0] / file).read_bytes() == (places[1] / file).read_bytes(), file
    assert make_tiny(places[0], seed=7) == places[0]  # left alone
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_stand_ins_layouts(model: Path, pipeline: Any) -> None:
    kind = model.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = pipeline.unet.config
    assert config.use_linear_projection is (kind == "sd2")
    assert pipeline.scheduler.config.prediction_type == ("v_prediction" if kind == "sd2" else "epsilon")
    assert sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) < 8e6
