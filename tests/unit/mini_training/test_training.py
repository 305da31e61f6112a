"""The training runs, resumes with the same losses, and writes a folder that loads."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from mini_training import train, world
from mini_training.loop import Progress, Stage, TrainingPlan, generators, learning_rate
from mini_training.nets import TINY
from mini_training.text_stage import HEADS, targets, text_stage
from mini_training.tokenizer import build_tokenizer
from mini_training.unet_stage import cache_latents, loss_weights, noise_levels, unet_stage
from mini_training.vae_stage import busy_scene, to_images, to_tensor, training_images, vae_stage

pytestmark = [
    pytest.mark.unit,
    pytest.mark.slow,
    # diffusers' DPM-Solver passes a tensor to np.array, which NumPy 2 deprecates
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

PLAN = TrainingPlan("vae", seconds=3600, steps=4, rate=1e-3, warm_up=2)


def _steps(stage: Stage, count: int) -> list[float]:
    losses = []
    for _ in range(count):
        losses.append(stage.step())
        stage.progress.step += 1
    return losses


def _assert_resumes(make: Callable[[Path], Stage], tmp_path: Path) -> None:
    whole = _steps(make(tmp_path / "whole"), 4)
    first = make(tmp_path / "cut")
    before = _steps(first, 2)
    first.save()
    second = make(tmp_path / "cut")
    assert second.resume()
    assert before + _steps(second, 2) == pytest.approx(whole, rel=1e-6)


def test_the_autoencoder_resumes_to_the_same_losses(tmp_path: Path) -> None:
    _assert_resumes(lambda folder: vae_stage(PLAN, TINY, folder, batch=2), tmp_path)


def test_text_encoder_and_denoiser_resume_to_the_same_losses(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path / "words", count=30)
    vae = vae_stage(PLAN, TINY, tmp_path, batch=1).averages["vae"]
    cache = cache_latents(vae, TINY.image, 8, 0, tmp_path / "latents.pt")
    assert cache["latents"].shape == (8, 4, 8, 8)

    def make(folder: Path) -> Stage:
        text = text_stage(PLAN, TINY, folder, tokenizer, batch=4).models["text"]
        return unet_stage(PLAN, TINY, folder, text, tokenizer, cache, batch=4)

    _assert_resumes(make, tmp_path)


def test_the_text_stage_learns(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path / "words", count=200)
    plan = TrainingPlan("text", seconds=3600, steps=40, rate=5e-3, warm_up=2)
    losses = _steps(text_stage(plan, TINY, tmp_path, tokenizer, batch=16), 40)
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])


def test_a_whole_tiny_training_writes_a_folder_that_renders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = train.parse(
        [
            "--work",
            str(tmp_path / "work"),
            "--model",
            str(tmp_path / "model"),
            "--tiny",
            "--steps",
            "2",
            "--scenes",
            "8",
            "--hours",
            "0.1",
        ]
    )
    size = train.train(settings)
    assert 50_000 < size < 2_000_000
    assert {p.suffix for p in (tmp_path / "model").rglob("*") if p.is_file()} == {
        ".json",
        ".txt",
        ".safetensors",
    }
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a red circle", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    assert np.isfinite(image).all()
    capsys.readouterr()


def test_a_finished_stage_does_nothing_more(tmp_path: Path) -> None:
    plan = TrainingPlan("vae", seconds=3600, steps=1, rate=1e-3, log_every=1)
    done = vae_stage(plan, TINY, tmp_path, batch=1).run()
    again = vae_stage(plan, TINY, tmp_path, batch=1).run()
    assert done.step == again.step == 1
    assert again.losses == done.losses
    assert len(done.losses) == 1


def test_the_learning_rate_warms_up_and_falls() -> None:
    plan = TrainingPlan("x", seconds=1e9, steps=1000, rate=1.0, warm_up=10)
    rates = [learning_rate(plan, Progress(step=s)) for s in (0, 9, 500, 1000)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[1] > 0.99
    assert rates[1] > rates[2] > rates[3]
    assert rates[3] == pytest.approx(0.02)


def test_time_counts_like_steps() -> None:
    plan = TrainingPlan("x", seconds=100, steps=1000, rate=1.0)
    assert Progress(step=10, wall=50).share(plan) == 0.5
    assert Progress(step=900, wall=50).share(plan) == 0.9
    assert Progress(wall=500).share(plan) == 1.0


def test_each_step_has_its_own_random_numbers() -> None:
    plan = TrainingPlan("vae", seconds=1, steps=1, rate=1)
    draws = [generators(plan, step)[0].random() for step in (0, 1, 0)]
    assert draws[0] == draws[2] != draws[1]


def test_the_noise_schedule_is_that_of_stable_diffusion() -> None:
    levels = noise_levels()
    assert levels.shape == (1000,)
    assert float(levels[-1]) == pytest.approx(0.00466, abs=1e-4)
    assert float(loss_weights(levels).mean()) == pytest.approx(1, abs=1e-4)


def test_images_survive_the_trip_to_tensors() -> None:
    drawn = world.draw(busy_scene(np.random.default_rng(0)))
    tensor = to_tensor([drawn])
    assert tensor.shape == (1, 3, 128, 128)
    assert tensor.abs().max() <= 1
    assert np.array_equal(to_images(tensor)[0], drawn)


def test_crops_have_the_requested_size() -> None:
    batch = training_images(np.random.default_rng(0), 3, 128, 64)
    assert batch.shape == (3, 3, 64, 64)
    assert batch.dtype == torch.float32


def test_targets_fit_their_heads() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        wanted = targets(world.training_scene(rng))
        assert all(0 <= w < most for w, most in zip(wanted, HEADS.values(), strict=True))


@pytest.mark.parametrize("hours", ["0", "-1", "nan", "inf"])
def test_an_invalid_time_budget_is_refused(hours: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.parse(["--work", "x", "--hours", hours])
    assert "positive" in capsys.readouterr().err
