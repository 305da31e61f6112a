"""A single file renders the same bytes as the diffusers folder whose weights it holds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.support.engines import make, render_alone
from tests.support.original_layouts import single_file_tensors, write_single_file
from tests.support.tiny import Kind, make_tiny

from latentfarm.errors import ModelError
from latentfarm_worker.checkpoints import open_checkpoint
from latentfarm_worker.checkpoints.clip_vocabulary import make_tokenizer
from latentfarm_worker.models import Family, load_family

pytestmark = pytest.mark.unit

#: by kind of the tiny model, the layout of its file
LAYOUTS: dict[Kind, str] = {
    "sd1": "sd1", "sd2": "sd2", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux", "schnell": "flux", "zimage": "z_image",
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Path]:
    root = tmp_path_factory.mktemp("tiny")

    def get(kind: Kind) -> Path:
        folder = make_tiny(root / kind, kind=kind)
        projection = folder / "text_encoder" / "model.safetensors"
        if kind == "sd3":
            # original files do not have this projection, so the original model is one where it changes nothing
            tensors = load_file(projection)
            tensors["text_projection.weight"] = torch.eye(len(tensors["text_projection.weight"]))
            save_file(tensors, projection, metadata={"format": "pt"})
        return folder

    return get


def load(source: object, dtype: torch.dtype = torch.float32) -> Family:
    return load_family(str(source), dtype=dtype, device=torch.device("cpu"))


def image(family: Family) -> bytes:
    return render_alone(family, make(0, prompt="a red circle", seed=3, negative_prompt="blue", num_inference_steps=2))


@pytest.mark.parametrize("layout", ["original", "comfyui"])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_images_of_a_file_have_the_bytes_of_its_folder_s(
    kind: Kind, layout: str, tiny: Callable[[Kind], Path], tmp_path: Path
) -> None:
    folder = tiny(kind)
    file = write_single_file(folder, tmp_path / "model.safetensors", LAYOUTS[kind], comfyui=layout == "comfyui")
    one, other = load(f"{file},base={folder}"), load(folder)
    assert image(one) == image(other)
    assert one.scheduler_config == other.scheduler_config


@pytest.mark.parametrize("kind", ["sdxl", "flux"])
def test_a_file_in_half_precision_has_the_bytes_of_a_folder_in_it(
    kind: Kind, tiny: Callable[[Kind], Path], tmp_path: Path
) -> None:
    folder = tiny(kind)
    file = write_single_file(folder, tmp_path / "a.safetensors", LAYOUTS[kind], comfyui=True, dtype=torch.bfloat16)
    assert image(load(f"{file},base={folder}", torch.bfloat16)) == image(load(folder, torch.bfloat16))


def test_parts_that_the_file_lacks_come_from_its_base(tiny: Callable[[Kind], Path], tmp_path: Path) -> None:
    folder = tiny("sdxl")
    file = write_single_file(folder, tmp_path / "unet.safetensors", "sdxl", without=("vae", "text_encoder"))
    assert image(load(f"{file},base={folder}")) == image(load(folder))
    other = make_tiny(tmp_path / "other", seed=1, kind="sdxl")
    assert image(load(f"{file},base={other}")) != image(load(folder)), "the base's parts are used"


def test_without_a_base_the_error_names_the_flag_and_the_usual_one(
    tiny: Callable[[Kind], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    file = write_single_file(tiny("sd1"), tmp_path / "a.safetensors", "sd1")
    with pytest.raises(ModelError, match="--base stable-diffusion-v1-5/stable-diffusion-v1-5") as caught:
        load(file)
    assert "tokenizers" in str(caught.value)
    file = write_single_file(tiny("schnell"), tmp_path / "b.safetensors", "flux")
    with pytest.raises(ModelError, match=r"--base black-forest-labs/FLUX.1-schnell"):
        load(file)


def test_a_base_of_another_family_is_an_error_with_the_cure(tiny: Callable[[Kind], Path], tmp_path: Path) -> None:
    file = write_single_file(tiny("sd1"), tmp_path / "a.safetensors", "sd1")
    with pytest.raises(ModelError, match=r"model of Stable Diffusion 1.x, but its base .* StableDiffusionXLPipeline"):
        load(f"{file},base={tiny('sdxl')}")
    # SD 1 and 2 have one pipeline: only the widths differ
    wide = make_tiny(tmp_path / "wide", kind="sd2")
    config = wide / "unet" / "config.json"
    config.write_text(config.read_text().replace('"cross_attention_dim": 64', '"cross_attention_dim": 128'))
    with pytest.raises(ModelError, match=r"cross_attention_dim is 64, but 128 in its base .* --base"):
        load(f"{file},base={wide}")


def test_a_file_beside_its_folder_s_index_needs_no_base(tiny: Callable[[Kind], Path], tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    shutil.copytree(tiny("sd1"), folder)
    file = write_single_file(folder, folder / "v1.safetensors", "sd1")
    assert image(load(file)) == image(load(folder))


def test_a_base_with_tokenizers_only_is_enough_for_a_whole_file(tiny: Callable[[Kind], Path], tmp_path: Path) -> None:
    """Sizes come from the tensors, the rest from the published configs."""
    base = tmp_path / "base"
    shutil.copytree(tiny("sd1") / "tokenizer", base / "tokenizer")
    file = write_single_file(tiny("sd1"), tmp_path / "a.safetensors", "sd1")
    checkpoint = open_checkpoint(f"{file},base={base}")
    unet = checkpoint.config("unet")
    assert (unet["block_out_channels"], unet["cross_attention_dim"], unet["layers_per_block"]) == ([32, 64], 64, 1)
    assert (unet["attention_head_dim"], unet["use_linear_projection"]) == (8, False)
    assert checkpoint.config("scheduler")["_class_name"] == "PNDMScheduler"
    assert checkpoint.index["_class_name"] == "StableDiffusionPipeline"
    # tiny norms have 8 groups where published models have 32
    with pytest.raises((ModelError, ValueError), match=r"group|divisible"):
        load(f"{file},base={base}")


def write_with_published_entries(folder: Path) -> Path:
    """Write a small model whose configs differ from Stable Diffusion 1.5's in their sizes only."""
    make_tiny(folder, kind="sd1")
    torch.manual_seed(0)
    text = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=12,
        hidden_act="quick_gelu",
        projection_dim=768,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    transformers.CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=48,
        attention_head_dim=8,
    ).save_pretrained(folder / "unet")
    diffusers.AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=64,
    ).save_pretrained(folder / "vae")
    make_tokenizer(transformers.CLIPTokenizer).save_pretrained(folder / "tokenizer")
    return folder


