"""A fake family whose images are the bits of their latents: the last bit of a step counts. Its steps are fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tests.chaos.fake_worker import NoOpFamily

from latentfarm.job import PromptSyntax
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors, TokenizedPrompt


class ExactFamily(NoOpFamily):
    """A family whose output depends on the latents, the timestep, and the number in the prompt.

    Args:
        scheduler_config: the model's own [default: that of Stable Diffusion with Euler's scheduler].

    Attributes:
        before_predict: called with the numbers of the prompts before each evaluation, 0 for padding and negative ones.
    """

    def __init__(self, **scheduler_config: object) -> None:
        super().__init__("exact", torch.device("cpu"), torch.float32)
        self.scheduler_config = scheduler_config or self.scheduler_config
        self.before_predict: Callable[[list[int]], object] = lambda _: None

    def tokenize(self, prompt: str, syntax: PromptSyntax = "plain") -> TokenizedPrompt:
        del syntax
        number = "".join(filter(str.isdigit, prompt))
        return TokenizedPrompt(((int(number) + 1 if number else 0,),), count=3)

    def encode(self, prompts: Sequence[Prompt]) -> list[Tensors]:
        marks = [prompt.tokens.chunks[0][0] for prompt in prompts]
        return [{"encoder_hidden_states": torch.full((77, 4), float(mark))} for mark in marks]

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        marks = conditioning["encoder_hidden_states"][:, 0, 0]
        self.before_predict([int(mark) for mark in marks.tolist()])
        shift = (marks / 7 + timesteps / 1000)[:, None, None, None]
        return torch.sin(latents * 1.7 + shift)

    def decode(
        self, latents: torch.Tensor, *, float32: bool = False, tiled: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the bytes of the latents as the first of the pixels."""
        del float32, tiled
        bits = latents.contiguous().flatten(1).view(torch.uint8)
        height, width = latents.shape[2] * 8, latents.shape[3] * 8
        pixels = torch.zeros((len(latents), height * width * 3), dtype=torch.uint8)
        pixels[:, : bits.shape[1]] = bits
        return pixels.reshape(len(latents), height, width, 3), torch.ones(len(latents), dtype=torch.bool)
