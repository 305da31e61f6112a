"""ControlNets of flow-matching transformers: Stable Diffusion 3's and FLUX.1's. Most read a control image's latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from latentfarm.errors import JobError
from latentfarm_worker.adapters.controlnet.part import ControlNets
from latentfarm_worker.host_copy import send
from latentfarm_worker.text_encoders.prompt import Tensors

#: before the tensors of a row that all its nets share
_OFFSET = "controlnet:prompt_row"


class Sd3ControlNets(ControlNets):
    """Nets of diffusers' SD3ControlNetModel.

    Their pipeline samples the latents of a control image from torch's global generator. Here they are the mean, so that
    the image depends on its seed alone.
    """

    net_class = "SD3ControlNetModel"
    compared: ClassVar = (
        "patch_size",
        "in_channels",
        "attention_head_dim",
        "num_attention_heads",
        "pooled_projection_dim",
    )

    def check(self, alias: str, config: Mapping[str, Any]) -> None:
        """Check that a net fits, and that it needs nothing but an image."""
        super().check(alias, config)
        texts, wanted = config.get("joint_attention_dim"), self.model.config.joint_attention_dim
        if texts not in (None, wanted):
            raise self.mismatch(alias, f"its joint_attention_dim is {texts}, that of the model {wanted}")
        if config.get("extra_conditioning_channels"):
            raise JobError(
                "adapter_invalid", f"controlnet {alias!r} reads a mask too, for inpainting; use one that reads an image"
            )

    def arrange(self, net: Any) -> torch.nn.Module:
        """Return a net with the model's own positions, if it has none."""
        if net.config.get("use_pos_embed", True) is False:
            # diffusers has no other name for it
            net.pos_embed = net._get_pos_embed_from_transformer(self.model).to(self.dtype).to("cpu")  # noqa: SLF001
        ready: torch.nn.Module = net
        return ready

    def condition(self, net: Any, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the latents of an image, (C, h, w)."""
        del generator
        # nets that read no pooled texts were trained without the shift
        shift = 0.0 if net.config.force_zeros_for_pooled_projection else self.vae.config.shift_factor
        mean, _ = self.encode(image)
        scaled: torch.Tensor = (mean - shift) * self.vae.config.scaling_factor
        return scaled.to(self.dtype)

    def residuals(self, conditioning: Tensors, latents: torch.Tensor, timesteps: torch.Tensor) -> dict[str, Any]:
        """Return the arguments of the transformer with the residuals of a micro-batch; none without nets.

        Args:
            conditioning: of the micro-batch.
            latents: the transformer's input, (R, C, h, w).
            timesteps: float32 (R,).
        """
        blocks = len(self.model.transformer_blocks)
        total: list[torch.Tensor] = []
        for module, image, scale in self.calls(conditioning):
            pooled = conditioning["pooled_projections"]
            found = module(
                hidden_states=latents,
                timestep=timesteps,
                encoder_hidden_states=None
                if module.config.joint_attention_dim is None
                else conditioning["encoder_hidden_states"],
                pooled_projections=torch.zeros_like(pooled)
                if module.config.force_zeros_for_pooled_projection
                else pooled,
                controlnet_cond=image,
                conditioning_scale=scale[:, None, None],
                return_dict=False,
            )[0]
            each_block = [found[int(at / (blocks / len(found)))].to(self.dtype) for at in range(blocks)]
            total = _sum(total, each_block)
        return {"block_controlnet_hidden_states": total} if total else {}


class FluxControlNets(ControlNets):
    """Nets of diffusers' FluxControlNetModel: InstantX's, which read latents, and XLabs', which read pixels.

    Their pipeline draws the latents of control images from the job's generator, before all other noise. With a negative
    prompt it adds the residuals of the prompt to both.
    """

    net_class = "FluxControlNetModel"
    compared: ClassVar = (
        "in_channels",
        "attention_head_dim",
        "num_attention_heads",
        "joint_attention_dim",
        "pooled_projection_dim",
    )

    def check(self, alias: str, config: Mapping[str, Any]) -> None:
        """Check that a net fits, and that it needs nothing but an image."""
        super().check(alias, config)
        if config.get("num_mode") is not None:
            raise JobError(
                "adapter_invalid",
                f"controlnet {alias!r} is a union of {config['num_mode']} kinds, and no field names one; use a net of "
                "one kind",
            )
        if config.get("guidance_embeds") and not self.model.config.guidance_embeds:
            raise self.mismatch(alias, "it embeds a guidance scale, and the model has none")

    def condition(self, net: Any, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return a sample of the latents of an image, packed, (h w / 4, 4 C); for XLabs' the pixels, (3, H, W)."""
        if net.input_hint_block is not None:
            return self.pixels(image).to(self.dtype)
        mean, std = self.encode(image)
        noise = torch.randn((1, *mean.shape), generator=generator)[0]
        sample, config = mean + std * send(noise, self.device), self.vae.config
        return _pack(((sample - config.shift_factor) * config.scaling_factor).to(self.dtype))

    def reads_sample(self, net: Any) -> bool:
        """Return whether it reads latents."""
        return net.input_hint_block is None

    def of_row(self, *, negative: bool) -> Tensors:
        """Return how far above a row is that of its prompt: 0, or -1 for a negative prompt."""
        return {_OFFSET: send(torch.tensor(-1 if negative else 0), self.device)}

    def residuals(self, conditioning: Tensors, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the transformer with the residuals of a micro-batch; none without nets.

        Args:
            conditioning: of the micro-batch.
            inputs: the transformer's.
        """
        double: list[torch.Tensor] = []
        single: list[torch.Tensor] = []
        for module, image, scale in self.calls(conditioning):
            offset = conditioning[_OFFSET]
            prompts = torch.arange(len(offset), device=offset.device) + offset
            guidance = inputs["guidance"] if module.config.guidance_embeds else None
            found, found_single = module(
                **{
                    **inputs,
                    "encoder_hidden_states": inputs["encoder_hidden_states"][prompts],
                    "pooled_projections": inputs["pooled_projections"][prompts],
                    "guidance": guidance,
                },
                controlnet_cond=image,
                conditioning_scale=scale[:, None, None],
                return_dict=False,
            )
            repeats = module.input_hint_block is not None
            double = _sum(double, self._of_blocks(found, len(self.model.transformer_blocks), repeats=repeats))
            single = _sum(
                single, self._of_blocks(found_single, len(self.model.single_transformer_blocks), repeats=False)
            )
        named = {"controlnet_block_samples": double, "controlnet_single_block_samples": single}
        return {name: each for name, each in named.items() if each}

    def _of_blocks(self, found: Sequence[torch.Tensor] | None, blocks: int, *, repeats: bool) -> Sequence[torch.Tensor]:
        """Return the residual of each block of the model, as its ``forward`` spreads those of fewer blocks."""
        if found is None:
            return []
        each = -(-blocks // len(found))
        return [found[at % len(found) if repeats else at // each].to(self.dtype) for at in range(blocks)]


def _sum(total: list[torch.Tensor], found: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    if not total or not found:
        return total or [*found]
    return [one + other for one, other in zip(total, found, strict=True)]


def _pack(latents: torch.Tensor) -> torch.Tensor:
    """Return latents (C, h, w) as tokens, (h/2 * w/2, 4 C), as FluxPipeline does."""
    channels, height, width = latents.shape
    patches = latents.reshape(channels, height // 2, 2, width // 2, 2)
    return patches.permute(1, 3, 0, 2, 4).reshape((height // 2) * (width // 2), 4 * channels)
