"""How a model is stored in memory: which weights have fewer bits, and where its text encoders are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from latentfarm.errors import ModelError
from latentfarm_worker.models.quantization import check_quantization, quantize_text_encoder_to_nf4
from latentfarm_worker.text_encoders.placement import EncoderPlacement, Placement, bytes_of, choose_placement

_PLACEMENTS = ("auto", "resident", "offload", "cpu")


@dataclass(frozen=True)
class Memory:
    """The settings of one model's memory.

    Attributes:
        quantization: of the denoising model: ``none``, ``fp8`` or ``nf4``.
        text_encoder: where the text encoders are: ``resident``, ``offload``, ``cpu``; or ``auto``, as
            ``placement.choose_placement``.
        text_quantization: of text encoders that are language models: ``none`` or ``nf4``.

    Raises:
        ModelError: one of them is unknown.
    """

    quantization: str = "none"
    text_encoder: Literal["auto"] | Placement = "auto"
    text_quantization: str = "none"

    def __post_init__(self) -> None:
        check_quantization(self.quantization, self.text_quantization)
        if self.text_encoder not in _PLACEMENTS:
            raise ModelError(f"text encoder {self.text_encoder!r} is unknown; write auto, resident, offload or cpu")

    def place_text_encoders(self, encoders: Sequence[Any], device: torch.device) -> EncoderPlacement:
        """Quantize text encoders that are on the host, and place them. The other parts must be on the device before.

        Raises:
            ModelError: they shall be quantized, and none is a language model.
        """
        if self.text_quantization == "nf4":
            compute = torch.device("cpu") if self.text_encoder == "cpu" else device
            if not [encoder for encoder in encoders if quantize_text_encoder_to_nf4(encoder, compute)]:
                kinds = ", ".join(type(encoder).__name__ for encoder in encoders)
                raise ModelError(
                    f"the text encoders of this model are {kinds}, which stay as they are: only language models such "
                    "as T5 and Qwen3 can be nf4; set LATENTFARM_TEXT_ENCODER_QUANTIZATION=none"
                )
            for encoder in encoders:
                encoder.to("cpu")
        return EncoderPlacement(encoders, device, self._placement(encoders, device))

    def _placement(self, encoders: Sequence[Any], device: torch.device) -> Placement:
        if self.text_encoder != "auto":
            return self.text_encoder
        if device.type != "cuda":
            return "resident"
        # what torch keeps for later calls is free, too
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free, total = torch.cuda.mem_get_info(device)
        return choose_placement(bytes_of(encoders), free=free + kept, total=total)
