"""Muon for the matrices of blocks, AdamW for everything else, behind one optimizer."""

from __future__ import annotations

from typing import Any

import torch

from mini_training.loop import TrainingPlan


class MuonWithAdam:
    """Steps Muon and AdamW together (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

    Muon takes the weight matrices inside blocks; modulations, embeddings, biases and projections in and out stay with
    AdamW. Its updates are scaled to AdamW's size, so that both share a learning rate (Liu et al. 2025, arXiv
    2502.16982).
    """

    def __init__(self, models: torch.nn.ModuleDict, plan: TrainingPlan) -> None:
        inner = [p for name, p in models.named_parameters() if is_inner_matrix(name, p)]
        chosen = {id(p) for p in inner}
        others = [p for p in models.parameters() if id(p) not in chosen]
        rate, decay = plan.rate, plan.weight_decay
        self.muon = torch.optim.Muon(inner, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        self.adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=decay)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Return the groups of both, whose learning rates may be set."""
        return [*self.muon.param_groups, *self.adam.param_groups]

    def zero_grad(self, *, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        self.muon.zero_grad(set_to_none=set_to_none)
        self.adam.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Change all parameters by their gradients."""
        self.muon.step()  # type: ignore[no-untyped-call]
        self.adam.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of both."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def is_inner_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    """Return whether a parameter is a weight matrix inside a block, other than a modulation or an embedding."""
    inside = "blocks." in name or ".block." in name
    apart = ".norm" in name or "relative_attention_bias" in name
    return parameter.ndim == 2 and inside and not apart
