"""Nothing in a family waits for the device: the host sends tensors by ``send`` only, and reads none.

The models are on the meta device, which computes nothing. There a call that reads a tensor's numbers raises, and a copy
between devices is an operation with tensors of both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny import Kind, make_tiny
from tests.support.transfers import META, Transfers, send_to_meta

from latentfarm_worker.models import load_family
from latentfarm_worker.text_encoders import clip, t5
from latentfarm_worker.text_encoders.prompt import Prompt

pytestmark = pytest.mark.unit


#: by kind, a prompt for which its family sends all that it can
PROMPTS: dict[Kind, str] = {
    "sd1": "a (cat:1.2)",
    "sdxl": "a (cat:1.2)",
    "sd3": "a cat",
    "sd3-no-t5": "a cat",
    "flux": "a cat",
    "schnell": "a cat",
    "chroma": "a cat",
}


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_family_waits_for_no_device(
    kind: Kind, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load_family(make_tiny(tmp_path / "tiny", kind=kind), dtype=dtype, device=META)
    sent: list[torch.Tensor] = []

    def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        sent.append(tensor)
        return send_to_meta(tensor, device)

    for module in (clip, t5):
        monkeypatch.setattr(module, "send", send)
    prompts = [Prompt(family.tokenize(PROMPTS[kind], "a1111")), Prompt(family.tokenize(""), negative=True, clip_skip=1)]
    with Transfers() as transfers:
        [text, _] = family.encode(prompts)
        size = {name: send(tensor, META) for name, tensor in family.row_conditioning(64, 64, 7.5).items()}
        conditioning = {name: tensor.expand(2, *tensor.shape) for name, tensor in {**text, **size}.items()}
        latents = torch.empty(2, family.latent_channels, 8, 8, device=META)
        output = family.predict(latents, torch.empty(2, device=META), conditioning)
        for how in ({}, {"float32": True}, {"tiled": True}):
            images, finite = family.decode(latents, **how)
            assert images.device == finite.device == META
    assert transfers.copies == []
    assert output.device == META
    assert {tensor.device.type for tensor in sent} == {"cpu"}


def test_the_conditioning_of_a_row_is_on_the_host(tmp_path: Path) -> None:
    family: Any = load_family(make_tiny(tmp_path / "tiny", kind="sdxl"), dtype=torch.bfloat16, device=META)
    family.embeds_guidance = True
    family.unet.register_to_config(time_cond_proj_dim=32)
    conditioning = family.row_conditioning(96, 64, 7.5)
    assert {name: (tensor.device.type, tensor.dtype, tensor.shape) for name, tensor in conditioning.items()} == {
        "time_ids": ("cpu", torch.float32, (6,)),
        "timestep_cond": ("cpu", torch.bfloat16, (32,)),
    }
