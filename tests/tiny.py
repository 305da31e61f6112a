"""A complete stable diffusion model with random weights, a million parameters: it loads like a real one.

It stands in for a trained model in tests and wherever only the plumbing matters. Its pictures are coloured
noise, but they depend on seed, prompt, steps and scheduler as those of a real model do.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch

#: pixels of a side
NATIVE = 64
_TEXT_WIDTH = 64
_SCHEDULERS: dict[str, dict[str, Any]] = {
    "sd1": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "prediction_type": "epsilon"},
    "sd2": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
}


def make_tiny(directory: Path, *, seed: int = 0, kind: Literal["sd1", "sd2"] = "sd1") -> Path:
    """Write the model as a diffusers folder and return ``directory``; one that is there is left alone.

    ``sd1`` predicts the noise (epsilon), with convolutional projections in the transformers; ``sd2`` predicts
    the velocity, with linear projections and a number of heads for each level. The bytes depend on ``seed``
    and ``kind`` only. Several processes may make the same folder at once.
    """
    directory = Path(directory)
    if (directory / "model_index.json").is_file():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _write(draft, kind)
        draft.chmod(0o755)
        try:
            draft.rename(directory)
        except OSError:
            if not (directory / "model_index.json").is_file():  # another process was not faster: a real obstacle
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return directory


def _write(folder: Path, kind: str) -> None:
    _write_tokenizer(folder / "tokenizer")
    _text_encoder().save_pretrained(folder / "text_encoder")
    _unet(kind).save_pretrained(folder / "unet")
    _vae().save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir()
    scheduler = {
        "_diffusers_version": "0.42.1",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        **_SCHEDULERS[kind],
    }
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / "model_index.json", index)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path) -> None:
    """Write a byte-level CLIP vocabulary: each byte, within and at the end of a word, no merges."""
    folder.mkdir()
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    _write_json(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    specials = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
                "unk_token": "<|endoftext|>"}  # fmt: skip
    _write_json(folder / "special_tokens_map.json", specials)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "errors": "replace",
    }
    _write_json(folder / "tokenizer_config.json", {**settings, **specials})


def _byte_letters() -> list[str]:
    # GPT-2's and CLIP's table: printable latin-1 stands for itself, the other bytes for letters from 256 on
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def _text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=_TEXT_WIDTH,
        intermediate_size=128,
        projection_dim=_TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return CLIPTextModel(config)


def _unet(kind: str) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=NATIVE // 8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=_TEXT_WIDTH,
        attention_head_dim=4 if kind == "sd1" else (2, 4),
        use_linear_projection=kind == "sd2",
        norm_num_groups=8,
    )


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=NATIVE,
        scaling_factor=0.18215,
    )
