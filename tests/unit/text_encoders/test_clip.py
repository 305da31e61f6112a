"""Long and weighted prompts, against compel, diffusers and a plain computation."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.modeling_outputs import BaseModelOutput

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.text_encoders.clip import MAX_CHUNKS, ClipEncoder, apply_weights
from latentfarm_worker.text_encoders.prompt import Prompt, TokenizedPrompt

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
# a token of the tiny model is one byte; a letter at the end of a word is another token
LONG = "a landscape with a river and many small houses below a mountain whose top is hidden by clouds " * 3
WEIGHTED = "a (painting:1.4) of [[fog]] and (((hills))), (very\\) detailed:0.6) " * 3 + "BREAK (sun:-0.5)"


def states_of(family: Any, *prompts: Prompt) -> list[torch.Tensor]:
    return [conditioning["encoder_hidden_states"] for conditioning in family.encode(prompts)]


def a1111(family: Any, text: str, *, clip_skip: int = 0) -> Prompt:
    return Prompt(family.tokenize(text, "a1111"), clip_skip=clip_skip)


def encoders_of(pipeline: Any) -> list[tuple[Any, Any]]:
    """Return each text encoder with its tokenizer."""
    names = ["", "_2"] if hasattr(pipeline, "text_encoder_2") else [""]
    return [(getattr(pipeline, f"tokenizer{name}"), getattr(pipeline, f"text_encoder{name}")) for name in names]


def output_of(tokenizer: Any, encoder: Any, ids: tuple[int, ...]) -> Any:
    line = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    line += [tokenizer.pad_token_id] * (77 - len(line))
    return encoder(torch.tensor([line]), output_hidden_states=True)


@torch.no_grad()
def plainly(pipeline: Any, tokens: TokenizedPrompt, *, clip_skip: int = 0) -> torch.Tensor:
    """Encode each chunk alone with transformers, weight it and restore its mean; concatenate two encoders."""
    encoders = encoders_of(pipeline)
    sides = []
    for tokenizer, encoder in encoders:
        states = []
        for ids, weights in tokens.weighted_chunks():
            hidden = output_of(tokenizer, encoder, ids).hidden_states
            last = hidden[-2 - clip_skip] if len(encoders) > 1 else encoder.final_layer_norm(hidden[-1 - clip_skip])
            found = last[0]
            factors = [1.0, *weights, *[1.0] * (76 - len(weights))] if weights else [1.0] * 77
            weighted = torch.stack([factor * state for factor, state in zip(factors, found, strict=True)])
            states.append(weighted * found.mean() / weighted.mean())
        sides.append(torch.cat(states))
    return torch.cat(sides, dim=1)


@torch.no_grad()
def embeds(
    pipeline: Any, shown: TokenizedPrompt, avoided: TokenizedPrompt, *, clip_skip: int
) -> dict[str, torch.Tensor]:
    """Return the embeddings that a pipeline takes instead of prompts."""
    arguments = {}
    for name, tokens in {"": shown, "negative_": avoided}.items():
        arguments[f"{name}prompt_embeds"] = plainly(pipeline, tokens, clip_skip=clip_skip)[None]
        if hasattr(pipeline, "text_encoder_2"):
            tokenizer, encoder = encoders_of(pipeline)[-1]
            arguments[f"{name}pooled_prompt_embeds"] = output_of(tokenizer, encoder, tokens.chunks[0]).text_embeds
    return arguments


@pytest.mark.parametrize("text", ["", "a cat", "x, y: z", LONG[:60]])
def test_a_short_prompt_without_weights_equals_the_plain_one(sd1: Any, text: str) -> None:
    assert sd1.tokenize(text, "a1111") == sd1.tokenize(text)


def test_a_long_prompt_keeps_all_its_tokens(sd1: Any) -> None:
    tokens = sd1.tokenize(LONG, "a1111")
    assert not tokens.truncated
    assert [number for chunk in tokens.chunks for number in chunk] == sd1.text_encoders[0].ids(LONG)
    assert tokens.count == len(sd1.text_encoders[0].ids(LONG)) + 2
    assert sd1.tokenize(LONG).truncated


def test_a_long_prompt_is_encoded_as_compel_does(family: Any, pipeline: Any) -> None:
    from compel import Compel, ReturnedEmbeddingsType, SplitLongTextMode

    more: dict[str, Any] = {}
    if len(encoders_of(pipeline)) > 1:
        layer = ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
        more = {"returned_embeddings_type": layer, "requires_pooled": [False, True]}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compel = Compel(
            tokenizer=[tokenizer for tokenizer, _ in encoders_of(pipeline)],
            text_encoder=[encoder for _, encoder in encoders_of(pipeline)],
            truncate_long_prompts=False,
            split_long_text_mode=SplitLongTextMode.BRUTAL,
            **more,
        )
        for text in (LONG, LONG[:40]):
            with torch.no_grad():
                built = compel.build_conditioning_tensor(text)
            wanted = built[0][0] if more else built[0]
            assert torch.allclose(states_of(family, a1111(family, text))[0], wanted, atol=1e-6)


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_weights_multiply_hidden_states_and_their_mean_stays(family: Any, pipeline: Any, clip_skip: int) -> None:
    prompt = a1111(family, WEIGHTED, clip_skip=clip_skip)
    assert len(prompt.tokens.chunks) > 2
    [states] = states_of(family, prompt)
    wanted = plainly(pipeline, prompt.tokens, clip_skip=clip_skip)
    assert torch.allclose(states, wanted, atol=1e-5)
    [unweighted] = states_of(family, Prompt(TokenizedPrompt(prompt.tokens.chunks, count=0), clip_skip=clip_skip))
    assert not torch.allclose(states, unweighted, atol=1e-2)


@pytest.mark.parametrize("text", ["", "a cat", "word " * 100])
def test_clip_skip_is_the_pipelines(family: Any, pipeline: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # diffusers 0.42 expects the norm at its place in transformers 4
    monkeypatch.setattr(CLIPTextModel, "text_model", property(lambda model: model), raising=False)
    for clip_skip in (0, 1):
        with torch.no_grad():
            wanted = pipeline.encode_prompt(
                text, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False, clip_skip=clip_skip
            )[0][0]
        [states] = states_of(family, Prompt(family.tokenize(text), clip_skip=clip_skip))
        assert torch.equal(states, wanted), clip_skip


class LookUp:
    """A text encoder without sums over tokens or chunks, so that its rounding is the same on every processor."""

    def __init__(self) -> None:
        self.device, self.dtype = CPU, torch.float32
        self.config = CLIPTextConfig(num_hidden_layers=2)
        self.batches: list[int] = []

    def __call__(self, ids: torch.Tensor, **_: Any) -> Any:
        self.batches.append(len(ids))
        layers = [torch.stack([ids + layer, ids * (layer + 2.0)], dim=2) / 7 for layer in range(3)]
        return BaseModelOutput(last_hidden_state=layers[-1], hidden_states=tuple(layers))

    def final_layer_norm(self, states: torch.Tensor) -> torch.Tensor:
        return states - 0.1


@pytest.mark.parametrize("rows", [1, 3])
def test_a_prompts_numbers_do_not_depend_on_its_company(sd1: Any, rows: int) -> None:
    encoder = ClipEncoder(sd1.text_encoders[0].tokenizer, LookUp(), rows=rows)
    prompts = [a1111(sd1, WEIGHTED), a1111(sd1, LONG, clip_skip=1), a1111(sd1, "a cat"), a1111(sd1, "(a cat:9)")]
    together = encoder.encode(prompts)
    for prompt, embedding in zip(prompts, together, strict=True):
        [alone] = encoder.encode([prompt])
        assert torch.equal(alone.hidden_states, embedding.hidden_states)
    assert set(encoder.model.batches) == {rows}


def test_on_a_cpu_each_chunk_is_encoded_alone(family: Any) -> None:
    # a library may add in another order at another place of a batch; a CPU gains nothing by larger ones
    assert [encoder.rows for encoder in family.text_encoders] == [1] * len(family.text_encoders)
    prompts = [a1111(family, WEIGHTED), a1111(family, LONG, clip_skip=1), a1111(family, "(a cat:9)")]
    for prompt, states in zip(prompts, states_of(family, *prompts), strict=True):
        assert torch.equal(states_of(family, prompt)[0], states)


SIGNS = torch.tensor([1.0, -1.0]).repeat(77, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("states", "weights"),
    [
        (SIGNS, (1.5,) * 75),  # the mean is 0 before and after
        (SIGNS + torch.eye(77)[1][:, None], (0.0,) * 75),  # it is 0 after
        (SIGNS - torch.eye(77)[1][:, None] / 2, (-1.0, *[1.0] * 74)),  # it changes its sign
    ],
)
def test_weights_never_make_hidden_states_nan_or_zero(
    states: torch.Tensor, weights: tuple[float, ...], dtype: torch.dtype
) -> None:
    found = apply_weights(states.to(dtype), weights)
    assert found.dtype == dtype
    assert torch.isfinite(found).all()
    assert found.any()


def test_hidden_states_of_mean_zero_keep_their_weighted_scale() -> None:
    assert torch.equal(apply_weights(SIGNS, (1.5,) * 75)[1:76], 1.5 * SIGNS[1:76])


@given(st.lists(st.sampled_from([*"ab ,()[]\\:.2", "abcdefg", " BREAK "]), max_size=300).map("".join))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_chunk_has_at_most_75_tokens_and_a_weight_for_each_or_none(sd1: Any, text: str) -> None:
    try:
        tokens = sd1.tokenize(text, "a1111")
    except JobError:
        return
    assert all(len(chunk) <= 75 and len(weights) in {0, len(chunk)} for chunk, weights in tokens.weighted_chunks())
    assert len(tokens.weights) in {0, len(tokens.chunks)}
    more = tokens.padded(len(tokens.chunks) + 1)
    assert list(more.weighted_chunks()) == [*tokens.weighted_chunks(), ((), ())]


def test_prompt_and_negative_prompt_have_the_same_number_of_chunks(sd1: Any) -> None:
    engine = Engine(sd1, slots=1)
    for texts in [("a", LONG), (LONG, "a"), ("a BREAK b BREAK c", LONG[:100])]:
        image = engine.prepare(
            Job(batch="b", index=0, seed=1, prompt=texts[0], negative_prompt=texts[1], prompt_syntax="a1111")
        )
        counts = {len(prompt.tokens.chunks) for prompt in image.prompts}
        assert counts == {image.text_class}
        assert image.text_class > 1
        assert image.truncated == ()


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"prompt": "a (cat:120)"}, "prompt_too_complex", "'cat' has the weight 120; keep it within 100"),
        ({"prompt": "(" * 60 + "cat"}, "prompt_too_complex", "'cat' has the weight 304.482; keep it within 100"),
        ({"prompt": "a", "negative_prompt": f"(b:{'9' * 400})"}, "prompt_too_complex", "'b' has the weight inf"),
        ({"prompt": "a BREAK " * (MAX_CHUNKS + 1)}, "prompt_too_complex", "has 65 chunks of 75 tokens; keep to 64"),
        ({"prompt": "a", "clip_skip": 2}, "clip_skip_out_of_range", "clip_skip 2 leaves too little of .* write 0 to 1"),
    ],
)
def test_a_prompt_that_cannot_be_encoded_fails_with_a_cure(
    sd1: Any, fields: dict[str, Any], code: str, message: str
) -> None:
    with pytest.raises(JobError, match=message) as raised:
        Engine(sd1, slots=1).prepare(Job(batch="b", index=0, seed=1, **{"prompt_syntax": "a1111", **fields}))
    assert raised.value.code == code


def test_an_image_of_long_weighted_prompts_is_the_pipelines(family: Any, pipeline: Any) -> None:
    job = Job(
        batch="b", index=0, seed=5, prompt=WEIGHTED, negative_prompt=f"[ugly], {LONG}", prompt_syntax="a1111",
        clip_skip=1, num_inference_steps=6, scheduler="euler",
    )  # fmt: skip
    engine = Engine(family, slots=2)
    [shown, avoided] = (prompt.tokens for prompt in engine.prepare(job).prompts)
    for each in (job, job.model_copy(update={"index": 1, "prompt_syntax": "plain", "clip_skip": 0})):
        engine.admit(each)
    done: dict[int, Rendered] = {}
    while engine.busy:
        done |= {each.job.index: each for each in engine.step() if isinstance(each, Rendered)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers

        pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(family.scheduler_config)
        image = pipeline(
            **embeds(pipeline, shown, avoided, clip_skip=1),
            num_inference_steps=6,
            guidance_scale=7.5,
            generator=torch.Generator("cpu").manual_seed(5),
        ).images[0]
    wanted = np.asarray(image).astype(int)
    assert np.abs(wanted - done[0].pixels.numpy()).max() <= 1
    assert np.abs(wanted - done[1].pixels.numpy()).max() > 3, "the plain prompts give another image"
    assert (done[0].truncated, done[1].truncated) == ((), ("prompt", "negative_prompt"))
