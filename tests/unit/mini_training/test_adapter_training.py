"""Training adapters changes only the adapter, resumes with the same losses, and writes files that diffusers loads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from safetensors.torch import load_file

from mini_training import adapter_world, train_adapters, world
from mini_training.adapter_data import Encoded, encode_captions, encode_images
from mini_training.controlnet_stage import (
    STORED,
    build_controlnet,
    controlnet_stage,
    edge_maps,
    edge_scenes,
    rounded,
    write_controlnet,
)
from mini_training.embedding_stage import (
    SHAPES,
    VECTORS,
    WORD,
    Word,
    embedding_stage,
    nested_caption,
    nested_scenes,
    token_ids,
)
from mini_training.export import pipeline
from mini_training.loop import Stage, TrainingPlan
from mini_training.lora_stage import RANK, Lora, lora_stage
from mini_training.measure_adapters import with_lora
from mini_training.nets import TINY, build_text, build_unet, build_vae
from mini_training.tokenizer import build_tokenizer

pytestmark = [pytest.mark.unit, pytest.mark.slow]

PLAN = TrainingPlan("edges", seconds=3600, steps=4, rate=1e-2, warm_up=2)
SIDE = TINY.image


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    build_tokenizer(folder, count=30)
    return folder


def _pipe(words: Path) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(words, count=30)
    text = build_text(TINY, len(tokenizer), tokenizer.eos_token_id, tokenizer.bos_token_id)
    return pipeline(build_vae(TINY), text, build_unet(TINY), tokenizer, 1.0)


def _data(pipe: StableDiffusionPipeline, scenes: list[world.Scene], style: str) -> Encoded:
    images = [adapter_world.draw(style, scene, SIDE) for scene in scenes]
    return Encoded(encode_images(pipe, images), encode_captions(pipe, ["a red star"] * len(scenes)))


def _stage(kind: str, pipe: StableDiffusionPipeline, folder: Path) -> Stage:
    """Return a stage; the pipeline is its own, for it uses the adapter from then on."""
    scenes = nested_scenes(8, seed=0)
    data = _data(pipe, scenes, "nested")
    if kind == "lora":
        return lora_stage(PLAN, folder, pipe.unet, data, batch=4)
    if kind == "edges":
        edges = edge_maps([world.draw(scene, SIDE) for scene in scenes])
        return controlnet_stage(PLAN, folder, pipe.unet, data, edges, batch=4)
    return embedding_stage(PLAN, folder, pipe, data, scenes, batch=4)


def _steps(stage: Stage, count: int) -> list[float]:
    losses = []
    for _ in range(count):
        losses.append(stage.step())
        stage.progress.step += 1
    return losses


KINDS = pytest.mark.parametrize("kind", ["lora", "edges", "word"])


@KINDS
def test_a_stage_trains_its_adapter_and_no_weight_of_the_model(kind: str, words: Path, tmp_path: Path) -> None:
    pipe = _pipe(words)
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    stage = _stage(kind, pipe, tmp_path)
    start = [value.detach().clone() for value in stage.models.parameters()]
    _steps(stage, 2)
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
    assert any(not torch.equal(a, b) for a, b in zip(start, stage.models.parameters(), strict=True))


@KINDS
def test_a_stage_resumes_to_the_same_losses(kind: str, words: Path, tmp_path: Path) -> None:
    whole = _steps(_stage(kind, _pipe(words), tmp_path / "whole"), 4)
    first = _stage(kind, _pipe(words), tmp_path / "cut")
    before = _steps(first, 2)
    first.save()
    second = _stage(kind, _pipe(words), tmp_path / "cut")
    assert second.resume()
    assert before + _steps(second, 2) == pytest.approx(whole, rel=1e-5)


def test_a_new_lora_changes_nothing_and_a_file_gives_back_what_was_written(words: Path, tmp_path: Path) -> None:
    noisy, steps, hidden = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.randn(2, 77, TINY.text_width)
    pipe, other = _pipe(words), _pipe(words)
    with torch.no_grad():
        plain = pipe.unet(noisy, steps, hidden).sample
        lora = Lora(pipe.unet)
        lora.attach(pipe.unet)
        assert torch.equal(pipe.unet(noisy, steps, hidden).sample, plain)
        for value in lora.parameters():
            value.copy_(torch.randn(value.shape) / 10)
        size = lora.write(tmp_path / "x.safetensors")
        with_lora(other, tmp_path / "x.safetensors")
        ours, theirs = (each.unet(noisy, steps, hidden).sample for each in (pipe, other))
    assert not torch.allclose(ours, plain, atol=1e-2)
    assert torch.allclose(ours, theirs, atol=1e-2)
    assert size == (tmp_path / "x.safetensors").stat().st_size


def test_a_lora_has_the_names_of_diffusers(words: Path, tmp_path: Path) -> None:
    pipe = _pipe(words)
    Lora(pipe.unet).write(tmp_path / "x.safetensors")
    tensors, rank = pipe.lora_state_dict(tmp_path / "x.safetensors")[0], set()
    for name, value in tensors.items():
        base = pipe.unet.get_submodule(name.removeprefix("unet.").rsplit(".", 2)[0])
        down = name.endswith("lora_A.weight")
        rank.add(value.shape[0 if down else 1])
        assert value.shape[1 if down else 0] == (base.in_features if down else base.out_features)
    assert rank == {RANK}
    assert len(tensors) == 2 * 10 * sum(
        1 for name, _ in pipe.unet.named_modules() if name.endswith("transformer_blocks.0")
    )


def test_a_controlnet_loads_with_the_weights_that_were_trained_with(words: Path, tmp_path: Path) -> None:
    net = build_controlnet(_pipe(words).unet)
    size = write_controlnet(net, tmp_path / "edges")
    loaded = ControlNetModel.from_pretrained(tmp_path / "edges", torch_dtype=torch.float32)
    for name, value in loaded.named_parameters():
        assert torch.equal(value, rounded(net.get_parameter(name)))
    stored = load_file(tmp_path / "edges" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {STORED}
    assert size < 2 * sum(value.numel() for value in stored.values()) + 20_000


def test_a_rounded_weight_has_the_gradient_of_the_weight() -> None:
    weight = torch.tensor([0.3, -1.7, 0.0], requires_grad=True)
    value = rounded(weight)
    torch.autograd.backward(value.square().sum())
    assert weight.grad is not None
    assert torch.equal(weight.grad, 2 * value.detach())
    assert not torch.equal(value, weight)


def test_a_word_that_was_written_is_the_one_that_was_trained(words: Path, tmp_path: Path) -> None:
    pipe, other = _pipe(words), _pipe(words)
    word = Word(pipe)
    with torch.no_grad():
        word.vectors.copy_(torch.randn(word.vectors.shape).half())
    word.write(tmp_path / "nested.safetensors")
    other.load_textual_inversion(tmp_path / "nested.safetensors")
    text = f"a red {WORD} star"
    assert (token_ids(pipe, [text]) >= pipe.unet.config.cross_attention_dim).any()
    assert torch.equal(token_ids(pipe, [text]), token_ids(other, [text]))
    with torch.no_grad():
        ours, theirs = (each.text_encoder(token_ids(each, [text])).last_hidden_state for each in (pipe, other))
    assert torch.equal(ours, theirs)
    assert load_file(tmp_path / "nested.safetensors")[WORD].shape == (VECTORS, TINY.text_width)


def test_each_caption_has_the_word_once_before_its_shape() -> None:
    rng = np.random.default_rng(0)
    for scene in nested_scenes(200, seed=0):
        assert scene.things[0].shape in SHAPES
        assert nested_caption(scene, rng).count(WORD) == 1


def test_edges_are_trained_on_more_than_the_places_that_captions_name() -> None:
    scenes = edge_scenes(200, seed=0)
    turned = [abs(scene.things[0].turn) > 2 * world.TURN_JITTER for scene in scenes]
    assert 0.4 < np.mean(turned) < 0.8
    assert edge_maps([world.draw(scene) for scene in scenes[:3]]).sum() > 100


def test_accents_differ_from_both_colours_and_rare_ones_can_be_made_frequent() -> None:
    for colour in world.COLOURS:
        for background in world.COLOURS:
            assert adapter_world.accent(colour, background) not in {colour, background}
    for share, low, high in ((0.0, 0.1, 0.3), (0.35, 0.4, 0.6)):
        scenes = adapter_world.style_scenes(300, 0, share)
        rare = [adapter_world.accent(scene.things[0].colour, scene.background) != "black" for scene in scenes]
        assert low < np.mean(rare) < high


def test_one_command_writes_all_adapters(tmp_path: Path) -> None:
    options = ["--work", str(tmp_path / "work"), "--adapters", str(tmp_path / "out"), "--steps", "1", "--scenes", "2"]
    settings, names = train_adapters.parse(options)
    for name in names:
        assert train_adapters.TRAINERS[name](settings) < 2**20
    written = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert written == {
        "outlined.safetensors",
        "striped.safetensors",
        "nested.safetensors",
        "edges/config.json",
        "edges/diffusion_pytorch_model.safetensors",
    }
