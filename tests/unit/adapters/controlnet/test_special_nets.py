"""Nets that differ from the usual ones of their class: for the prompt only, of pixels for FLUX.1, without positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.controlled import ControlledPipelines, catalogue_of, job, noise_image, prepared
from tests.support.pipelines import call, difference, open_pipeline, render
from tests.support.tiny import Kind, make_tiny
from tests.support.tiny.controlnets import make_controlnet

from latentfarm_worker.engine.engine import Engine
from latentfarm_worker.models import load_family

pytestmark = pytest.mark.unit

BOUND = 1  # of 255, per channel
IMAGE = noise_image(1)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        # as lllyasviel/control_v11e_sd15_shuffle
        ("sd1", {"global_pool_conditions": True}),
        ("sd1", {"controlnet_conditioning_channel_order": "bgr"}),
        # as XLabs-AI/flux-controlnet-canny-diffusers
        ("flux", {"patch_size": 2, "conditioning_embedding_channels": 16}),
        # as InstantX/SD3-Controlnet-Canny, and stabilityai/stable-diffusion-3.5-large-controlnet-canny
        ("sd3", {"force_zeros_for_pooled_projection": False}),
        ("sd3", {"use_pos_embed": False, "pos_embed_type": None, "joint_attention_dim": None}),
    ],
)
def test_a_special_net_gives_the_image_of_the_pipeline(
    kind: Kind, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny(tmp_path / "model", kind=kind)
    net = make_controlnet(tmp_path / "nets" / "net", folder, seed=1, **config)
    family: Any = load_family(folder, dtype=torch.float32, device=torch.device("cpu"))
    family.use_catalogue(catalogue_of(tmp_path / "nets", tmp_path / "cache"))
    if kind == "sd3":
        # its pipeline samples from torch's global generator, we take the mean
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, *_, **__: self.mode())
    base = open_pipeline(folder)
    wanted = job(0, "net", images=[IMAGE], controlnet_conditioning_scale=0.9)
    engine = Engine(family, slots=1)
    done = render(engine, [prepared(engine, wanted, [IMAGE])])
    expected = ControlledPipelines(base, {"net": net}).render(wanted, [IMAGE])
    assert difference(expected, done[0]) <= BOUND
    assert np.abs(expected - call(base, wanted)).mean() > 1, "a net without effect would prove nothing"
