"""Long and weighed prompts, against compel, diffusers and a plain computation."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CLIPTextModel

from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.models.text_encoder import MAX_CHUNKS, Prompt, TokenizedPrompt

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
# a byte is a token of the stand-in, but a letter at a word's end is another
LONG = "a landscape with a river and many small houses below a mountain whose top is hidden by clouds " * 3
WEIGHED = "a (painting:1.4) of [[fog]] and (((hills))), (very\\) detailed:0.6) " * 3 + "BREAK (sun:-0.5)"


def states_of(family: Any, *prompts: Prompt) -> list[torch.Tensor]:
    return [told["states"] for told in family.encode(prompts)]


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
    """Encode each chunk on its own with transformers, weigh it and restore its mean; of two encoders side by side."""
    encoders = encoders_of(pipeline)
    sides = []
    for tokenizer, encoder in encoders:
        states = []
        for ids, weights in tokens.weighed_chunks():
            hidden = output_of(tokenizer, encoder, ids).hidden_states
            last = hidden[-2 - clip_skip] if len(encoders) > 1 else encoder.final_layer_norm(hidden[-1 - clip_skip])
            found = last[0]
            factors = [1.0, *weights, *[1.0] * (76 - len(weights))] if weights else [1.0] * 77
            weighed = torch.stack([factor * state for factor, state in zip(factors, found, strict=True)])
            states.append(weighed * found.mean() / weighed.mean())
        sides.append(torch.cat(states))
    return torch.cat(sides, dim=1)


@torch.no_grad()
def embeds(
    pipeline: Any, shown: TokenizedPrompt, avoided: TokenizedPrompt, *, clip_skip: int
) -> dict[str, torch.Tensor]:
    """Return what a pipeline takes instead of prompts."""
    told = {}
    for name, tokens in {"": shown, "negative_": avoided}.items():
        told[f"{name}prompt_embeds"] = plainly(pipeline, tokens, clip_skip=clip_skip)[None]
        if hasattr(pipeline, "text_encoder_2"):
            tokenizer, encoder = encoders_of(pipeline)[-1]
            told[f"{name}pooled_prompt_embeds"] = output_of(tokenizer, encoder, tokens.chunks[0]).text_embeds
    return told


@pytest.mark.parametrize("text", ["", "a cat", "x, y: z", LONG[:60]])
def test_a_short_prompt_without_marks_is_the_plain_one(sd1: Any, text: str) -> None:
    assert sd1.tokenize(text, "a1111") == sd1.tokenize(text)


def test_a_long_prompt_is_whole(sd1: Any) -> None:
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
                told = compel.build_conditioning_tensor(text)
            wanted = told[0][0] if more else told[0]
            assert torch.allclose(states_of(family, a1111(family, text))[0], wanted, atol=1e-6)


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_weights_multiply_states_and_the_mean_stays(family: Any, pipeline: Any, clip_skip: int) -> None:
    prompt = a1111(family, WEIGHED, clip_skip=clip_skip)
    assert len(prompt.tokens.chunks) > 2
    [states] = states_of(family, prompt)
    wanted = plainly(pipeline, prompt.tokens, clip_skip=clip_skip)
    assert torch.allclose(states, wanted, atol=1e-5)
    [unweighed] = states_of(family, Prompt(TokenizedPrompt(prompt.tokens.chunks, count=0), clip_skip=clip_skip))
    assert not torch.allclose(states, unweighed, atol=1e-2)


@pytest.mark.parametrize("text", ["", "a cat", "word " * 100])
def test_clip_skip_is_the_pipelines(family: Any, pipeline: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # diffusers 0.42 looks for the norm where transformers 4 had it
    monkeypatch.setattr(CLIPTextModel, "text_model", property(lambda model: model), raising=False)
    for clip_skip in (0, 1):
        with torch.no_grad():
            wanted = pipeline.encode_prompt(
                text, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False, clip_skip=clip_skip
            )[0][0]
        [states] = states_of(family, Prompt(family.tokenize(text), clip_skip=clip_skip))
        assert torch.equal(states, wanted), clip_skip


@pytest.mark.parametrize("rows", [1, 3])
def test_a_prompts_numbers_do_not_depend_on_its_company(sd1: Any, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sd1.text_encoders[0], "rows", rows)
    prompts = [a1111(sd1, WEIGHED), a1111(sd1, LONG, clip_skip=1), a1111(sd1, "a cat"), a1111(sd1, "(a cat:9)")]
    together = states_of(sd1, *prompts)
    for prompt, states in zip(prompts, together, strict=True):
        assert torch.equal(states_of(sd1, prompt)[0], states)


@given(st.lists(st.sampled_from([*"ab ,()[]\\:.2", "abcdefg", " BREAK "]), max_size=300).map("".join))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks_have_room_and_a_weight_for_each_token_or_none(sd1: Any, text: str) -> None:
    try:
        tokens = sd1.tokenize(text, "a1111")
    except JobError:
        return
    assert all(len(chunk) <= 75 and len(weights) in {0, len(chunk)} for chunk, weights in tokens.weighed_chunks())
    assert len(tokens.weights) in {0, len(tokens.chunks)}
    more = tokens.padded(len(tokens.chunks) + 1)
    assert list(more.weighed_chunks()) == [*tokens.weighed_chunks(), ((), ())]


def test_both_sides_have_as_many_chunks(sd1: Any) -> None:
    engine = Engine(sd1, slots=1)
    for texts in [("a", LONG), (LONG, "a"), ("a BREAK b BREAK c", LONG[:100])]:
        image = engine.prepare(
            Job(batch="b", index=0, seed=1, prompt=texts[0], negative_prompt=texts[1], prompt_syntax="a1111")
        )
        counts = {len(prompt.tokens.chunks) for prompt in image.prompts}
        assert counts == {image.shape.chunks}
        assert image.shape.chunks > 1
        assert image.truncated == ()


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"prompt": "a (cat:120)"}, "prompt", "'cat' has the weight 120; keep it within 100"),
        ({"prompt": "(" * 60 + "cat"}, "prompt", "'cat' has the weight 304.482; keep it within 100"),
        ({"prompt": "a", "negative_prompt": f"(b:{'9' * 400})"}, "prompt", "'b' has the weight inf"),
        ({"prompt": "a BREAK " * (MAX_CHUNKS + 1)}, "prompt", "has 65 chunks of 75 tokens; keep to 64"),
        ({"prompt": "a", "clip_skip": 2}, "clip_skip", "clip_skip 2 leaves too little of .* write 0 to 1"),
    ],
)
def test_what_cannot_be_encoded_fails_with_a_cure(sd1: Any, fields: dict[str, Any], code: str, says: str) -> None:
    with pytest.raises(JobError, match=says) as raised:
        Engine(sd1, slots=1).prepare(Job(batch="b", index=0, seed=1, **{"prompt_syntax": "a1111", **fields}))
    assert raised.value.code == code


def test_a_picture_of_long_weighed_prompts_is_the_pipelines(family: Any, pipeline: Any) -> None:
    job = Job(
        batch="b", index=0, seed=5, prompt=WEIGHED, negative_prompt=f"[ugly], {LONG}", prompt_syntax="a1111",
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
        picture = pipeline(
            **embeds(pipeline, shown, avoided, clip_skip=1),
            num_inference_steps=6,
            guidance_scale=7.5,
            generator=torch.Generator("cpu").manual_seed(5),
        ).images[0]
    wanted = np.asarray(picture).astype(int)
    assert np.abs(wanted - done[0].pixels.numpy()).max() <= 1
    assert np.abs(wanted - done[1].pixels.numpy()).max() > 3, "plain is another picture"
    assert (done[0].truncated, done[1].truncated) == ((), ("prompt", "negative_prompt"))
