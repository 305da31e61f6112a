"""Qwen3: tokens and hidden states as those of the pipelines that read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support.pipelines import open_pipeline
from tests.support.tiny import make_tiny
from tests.support.tiny.qwen3 import TOKENS, text_encoder

from latentfarm.errors import JobError, ModelError
from latentfarm_worker.models import load_family
from latentfarm_worker.models.flux2 import text_layers
from latentfarm_worker.text_encoders.prompt import Prompt
from latentfarm_worker.text_encoders.qwen3 import Qwen3Encoder

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
PROMPTS = ["", "a cat", "ÄÖ 言葉 🎨\n\ttabs", "(a:1.3), [b]", "<|im_end|> a special token", "word " * 100]


class Both:
    """A tiny model's family and pipeline."""

    def __init__(self, folder: Path) -> None:
        self.family: Any = load_family(folder, dtype=torch.float32, device=CPU)
        self.pipe = open_pipeline(folder)


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(make_tiny(tmp_path_factory.mktemp("models") / "flux2", kind="flux2"))


@pytest.fixture(scope="module")
def z_image(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(make_tiny(tmp_path_factory.mktemp("models") / "zimage", kind="zimage"))


def class_of(length: int) -> int:
    return next(each for each in (32, 64, 128, TOKENS) if length <= each)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_hidden_states_of_klein_are_the_pipelines(klein: Both, prompt: str) -> None:
    [text] = klein.family.encode([Prompt(klein.family.tokenize(prompt))])
    with torch.no_grad():
        wanted, _ = klein.pipe.encode_prompt(prompt, max_sequence_length=TOKENS, text_encoder_out_layers=(1, 2, 3))
    assert torch.equal(text["encoder_hidden_states"], wanted[0])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_hidden_states_of_z_image_are_the_pipelines_without_its_padding(z_image: Both, prompt: str) -> None:
    [text] = z_image.family.encode([Prompt(z_image.family.tokenize(prompt))])
    with torch.no_grad():
        [wanted], _ = z_image.pipe.encode_prompt([prompt], device=CPU, max_sequence_length=TOKENS)
    length = int(text["text_length"])
    assert length == len(wanted)
    assert text["encoder_hidden_states"].shape == (class_of(length), wanted.shape[1])
    # the pipeline pads to all of the tokens, which rounds otherwise
    torch.testing.assert_close(text["encoder_hidden_states"][:length], wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(prompt=st.text(max_size=120))
@example("word " * 100)
def test_tokens_are_the_pipelines(klein: Both, z_image: Both, prompt: str) -> None:
    for both, thinking in ((klein, False), (z_image, True)):
        text = both.pipe.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
        whole = both.pipe.tokenizer(text).input_ids
        got = both.family.tokenize(prompt)
        assert got.ids == tuple(whole[:TOKENS])
        assert (got.count, got.truncated, got.chunks) == (len(whole), len(whole) > TOKENS, ((),))
        assert got.ids_length == (class_of(len(got.ids)) if thinking else 0)


def test_a_prompt_padded_to_a_larger_class_has_the_same_states(z_image: Both) -> None:
    tokens = z_image.family.tokenize("a cat")
    short, long = z_image.family.encode([Prompt(tokens), Prompt(tokens.padded(128))])
    assert (len(short["encoder_hidden_states"]), len(long["encoder_hidden_states"])) == (32, 128)
    assert torch.equal(long["encoder_hidden_states"][:32], short["encoder_hidden_states"])
    assert not long["encoder_hidden_states"][32:].any()
    assert torch.equal(long["text_length"], short["text_length"])


def test_a_prompts_states_do_not_depend_on_others(z_image: Both, klein: Both) -> None:
    for family in (z_image.family, klein.family):
        prompts = [Prompt(family.tokenize(prompt)) for prompt in PROMPTS]
        together = family.encode(prompts)
        for at, prompt in enumerate(prompts):
            [alone] = family.encode([prompt])
            assert torch.equal(alone["encoder_hidden_states"], together[at]["encoder_hidden_states"])


def test_weights_and_breaks_are_refused_and_escaped_brackets_are_text(klein: Both, z_image: Both) -> None:
    for family in (klein.family, z_image.family):
        for prompt in ("a (cat:1.2)", "a BREAK b"):
            with pytest.raises(JobError, match="text encoders take no") as caught:
                family.tokenize(prompt, "a1111")
            assert caught.value.code == "prompt_too_complex"
        assert family.tokenize(r"a \(cat\)", "a1111") == family.tokenize("a (cat)")


def test_the_layers_of_a_small_encoder_are_at_its_quarters() -> None:
    assert text_layers(36) == text_layers(27) == (9, 18, 27)
    assert text_layers(4) == (1, 2, 3)
    assert text_layers(26) == (6, 13, 19)


@pytest.mark.parametrize(("name", "value"), [("padding_side", "left"), ("chat_template", None)])
def test_a_tokenizer_that_would_give_other_tokens_is_refused(klein: Both, name: str, value: str | None) -> None:
    tokenizer = type(klein.pipe.tokenizer).from_pretrained(klein.pipe.config._name_or_path, subfolder="tokenizer")
    setattr(tokenizer, name, value)
    with pytest.raises(ModelError, match="tokenizer: it pads on the left or has no chat template"):
        Qwen3Encoder(tokenizer, klein.pipe.text_encoder, layers=(1,), thinking=False)


def test_an_encoder_with_a_sliding_window_is_refused(klein: Both) -> None:
    model = text_encoder("Qwen3Model", width=32)
    model.config.layer_types[0] = "sliding_attention"
    with pytest.raises(ModelError, match="some layers have a sliding window"):
        Qwen3Encoder(klein.pipe.tokenizer, model, layers=(1,), thinking=False)