def test_a_file_with_clips_published_vocabulary_needs_no_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    folder = write_with_published_entries(tmp_path / "folder")
    (tmp_path / "alone").mkdir()
    file = write_single_file(folder, tmp_path / "alone" / "model.safetensors", "sd1")
    job = make(0, prompt="a photo of a cat", width=64, height=64, num_inference_steps=2)
    assert render_alone(load(file), job) == render_alone(load(folder), job)


def test_a_file_states_that_it_predicts_the_velocity(tiny: Callable[[Kind], Path], tmp_path: Path) -> None:
    folder = tiny("sdxl")
    tensors = single_file_tensors(folder, "sdxl") | {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    save_file(tensors, tmp_path / "a.safetensors")
    config = open_checkpoint(f"{tmp_path / 'a.safetensors'},base={folder}").config("scheduler")
    assert (config["prediction_type"], config["rescale_betas_zero_snr"]) == ("v_prediction", True)


def test_the_digest_distinguishes_files_and_bases(tiny: Callable[[Kind], Path], tmp_path: Path) -> None:
    folder = tiny("sd1")
    file = write_single_file(folder, tmp_path / "a.safetensors", "sd1", without=("vae",))
    parts = ("unet", "vae", "text_encoder")
    found = open_checkpoint(f"{file},base={folder}").digest(parts)
    assert open_checkpoint(f"{file},base={folder}").digest(parts) == found
    assert open_checkpoint(f"{file},base={make_tiny(tmp_path / 'b', seed=1)}").digest(parts) != found
    tensors = load_file(file)
    tensors["model.diffusion_model.out.2.bias"] += 1
    save_file(tensors, file)
    assert open_checkpoint(f"{file},base={folder}").digest(parts) != found


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_published_configs_and_shapes_make_the_published_models(kind: str) -> None:
    """Without a base's configs, a file of the published sizes gets the published config."""
    import importlib

    from tests.support import original_layouts

    from latentfarm_worker.checkpoints import published, sizes

    family = {"sd15": "sd1", "sdxl": "sdxl"}[kind]
    with torch.device("meta"):
        models: dict[str, Any] = importlib.import_module(f"tests.support.{kind}").models()
    for part, model in models.items():
        write, _ = original_layouts._WRITERS[family][part]
        shapes = {name: tuple(tensor.shape) for name, tensor in write(model.state_dict()).items()}
        found = sizes.complete(published.CONFIGS[family][part], sizes.READERS[family][part](shapes))
        config = model.config if isinstance(model.config, dict) else model.config.to_dict()
        own = type(model.config)(**found).to_dict() if hasattr(model.config, "to_dict") else found
        for key in found:
            if key not in {"bos_token_id", "eos_token_id", "pad_token_id"}:
                assert _same(key, own[key], config[key]), (part, key, own[key], config[key])


def _same(key: str, found: Any, published: Any) -> bool:
    if key in {"transformer_layers_per_block", "attention_head_dim"} and isinstance(found, list):
        return found == ([published] * len(found) if isinstance(published, int) else list(published))
    return (
        (list(found), list(published)) == (found, list(published)) or found == published
        if isinstance(found, list)
        else found == published
    )


def test_a_turbo_model_is_recognized_by_its_file_s_name(tiny: Callable[[Kind], Path], tmp_path: Path) -> None:
    folder = tiny("zimage")
    turbo, plain = (
        write_single_file(folder, tmp_path / f"{name}.safetensors", "z_image") for name in ("z_image_turbo", "z_image")
    )
    base = Path(shutil.copytree(folder, tmp_path / "Z-Image-Turbo"))
    assert load(f"{turbo},base={folder}").recommended.steps == 8
    assert load(f"{plain},base={base}").recommended.steps == 50
