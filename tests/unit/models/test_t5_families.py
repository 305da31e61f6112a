"""Loading SD3, FLUX.1 and Chroma, and their prompts: CLIP's and T5's hidden states as in diffusers' pipelines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engines import make
from tests.support.pipelines import open_pipeline
from tests.support.tiny import Kind, make_tiny
from tests.support.tiny.files import write_t5_tokenizer

from latentfarm.errors import JobError, ModelError
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.models import load_family, token_counter
from latentfarm_worker.models.flux import pack, unpack
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors
from latentfarm_worker.text_encoders.t5 import T5Encoder

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
KINDS: tuple[Kind, ...] = ("sd3", "sd3-no-t5", "flux", "schnell", "chroma")
#: of a text: 77 of CLIP and 256 of T5, or those of T5 alone
LENGTHS = {"sd3": 77 + 256, "sd3-no-t5": 77 + 256, "flux": 48, "schnell": 48, "chroma": 48}
PROMPTS = ["", "a cat", "ÄÖ 言葉 🎨\n\ttabs", "(a:1.3), [b]", "word " * 100, "x" * 47, "x" * 255]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("templates")
    return {kind: make_tiny(folder / kind, kind=kind) for kind in KINDS}


@pytest.fixture(scope="module")
def families(folders: dict[str, Path]) -> dict[str, Any]:
    return {kind: load(folder) for kind, folder in folders.items()}


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_family(folder, dtype=dtype, device=CPU)


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def encode(family: Any, text: str, **fields: Any) -> Tensors:
    [tensors] = family.encode([Prompt(family.tokenize(text), **fields)])
    found: Tensors = tensors
    return found


# -- texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd3", "sd3-no-t5"])
def test_texts_of_sd3_are_the_pipelines_to_the_bit(
    kind: str, families: dict[str, Any], folders: dict[str, Path]
) -> None:
    family, pipe = families[kind], open_pipeline(folders[kind])
    for text in PROMPTS:
        with torch.no_grad():
            states, negative, pooled, negative_pooled = pipe.encode_prompt(
                text, None, None, negative_prompt=text, device=CPU, clip_skip=1
            )
        skipped, plain = encode(family, text, clip_skip=1), encode(family, text, negative=True)
        assert torch.equal(skipped["encoder_hidden_states"], states[0])
        assert torch.equal(skipped["pooled_projections"], pooled[0])
        # the pipeline skips no layer for a negative prompt
        assert torch.equal(plain["encoder_hidden_states"], negative[0])
        assert torch.equal(plain["pooled_projections"], negative_pooled[0])
        assert not torch.equal(states, negative)


@pytest.mark.parametrize("kind", ["flux", "schnell"])
def test_texts_of_flux_are_the_pipelines_to_the_bit(
    kind: str, families: dict[str, Any], folders: dict[str, Path]
) -> None:
    family, pipe = families[kind], open_pipeline(folders[kind])
    for text in PROMPTS:
        with torch.no_grad():
            states, pooled, _ = pipe.encode_prompt(text, device=CPU, max_sequence_length=48)
        got = encode(family, text)
        assert torch.equal(got["encoder_hidden_states"], states[0])
        assert torch.equal(got["pooled_projections"], pooled[0])


def test_texts_of_chroma_are_the_pipelines_with_the_first_padding_unmasked(
    families: dict[str, Any], folders: dict[str, Path]
) -> None:
    pipe = open_pipeline(folders["chroma"])
    for text in PROMPTS:
        with torch.no_grad():
            states, _, mask, *_ = pipe.encode_prompt(text, device=CPU, max_sequence_length=48)
        got = encode(families["chroma"], text)
        assert torch.equal(got["encoder_hidden_states"], states[0])
        assert torch.equal(got["text_mask"], mask[0])


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(0, 47), min_size=1, max_size=7), masked=st.booleans())
def test_t5s_numbers_of_a_prompt_do_not_depend_on_the_others_of_its_group(
    families: dict[str, Any],
    lengths: list[int],
    masked: bool,  # noqa: FBT001
) -> None:
    whole = families["flux"].t5
    encoder = T5Encoder(whole.tokenizer, whole.model, longest=48, masked=masked, rows=3)
    prompts = [tuple(range(3, 3 + length)) for length in lengths]
    together = encoder.encode(prompts)
    assert len(together) == len(prompts)
    assert all(torch.equal(encoder.encode([prompt])[0], got) for prompt, got in zip(prompts, together, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_has_the_same_numbers_with_other_texts_and_one_length(kind: str, families: dict[str, Any]) -> None:
    family = families[kind]
    prompts = [Prompt(family.tokenize(text)) for text in PROMPTS]
    together = family.encode(prompts)
    for prompt, got in zip(prompts, together, strict=True):
        [alone] = family.encode([prompt])
        config = family.denoising_model.config
        other = {"text_mask": (48,)} if kind == "chroma" else {"pooled_projections": (config.pooled_projection_dim,)}
        assert {name: tensor.shape for name, tensor in got.items()} == {
            "encoder_hidden_states": (LENGTHS[kind], config.joint_attention_dim),
            **other,
        }
        assert all(torch.equal(alone[name], got[name]) for name in alone)
        assert prompt.tokens.text_class == 1


def test_a_prompt_is_cut_where_t5_is_full(families: dict[str, Any]) -> None:
    sd3, flux = families["sd3"], families["flux"]
    # T5's word begins with a token of its own, and the end takes another
    for family, room in ((sd3, 254), (flux, 46)):
        whole, cut = family.tokenize("x" * room), family.tokenize("x" * (room + 1))
        assert (whole.count, whole.truncated) == (room + 2, False)
        assert (cut.count, cut.truncated) == (room + 3, True)
        assert family.max_prompt_tokens == room + 2
        assert cut.ids == whole.ids
        assert len(whole.chunks[0]) == min(room, 75)


def test_without_t5_a_prompt_is_cut_where_clip_is_full(families: dict[str, Any]) -> None:
    family = families["sd3-no-t5"]
    assert [family.tokenize("x" * letters).truncated for letters in (75, 76)] == [False, True]
    assert family.max_prompt_tokens == 77
    assert not encode(family, "a cat")["encoder_hidden_states"][77:].any()


@pytest.mark.parametrize(("kind", "length"), [("flux", 512), ("schnell", 256)])
def test_texts_are_as_long_as_the_published_models_were_trained_with(
    kind: Kind, length: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[kind], tmp_path / "model")
    shutil.rmtree(folder / "tokenizer_2")
    write_t5_tokenizer(folder / "tokenizer_2", length=600)
    assert len(encode(load(folder), "a cat")["encoder_hidden_states"]) == length


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_breaks_are_refused_and_other_text_is_plain(kind: str, families: dict[str, Any]) -> None:
    family = families[kind]
    assert family.tokenize(r"a \(small\) cat", "a1111") == family.tokenize("a (small) cat")
    for text, message in (
        ("a (red:1.3) cat", r"prompt 'red' has the weight 1\.3, and this model's text encoders take no weights"),
        ("a cat BREAK a dog", "leave BREAK out"),
    ):
        with pytest.raises(JobError, match=message) as caught:
            family.tokenize(text, "a1111")
        assert caught.value.code == "prompt_too_complex"


# -- sizes, guidance and noise levels ----------------------------------------------------------------------------


def test_packed_latents_are_the_pipelines_and_come_back(folders: dict[str, Path]) -> None:
    pipe = open_pipeline(folders["flux"])
    latents = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    packed = pack(latents)
    assert torch.equal(packed, pipe._pack_latents(latents, 2, 16, 8, 12))
    assert torch.equal(unpack(packed, 4, 6), latents)
    assert torch.equal(pipe._unpack_latents(packed, 64, 96, 8), latents)


def test_a_size_beyond_the_learned_positions_is_refused(families: dict[str, Any]) -> None:
    family = families["sd3"]
    assert family.row_conditioning(192, 192, 7.0) == {}
    with pytest.raises(JobError, match="208x64 is too large for this model; write sides of at most 192") as caught:
        family.row_conditioning(208, 64, 7.0)
    assert caught.value.code == "size_not_supported"


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_sides_that_are_not_multiples_of_16_are_refused(kind: str, families: dict[str, Any]) -> None:
    engine = Engine(families[kind], slots=1)
    with pytest.raises(JobError, match="width 72 is not a multiple of 16, as this model needs; write 64 or 80"):
        engine.prepare(make(0, width=72))


def test_the_shift_rises_with_the_size_as_in_the_pipeline(families: dict[str, Any]) -> None:
    schedule = families["flux"].noise_schedule(4, 128, 64)
    assert schedule.sigmas == (1.0, 0.75, 0.5, 0.25)
    assert schedule.mu == pytest.approx(calculate_shift(32, 8, 64, 0.5, 1.15))
    assert families["sd3"].noise_schedule(4, 128, 64).sigmas is None


def test_only_an_embedded_guidance_scale_is_conditioning(families: dict[str, Any]) -> None:
    assert families["flux"].row_conditioning(64, 64, 3.5)["guidance"].item() == 3.5
    assert families["schnell"].row_conditioning(64, 64, 3.5) == {}
    assert [families[kind].embeds_guidance for kind in KINDS] == [False, False, True, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_counted_as_the_model_does(kind: str, families: dict[str, Any], folders: dict[str, Path]) -> None:
    count = token_counter(folders[kind])
    for text in PROMPTS:
        assert count(text) == families[kind].tokenize(text).count


# -- loading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_facts_of_a_model(kind: str, families: dict[str, Any]) -> None:
    family = families[kind]
    assert (family.native_width, family.native_height, family.pixel_multiple) == (64, 64, 16)
    assert (family.latent_channels, family.vae_scale_factor) == (16, 8)
    assert family.max_clip_skip == (1 if kind.startswith("sd3") else 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["sd3", "flux", "chroma"])
def test_half_precision(kind: str, dtype: torch.dtype, folders: dict[str, Path]) -> None:
    family = load(folders[kind], dtype)
    assert family.vae.dtype == dtype
    text = encode(family, "a cat")
    assert {tensor.dtype for tensor in text.values()} == {dtype}
    conditioning = {name: tensor[None] for name, tensor in {**text, **family.row_conditioning(64, 64, 3.5)}.items()}
    output = family.predict(torch.randn(1, 16, 8, 8), torch.tensor([500.0]), conditioning)
    assert (output.dtype, output.shape) == (torch.float32, (1, 16, 8, 8))
    assert output.isfinite().all()
    images, finite = family.decode(torch.randn(2, 16, 8, 8))
    assert (images.shape, images.dtype, finite.tolist()) == ((2, 64, 64, 3), torch.uint8, [True, True])


@pytest.mark.parametrize(
    ("kind", "file", "fields", "message"),
    [
        ("sd3", "transformer/config.json", {"in_channels": 33}, "in_channels is 33, out_channels 16: .* not a text-to"),
        ("sd3", "tokenizer_2/vocab.json", {"<|more|>": 514}, "tokenizer and tokenizer_2 have different vocabularies"),
        ("flux", "transformer/config.json", {"in_channels": 384, "out_channels": 64}, "not a text-to-image model; use"),
        ("flux", "vae/config.json", {"latent_channels": 4}, "packed latents have 16: this is not a text-to-image"),
        ("flux", "transformer/config.json", {"pooled_projection_dim": 48}, "cannot be loaded"),
    ],
)
def test_unsupported_models_are_refused(
    kind: str, file: str, fields: dict[str, Any], message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[kind], tmp_path / "model")
    edit(folder / file, **fields)
    with pytest.raises(ModelError, match=message):
        load(folder)


@pytest.mark.parametrize("kind", ["sd3", "flux", "chroma"])
def test_the_tiny_model_has_the_same_bytes_each_time(kind: Kind, folders: dict[str, Path], tmp_path: Path) -> None:
    again = make_tiny(tmp_path / "again", kind=kind)
    files = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert len(files) >= 10
    for file in files:
        assert (again / file).read_bytes() == (folders[kind] / file).read_bytes(), file
