"""FLUX.2 klein and Z-Image: what differs from other families, beside the parity of their images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engines import make
from tests.support.pipelines import open_pipeline
from tests.support.tiny import Kind, make_tiny
from tests.support.transfers import META, Transfers, send_to_meta

from latentfarm.errors import JobError, ModelError
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.models import load_family, token_counter, z_image
from latentfarm_worker.text_encoders import qwen3
from latentfarm_worker.text_encoders.prompt import Prompt

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
KINDS: tuple[Kind, ...] = ("flux2", "flux2-distilled", "zimage", "zimage-dynamic")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: make_tiny(folder / kind, kind=kind) for kind in KINDS}


@pytest.fixture(scope="module")
def families(folders: dict[str, Path]) -> dict[str, Any]:
    return {kind: load_family(folder, dtype=torch.float32, device=CPU) for kind, folder in folders.items()}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditioning_of(family: Any, *prompts: str) -> dict[str, torch.Tensor]:
    """Return the conditioning of a row for each prompt, padded to one class."""
    tokens = [family.tokenize(prompt) for prompt in prompts]
    longest = max(each.text_class for each in tokens)
    texts = family.encode([Prompt(each.padded(longest)) for each in tokens])
    return {name: torch.stack([text[name] for text in texts]) for name in texts[0]}


def test_facts_of_the_models(families: dict[str, Any]) -> None:
    klein, image = families["flux2"], families["zimage"]
    assert (klein.latent_channels, klein.vae_scale_factor, klein.pixel_multiple) == (32, 16, 16)
    assert (image.latent_channels, image.vae_scale_factor, image.pixel_multiple) == (16, 8, 16)
    assert {(family.native_width, family.native_height) for family in families.values()} == {(64, 64)}
    assert {(*family.modules,) for family in families.values()} == {("transformer", "vae", "text_encoder")}
    assert {family.encoder_parts for family in families.values()} == {("text_encoder",)}


@pytest.mark.parametrize("kind", ["sd3", "sd3-no-t5", "flux", "flux2", "zimage"])
def test_tokens_are_counted_as_the_model_does_without_its_weights(kind: Kind, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / kind, kind=kind)
    family: Any = load_family(folder, dtype=torch.float32, device=CPU)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    count = token_counter(folder)
    for prompt in ("", "a cat", "ÄÖ 言葉 🎨", "word " * 100):
        assert count(prompt) == family.tokenize(prompt).count, prompt


@pytest.mark.parametrize(
    ("kind", "part", "fields", "message"),
    [
        ("flux2", "transformer", {"in_channels": 64}, "in_channels is 64, out_channels 64, and packed latents have 32"),
        ("flux2", "transformer", {"out_channels": 16}, "in_channels is 32, out_channels 16, and packed latents have 3"),
        ("zimage", "transformer", {"all_patch_size": [4]}, r"patches of \[\(4, 1\)\] and 16 channels"),
        (
            "zimage",
            "transformer",
            {"in_channels": 33},
            "and 33 channels, and latents have 16: this is not a text-to-im",
        ),
    ],
)
def test_models_with_other_inputs_are_refused(
    folders: dict[str, Path], tmp_path: Path, kind: Kind, part: str, fields: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(folders[kind], tmp_path / kind)
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(ModelError, match=message):
        load_family(folder, dtype=torch.float32, device=CPU)


def test_a_size_that_cuts_a_token_is_refused(families: dict[str, Any]) -> None:
    for family in families.values():
        engine = Engine(family, slots=1)
        with pytest.raises(JobError, match=r"height 72 is not a multiple of 16, .* write 64 or 80"):
            engine.prepare(make(0, width=64, height=72))


@pytest.mark.parametrize(
    ("kind", "scale", "rows"),
    [
        ("flux2", 1.0, 1),
        ("flux2", 1.1, 2),
        ("flux2-distilled", 4.0, 1),
        ("zimage", 0.0, 1),
        ("zimage", 0.5, 2),
        ("zimage", 1.0, 2),
    ],
)
def test_guidance_begins_where_the_pipelines_does(
    families: dict[str, Any], kind: Kind, scale: float, rows: int
) -> None:
    image = Engine(families[kind], slots=1).prepare(make(0, guidance_scale=scale))
    assert len(image.prompts) == rows


def test_prompts_of_an_image_are_padded_to_the_class_of_the_longer(families: dict[str, Any]) -> None:
    image = Engine(families["zimage"], slots=1).prepare(make(0, prompt="a cat", negative_prompt="word " * 12))
    assert [len(prompt.tokens.ids) <= 32 for prompt in image.prompts] == [True, False]
    assert [prompt.tokens.ids_length for prompt in image.prompts] == [128, 128]


@settings(max_examples=40, deadline=None)
@given(steps=st.integers(1, 50), width=st.integers(4, 128), height=st.integers(4, 128))
def test_noise_schedules_are_the_pipelines(families: dict[str, Any], steps: int, width: int, height: int) -> None:
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
    from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift, get_default_z_image_sigmas

    klein = families["flux2"].noise_schedule(steps, 16 * width, 16 * height)
    assert klein.mu == compute_empirical_mu(width * height, steps)
    assert len(klein.sigmas) == steps
    image = families["zimage-dynamic"].noise_schedule(steps, 16 * width, 16 * height)
    assert [*image.sigmas] == get_default_z_image_sigmas(steps)
    assert image.mu == pytest.approx(calculate_shift(width * height, 8, 64), rel=1e-12)


def test_the_output_of_a_row_without_guidance_stays_as_it_is(families: dict[str, Any]) -> None:
    output, scale = random(3, 16, 8, 8), torch.tensor([0.0, 1.0, 7.5]).view(3, 1, 1, 1)
    for family in families.values():
        assert torch.equal(family.combine(output, output, scale), output)
    negative = random(3, 16, 8, 8, seed=1)
    wanted = torch.stack([row + s * (row - other) for row, other, s in zip(output, negative, scale, strict=True)])
    assert torch.equal(families["zimage"].combine(output, negative, scale), wanted)


def test_the_latents_of_klein_get_the_vaes_statistics_and_are_unpacked(
    families: dict[str, Any], folders: dict[str, Path]
) -> None:
    family, pipe, latents = families["flux2"], open_pipeline(folders["flux2"]), random(2, 32, 4, 6)
    std = torch.sqrt(pipe.vae.bn.running_var + pipe.vae.config.batch_norm_eps).view(1, -1, 1, 1)
    wanted = pipe._unpatchify_latents(latents * std + pipe.vae.bn.running_mean.view(1, -1, 1, 1))
    assert torch.equal(family._unscaled(latents), wanted)


lengths = st.lists(st.integers(1, 128), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(lengths=lengths, height=st.integers(1, 6), width=st.integers(1, 6), rest=st.floats(-3, 3))
def test_each_row_of_z_images_transformer_is_that_of_diffusers_alone(
    families: dict[str, Any], lengths: list[int], height: int, width: int, rest: float
) -> None:
    model = families["zimage"].denoising_model
    rows = len(lengths)
    latents, times = random(rows, 16, 2 * height, 2 * width), torch.linspace(0.05, 0.95, rows)
    texts = torch.full((rows, 128, 32), rest)
    for row, length in enumerate(lengths):
        texts[row, :length] = random(length, 32, seed=row)
    with torch.inference_mode():
        got = z_image.transform(model, latents, times, texts, torch.tensor(lengths))
        for row, length in enumerate(lengths):
            captions, image = [texts[row, :length]], [latents[row].unsqueeze(1)]
            wanted = model(image, times[row : row + 1], captions, return_dict=False)[0][0].squeeze(1)
            torch.testing.assert_close(got[row], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["flux2", "zimage"])
def test_a_row_does_not_depend_on_the_other_rows(families: dict[str, Any], kind: Kind) -> None:
    family = families[kind]
    latents, timesteps = random(3, family.latent_channels, 4, 6), torch.tensor([900.0, 500.0, 20.0])
    outputs = []
    for others in (("x", "word " * 9), ("some other words", "a b c d e f " * 4)):
        conditioning = conditioning_of(family, "a cat", *others)
        outputs.append(family.predict(latents, timesteps, conditioning)[0])
        latents = torch.cat([latents[:1], random(2, *latents.shape[1:], seed=9)])
    assert torch.equal(*outputs)


@pytest.mark.parametrize("kind", ["flux2", "zimage"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(folders: dict[str, Path], kind: Kind, dtype: torch.dtype) -> None:
    family: Any = load_family(folders[kind], dtype=dtype, device=CPU)
    conditioning = conditioning_of(family, "a cat", "word " * 9)
    assert conditioning["encoder_hidden_states"].dtype == dtype
    latents = random(2, family.latent_channels, 4, 4)
    output = family.predict(latents, torch.tensor([500.0, 3.0]), conditioning)
    assert (output.dtype, output.shape, bool(output.isfinite().all())) == (torch.float32, latents.shape, True)
    images, finite = family.decode(latents)
    side = 4 * family.vae_scale_factor
    assert (images.shape, images.dtype, finite.tolist()) == ((2, side, side, 3), torch.uint8, [True, True])


@pytest.mark.parametrize("kind", ["flux2", "zimage"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_family_waits_for_no_device(
    folders: dict[str, Path], kind: Kind, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    family: Any = load_family(folders[kind], dtype=dtype, device=META)
    for module in (qwen3, z_image):
        monkeypatch.setattr(module, "send", send_to_meta)
    with Transfers() as transfers:
        conditioning = conditioning_of(family, "a cat", "word " * 9)
        latents = torch.empty(2, family.latent_channels, 4, 4, device=META)
        output = family.predict(latents, torch.empty(2, device=META), conditioning)
        for how in ({}, {"float32": True}, {"tiled": True}):
            images, finite = family.decode(latents, **how)
            assert images.device == finite.device == META
    assert transfers.copies == []
    assert output.device == META
