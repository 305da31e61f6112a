"""mini-flow's training runs, resumes with the same losses, and writes a folder that FluxPipeline renders."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from transformers import CLIPTextModel

from mini_training import train, train_flow, world
from mini_training.flow_nets import FLOW_FULL, FLOW_TINY, build_flow_text, build_transformer
from mini_training.flow_stage import Readers, flow_stage, noise_shares, pack, pooled, position_ids, velocity_loss
from mini_training.flow_text_stage import flow_ids, flow_text_stage
from mini_training.flow_tokenizer import build_flow_tokenizer
from mini_training.loop import Stage, TrainingPlan
from mini_training.measure import load_flow_pipeline
from mini_training.muon import MuonWithAdam, is_inner_matrix
from mini_training.nets import TINY, build_text, parameters_of
from mini_training.tokenizer import build_tokenizer

pytestmark = [
    pytest.mark.unit,
    pytest.mark.slow,
    # autocast keeps the weights of RMSNorm in float32, and torch warns that this is slower
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning"),
    # diffusers' DPM-Solver, in mini's training, passes a tensor to np.array, which NumPy 2 deprecates
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

PLAN = TrainingPlan("flow", seconds=3600, steps=4, rate=1e-3, warm_up=2)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Readers:
    folder = tmp_path_factory.mktemp("words")
    clip_tokenizer = build_tokenizer(folder / "tokenizer", count=30)
    tokenizer = build_flow_tokenizer(folder / "tokenizer_2", count=30)
    torch.manual_seed(0)
    clip = build_text(TINY, len(clip_tokenizer), clip_tokenizer.eos_token_id, clip_tokenizer.bos_token_id).eval()
    return Readers(clip, clip_tokenizer, build_flow_text(FLOW_TINY, len(tokenizer), 0, 1), tokenizer)


def _steps(stage: Stage, count: int) -> list[float]:
    losses = []
    for _ in range(count):
        losses.append(stage.step())
        stage.progress.step += 1
    return losses


def _stage(readers: Readers, folder: Path, plan: TrainingPlan = PLAN) -> Stage:
    rng = np.random.default_rng(0)
    torch.manual_seed(1)
    fresh = dataclasses.replace(readers, t5=build_flow_text(FLOW_TINY, len(readers.t5_tokenizer), 0, 1))
    cache = {
        "latents": torch.randn(8, 4, 8, 8).half(),
        "scenes": [world.training_scene(rng) for _ in range(8)],
        "scaling": 0.5,
        "shift": 0.1,
    }
    return flow_stage(plan, FLOW_TINY, folder, fresh, cache, batch=4)


def test_transformer_and_t5_resume_to_the_same_losses(readers: Readers, tmp_path: Path) -> None:
    whole = _steps(_stage(readers, tmp_path / "whole"), 4)
    first = _stage(readers, tmp_path / "cut")
    before = _steps(first, 2)
    first.save()
    second = _stage(readers, tmp_path / "cut")
    assert second.resume()
    assert before + _steps(second, 2) == pytest.approx(whole, rel=1e-5)


def test_every_weight_but_clips_is_trained(readers: Readers, tmp_path: Path) -> None:
    stage = _stage(readers, tmp_path)
    before = {name: value.clone() for name, value in stage.models.named_parameters()}
    clip = {name: value.clone() for name, value in readers.clip.named_parameters()}
    _steps(stage, 4)
    # adaLN-zero: what a modulation of zero hides learns from the second step on
    still = {name for name, value in stage.models.named_parameters() if torch.equal(value, before[name])}
    assert not still
    assert all(torch.equal(value, clip[name]) for name, value in readers.clip.named_parameters())


def test_the_flow_learns(readers: Readers, tmp_path: Path) -> None:
    plan = TrainingPlan("flow", seconds=3600, steps=30, rate=1e-2, warm_up=3)
    losses = _steps(_stage(readers, tmp_path, plan), 30)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_the_t5_learns_to_read(readers: Readers, tmp_path: Path) -> None:
    plan = TrainingPlan("t5", seconds=3600, steps=40, rate=1e-2, warm_up=2)
    losses = _steps(flow_text_stage(plan, FLOW_TINY, tmp_path, readers.t5_tokenizer, batch=16), 40)
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])


def test_a_perfect_velocity_has_no_loss() -> None:
    clean = torch.randn(3, 4, 8, 8)
    seen: dict[str, torch.Tensor] = {}

    def denoiser(*, hidden_states: torch.Tensor, timestep: torch.Tensor, **others: Any) -> tuple[torch.Tensor]:
        seen.update(others)
        level = timestep.view(-1, 1, 1)
        added = (hidden_states - (1 - level) * pack(clean)) / level
        return (added - pack(clean),)

    loss = velocity_loss(denoiser, torch.zeros(3, 32, 16), torch.zeros(3, 16), clean, torch.Generator().manual_seed(0))
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert seen["img_ids"].shape == (16, 3)


def test_latents_are_packed_as_by_the_pipeline() -> None:
    latents = torch.randn(2, 4, 8, 6)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 4, 8, 6))
    text, image = position_ids(4, 3)
    assert torch.equal(image, FluxPipeline._prepare_latent_image_ids(2, 4, 3, torch.device("cpu"), torch.float32))
    assert not text.any()


def test_the_padding_after_the_end_token_does_not_change_clips_vector(readers: Readers) -> None:
    texts = ["a red circle", "", "a large blue star on the left on a white background"]
    padded = readers.clip_tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = readers.clip(padded).pooler_output
    assert torch.allclose(pooled(readers.clip, readers.clip_tokenizer, texts), expected, atol=1e-5)


def test_noise_levels_cover_the_distribution_evenly() -> None:
    shares = noise_shares(1000, torch.Generator().manual_seed(0))
    assert 0 < float(shares.min()) < 0.05
    assert 0.95 < float(shares.max()) < 1
    # the median of a logit-normal distribution is the sigmoid of its mean
    assert float(shares.median()) == pytest.approx(float(torch.sigmoid(torch.tensor(0.4))), abs=0.01)


def test_muon_takes_the_matrices_of_blocks_and_adam_all_others(readers: Readers) -> None:
    models = torch.nn.ModuleDict({"transformer": build_transformer(FLOW_TINY), "t5": readers.t5})
    optimizer = MuonWithAdam(models, PLAN)
    counts = [len(group["params"]) for group in optimizer.param_groups]
    assert sum(counts) == len(list(models.parameters()))
    names = {name for name, value in models.named_parameters() if is_inner_matrix(name, value)}
    assert len(names) == counts[0]
    assert "transformer.single_transformer_blocks.0.proj_mlp.weight" in names
    assert "t5.encoder.block.0.layer.0.SelfAttention.q.weight" in names
    assert not [name for name in names if "norm" in name or "embed" in name or name.endswith("bias")]


def test_an_untrained_transformer_predicts_zero_and_the_full_one_is_small() -> None:
    model = build_transformer(FLOW_TINY)
    text, image = position_ids(4, 4)
    with torch.no_grad():
        guess = model(
            hidden_states=torch.randn(1, 16, 16),
            encoder_hidden_states=torch.randn(1, 32, 16),
            pooled_projections=torch.randn(1, 16),
            timestep=torch.tensor([0.5]),
            txt_ids=text,
            img_ids=image,
        ).sample
    assert not guess.any()
    assert sum(FLOW_FULL.rotary) == FLOW_FULL.head_width
    assert parameters_of(build_transformer(FLOW_FULL)) < 2_500_000


def test_captions_are_padded_to_the_length_of_training(readers: Readers) -> None:
    ids = flow_ids(readers.t5_tokenizer, ["a red circle", "red " * 50])
    assert ids.shape == (2, 32)
    assert ids[0, -1] == readers.t5_tokenizer.pad_token_id
    assert ids[1, -1] == readers.t5_tokenizer.eos_token_id


def test_a_whole_tiny_training_writes_a_folder_that_renders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ["--tiny", "--steps", "2", "--scenes", "8", "--hours", "0.1"]
    mini = ["--work", str(tmp_path / "work"), "--model", str(tmp_path / "mini"), *shared]
    train.train(train.parse(mini))
    flow = ["--work", str(tmp_path / "flow-work"), "--model", str(tmp_path / "flow"), "--parts", str(tmp_path / "mini")]
    assert 50_000 < train_flow.train_flow(train_flow.parse([*flow, *shared])) < 2_000_000
    assert {p.suffix for p in (tmp_path / "flow").rglob("*") if p.is_file()} == {".json", ".txt", ".safetensors"}
    pipe = load_flow_pipeline(tmp_path / "flow")
    assert isinstance(pipe.text_encoder, CLIPTextModel)
    drawn = pipe(
        ["a red circle"],
        negative_prompt=[""],
        true_cfg_scale=2.0,
        num_inference_steps=2,
        max_sequence_length=pipe.tokenizer_2.model_max_length,
        height=64,
        width=64,
        output_type="np",
    ).images[0]
    assert drawn.shape == (64, 64, 3)
    assert np.isfinite(drawn).all()
    table = pipe.text_encoder_2.get_input_embeddings().weight
    vocabulary = pipe.tokenizer_2.get_vocab()
    assert torch.equal(table[vocabulary["▁Red"]], table[vocabulary["▁red"]])
    assert not table[pipe.tokenizer_2.unk_token_id].any()
    capsys.readouterr()


@pytest.mark.parametrize("hours", ["0", "-1", "nan", "inf"])
def test_an_invalid_time_budget_is_refused(hours: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_flow.parse(["--work", "x", "--hours", hours])
    assert "positive" in capsys.readouterr().err
