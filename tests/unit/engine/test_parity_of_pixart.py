"""PixArt-Sigma: jobs mixed in one engine give the images of the model's own pipeline, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engines import pixels
from tests.support.pipelines import by_pipeline, config_of, difference, differences, open_pipeline, render
from tests.support.tiny import make_tiny
from tests.support.transfers import META, Transfers, send_to_meta

from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.models import load_family, token_counter
from latentfarm_worker.text_encoders import t5
from latentfarm_worker.text_encoders.prompt import Prompt

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
BOUND = 1  # of 255, per channel
PROMPTS = ("a cat", "  Hills in the Morning ", "word " * 40, "")
NAMES = (None, "euler", "euler_a", "dpm++2m", "dpm++2m-karras", "dpm++3m", "heun", "unipc")


def job(index: int, name: str | None = None, **fields: Any) -> Job:
    wanted: dict[str, Any] = {
        "prompt": PROMPTS[index % 4],
        "negative_prompt": PROMPTS[index // 2 % 4],
        "num_inference_steps": 3 + index % 3,
        "guidance_scale": (4.5, 1.0, 2.0)[index % 3],
        "seed": index,
        "width": (64, 96, 64)[index % 3],
        "height": (64, 64, 112)[index % 3],
    }
    return Job(batch="b", index=index, scheduler=name, **{**wanted, **fields})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / "pixart", kind="pixart")


@pytest.fixture(scope="module")
def family(folder: Path) -> Any:
    return load_family(folder, dtype=torch.float32, device=CPU)


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    return open_pipeline(folder)


@pytest.fixture(scope="module")
def own_config(pipe: Any) -> Any:
    return config_of(pipe)


def test_schedulers_sizes_prompts_and_guidance_mixed_in_one_run_give_the_pipelines_image(
    family: Any, pipe: Any, own_config: Any
) -> None:
    jobs = [job(index, name) for index, name in enumerate(NAMES)]
    steps = [job(20 + index, num_inference_steps=number) for index, number in enumerate((28, 1, 9))]
    found = differences(family, pipe, own_config, [*jobs, *steps])
    assert len(found) == len(NAMES) + 3
    assert max(found.values()) <= BOUND, found


def test_another_prompt_negative_prompt_or_guidance_gives_another_image(
    family: Any, pipe: Any, own_config: Any
) -> None:
    wanted = job(0, num_inference_steps=4, negative_prompt="")
    image = by_pipeline(pipe, own_config, wanted)
    for change in ({"prompt": "a dog"}, {"negative_prompt": "a dog"}, {"guidance_scale": 2.0}, {"seed": 9}):
        result = render(Engine(family, slots=1), [wanted.model_copy(update=change)])[0]
        assert difference(image, result) > BOUND + 2, change


@pytest.mark.parametrize("prompt", [*PROMPTS, "ÄÖ 言葉"])
def test_hidden_states_and_tokens_are_the_pipelines(family: Any, pipe: Any, folder: Path, prompt: str) -> None:
    tokens = family.tokenize(prompt)
    [text] = family.encode([Prompt(tokens)])
    with torch.no_grad():
        wanted, mask, *_ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=48)
    assert text["encoder_attention_mask"].tolist() == mask[0].tolist()
    read = mask[0].bool()
    torch.testing.assert_close(text["encoder_hidden_states"][read], wanted[0][read], rtol=1e-4, atol=1e-4)
    assert token_counter(folder)(prompt) == tokens.count
    assert tokens.truncated is (tokens.count > family.max_prompt_tokens == 48)


def test_facts_of_the_model(family: Any) -> None:
    facts = (family.native_width, family.latent_channels, family.vae_scale_factor, family.pixel_multiple)
    assert facts == (64, 4, 8, 16)
    assert (family.recommended.steps, family.recommended.guidance_scale) == (20, 4.5)


@settings(max_examples=6, deadline=None)
@given(which=st.integers(0, 3), others=st.lists(st.integers(4, 40), max_size=5, unique=True), place=st.integers(0, 5))
def test_the_same_bytes_alone_and_in_company(family: Any, which: int, others: list[int], place: int) -> None:
    alone = render(Engine(family, slots=3), [job(which)])
    jobs = [job(each) for each in others]
    jobs.insert(place, job(which))
    assert pixels(render(Engine(family, slots=3), jobs)[which]) == pixels(alone[which])


def test_the_family_waits_for_no_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family: Any = load_family(folder, dtype=torch.float16, device=META)
    monkeypatch.setattr(t5, "send", send_to_meta)
    with Transfers() as transfers:
        texts = family.encode([Prompt(family.tokenize(prompt)) for prompt in ("a cat", "")])
        conditioning = {name: torch.stack([text[name] for text in texts]) for name in texts[0]}
        for width in (8, 12):
            latents = torch.empty(2, 4, 8, width, device=META)
            output = family.predict(latents, torch.empty(2, device=META), conditioning)
            assert (output.shape, output.dtype) == (latents.shape, torch.float32)
    assert transfers.copies == []
