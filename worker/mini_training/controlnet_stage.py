"""Train a ControlNet of mini's denoiser on the edges of drawn scenes (Zhang et al. 2023, arXiv 2302.05543).

The net is a copy of the denoiser's first half without its attention. Its weights are stored in float8, so that its file
stays near one megabyte; training rounds them at each step, with the gradient of the weights themselves (Bengio et al.
2013, arXiv 1308.3432).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file

from latentfarm_worker.adapters.controlnet.canny import canny
from mini_training import world
from mini_training.adapter_data import Encoded
from mini_training.loop import Stage, TrainingPlan
from mini_training.unet_stage import noise_loss

STORED = torch.float8_e4m3fn
# The share of scenes that are drawn anywhere and turned by any angle, which captions cannot say.
FREE_SHARE = 0.6
_EMBEDDING_CHANNELS = (8, 8, 16, 16)


def free_scene(rng: np.random.Generator) -> world.Scene:
    """Return a scene of one thing at any place and turned by any angle; its words name the nearest place and size."""
    scene = world.single_scene(rng)
    thing = scene.things[0]
    x, y = (float(v) for v in rng.uniform(0.28, 0.72, size=2))
    radius = float(rng.uniform(world.SIZES["small"][0], world.SIZES["large"][1]))
    free = world.Thing(thing.shape, thing.colour, thing.rgb, x, y, radius, turn=float(rng.uniform(-math.pi, math.pi)))
    place = min(world.PLACES, key=lambda p: math.dist(world.PLACES[p], (x, y)))
    size = "small" if radius < (world.SIZES["small"][1] + world.SIZES["large"][0]) / 2 else "large"
    return world.Scene(scene.background, scene.background_rgb, (free,), place=place, size=size)


def edge_scenes(count: int, seed: int) -> list[world.Scene]:
    """Return scenes to train on."""
    rng = np.random.default_rng([seed, 8])
    return [free_scene(rng) if rng.random() < FREE_SHARE else world.training_scene(rng) for _ in range(count)]


def edge_maps(images: list[world.Image]) -> torch.Tensor:
    """Return Canny's edges of images, bool (N, S, S)."""
    return torch.from_numpy(np.stack([canny(image) for image in images]))


def build_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """Return a ControlNet of a denoiser's channels, with its weights where the networks agree."""
    config = unet.config
    net = ControlNetModel(
        in_channels=config.in_channels,
        down_block_types=("DownBlock2D",) * len(config.block_out_channels),
        mid_block_type="UNetMidBlock2D",
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=config.attention_head_dim,
        conditioning_embedding_out_channels=_EMBEDDING_CHANNELS,
    )
    own, known = net.state_dict(), unet.state_dict()
    shared = {name: value for name, value in known.items() if name in own and own[name].shape == value.shape}
    net.load_state_dict(shared, strict=False)
    # Edges are thin: with torch's defaults, and the zeros of diffusers at the end, almost nothing of them would arrive.
    for layer in net.controlnet_cond_embedding.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.bias is not None:
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            torch.nn.init.zeros_(layer.bias)
    # About one pixel of a hundred is on an edge.
    net.controlnet_cond_embedding.conv_in.weight.data.mul_(10)
    return net


def rounded(value: torch.Tensor) -> torch.Tensor:
    """Return a weight as it is stored, with the gradient of the weight itself."""
    return value + (value.detach().to(STORED).to(value.dtype) - value.detach())


class Controlled:
    """A denoiser that follows edge maps (B, 3, S, S), in [0, 1], by a net with rounded weights."""

    def __init__(self, unet: UNet2DConditionModel, net: ControlNetModel, edges: torch.Tensor) -> None:
        self.unet, self.net, self.edges = unet, net, edges

    def __call__(self, sample: torch.Tensor, steps: torch.Tensor, hidden: torch.Tensor) -> object:
        """Return the denoiser's output."""
        weights = {name: rounded(value) for name, value in self.net.named_parameters()}
        down, mid = torch.func.functional_call(
            self.net,
            weights,
            (sample, steps, hidden),
            {"controlnet_cond": self.edges.to(sample.device), "return_dict": False},
        )
        return self.unet(sample, steps, hidden, down_block_additional_residuals=down, mid_block_additional_residual=mid)


def as_condition(edges: torch.Tensor) -> torch.Tensor:
    """Return edge maps as a ControlNet takes them: bool (B, S, S) to float32 (B, 3, S, S) in [0, 1]."""
    return edges.float()[:, None].expand(-1, 3, -1, -1).contiguous()


def write_controlnet(net: ControlNetModel, folder: Path) -> int:
    """Write a diffusers folder with weights in float8; return its size in bytes."""
    net.save_config(folder)
    config = folder / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {name: value.detach().to(STORED).contiguous() for name, value in net.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return sum(path.stat().st_size for path in folder.iterdir())


def controlnet_stage(
    plan: TrainingPlan,
    folder: Path,
    unet: UNet2DConditionModel,
    data: Encoded,
    edges: torch.Tensor,
    batch: int,
) -> Stage:
    """Return the stage that trains a ControlNet; the denoiser keeps its weights."""
    torch.manual_seed(plan.seed + 4)
    unet.requires_grad_(requires_grad=False)
    net = build_controlnet(unet).to(memory_format=torch.channels_last)

    def loss(rng: np.random.Generator, noise: torch.Generator, _share: float) -> torch.Tensor:
        chosen, clean, hidden = data.pick(rng, batch)
        return noise_loss(Controlled(unet, net, as_condition(edges[chosen])), hidden, clean, noise)

    return Stage(plan, {"net": net}, loss, folder)
