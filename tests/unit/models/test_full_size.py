"""A model of Stable Diffusion 1.4's shapes with random weights: about 6 GB and a minute, so not in CI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import sd15
from tests.support.tiny import make_tiny

from latentfarm.job import Job
from latentfarm_worker.engine.engine import Engine, Rendered
from latentfarm_worker.models.memory import Memory
from latentfarm_worker.models.sd import StableDiffusion
from latentfarm_worker.text_encoders.placement import EncoderPlacement
from latentfarm_worker.text_encoders.prompt import Prompt

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def parts(tokenizer_folder: Path) -> dict[str, Any]:
    """Return the modules, and a tokenizer of single bytes."""
    from transformers import CLIPTokenizer

    scheduler = {
        "_class_name": "PNDMScheduler",
        "skip_prk_steps": True,
        "steps_offset": 1,
        "clip_sample": False,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    }
    tokenizer = CLIPTokenizer.from_pretrained(make_tiny(tokenizer_folder), subfolder="tokenizer")
    return {
        **sd15.models(),
        "tokenizer": tokenizer,
        "scheduler_config": scheduler,
        "model_index": {},
        "memory": Memory(),
        "encoder_placement": EncoderPlacement(),
        "text_digest": "0" * 64,
    }


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    torch.manual_seed(0)
    modules = parts(tmp_path_factory.mktemp("tiny") / "model")
    return StableDiffusion(modules, name="sd14", model_digest="0" * 64, dtype=torch.float32)


@pytest.mark.timeout(1200)
def test_an_image_has_the_papers_shapes_at_every_level(full: StableDiffusion) -> None:
    levels: list[tuple[str, int]] = []
    blocks = {
        "in": full.unet.conv_in,
        **{f"down{number}": block for number, block in enumerate(full.unet.down_blocks)},
        "middle": full.unet.mid_block,
        **{f"up{number}": block for number, block in enumerate(full.unet.up_blocks)},
        "out": full.unet.conv_out,
    }

    def record(name: str) -> Any:
        return lambda _module, _args, output: levels.append(
            (name, (output[0] if isinstance(output, tuple) else output).shape[-1])
        )

    hooks = [block.register_forward_hook(record(name)) for name, block in blocks.items()]
    assert (full.native_width, full.native_height, full.latent_channels) == (512, 512, 4)
    [text] = full.encode([Prompt(full.tokenize("a photograph of an astronaut riding a horse"))])
    assert text["encoder_hidden_states"].shape == (77, 768)

    engine = Engine(full, slots=1)
    engine.admit(Job(batch="b", index=0, prompt="an astronaut", seed=1, num_inference_steps=2, scheduler="euler"))
    results = []
    while engine.busy:
        results += engine.step()
    for hook in hooks:
        hook.remove()

    one_forward = [("in", 64), ("down0", 32), ("down1", 16), ("down2", 8), ("down3", 8), ("middle", 8),
                ("up0", 16), ("up1", 32), ("up2", 64), ("up3", 64), ("out", 64)]  # fmt: skip
    assert levels == one_forward * 2
    (result,) = results
    assert isinstance(result, Rendered), result
    assert result.pixels.shape == (512, 512, 3)
    assert result.pixels.float().std() > 1
