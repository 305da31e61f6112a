"""ControlNets of U-Nets: those of Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from latentfarm.errors import JobError
from latentfarm_worker.adapters.catalogue import Adapter
from latentfarm_worker.adapters.controlnet.part import ControlNets
from latentfarm_worker.adapters.model_loading import Config
from latentfarm_worker.host_copy import send
from latentfarm_worker.text_encoders.prompt import Tensors


class UNetControlNets(ControlNets):
    """Nets of diffusers' ControlNetModel."""

    net_class = "ControlNetModel"
    compared: ClassVar = (
        "in_channels",
        "block_out_channels",
        "layers_per_block",
        "cross_attention_dim",
        "addition_embed_type",
        "projection_class_embeddings_input_dim",
    )

    def check(self, alias: str, config: Mapping[str, Any]) -> None:
        """Check that a net fits, and that it needs nothing but an image of three channels."""
        super().check(alias, config)
        for key, wanted in {"class_embed_type": None, "num_class_embeds": None, "conditioning_channels": 3}.items():
            if config.get(key) != wanted:
                raise JobError(
                    "adapter_invalid",
                    f"controlnet {alias!r}: its {key} is {config.get(key)!r}; use one with {wanted!r}",
                )

    def config_of_file(self, adapter: Adapter) -> Config:
        """Return the config that a net of this model has, as ``ControlNetModel.from_unet``."""
        from diffusers import ControlNetModel

        del adapter
        names = inspect.signature(ControlNetModel.__init__).parameters
        return {name: value for name, value in self.model.config.items() if name in names}

    def arrange(self, net: torch.nn.Module) -> torch.nn.Module:
        """Return a net in the layout in which convolutions are faster."""
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def condition(self, net: Any, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return an image from 0 to 1, (3, H, W)."""
        del net, generator
        return send((image.permute(2, 0, 1).float() / 255).to(self.dtype).contiguous(), self.device)

    def residuals(
        self,
        conditioning: Tensors,
        sample: torch.Tensor,
        timesteps: torch.Tensor,
        added: Tensors,
    ) -> dict[str, Any]:
        """Return the arguments of the U-Net with the residuals of a micro-batch; none without nets.

        Args:
            conditioning: of the micro-batch.
            sample: the U-Net's input, (R, C, h, w).
            timesteps: float32 (R,).
            added: its added conditions.
        """
        down: Sequence[torch.Tensor] = ()
        mid: torch.Tensor | None = None
        for module, image, scale in self.calls(conditioning):
            found, middle = module(
                sample,
                timesteps,
                encoder_hidden_states=conditioning["encoder_hidden_states"],
                controlnet_cond=image,
                # in float32, as diffusers' number
                conditioning_scale=scale[:, None, None, None],
                added_cond_kwargs=added,
                return_dict=False,
            )
            found, middle = [each.to(self.dtype) for each in found], middle.to(self.dtype)
            down = [one + other for one, other in zip(down, found, strict=True)] if down else found
            mid = middle if mid is None else mid + middle
        return {} if mid is None else {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
