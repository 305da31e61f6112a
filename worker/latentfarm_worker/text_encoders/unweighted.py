"""Prompts for text encoders that take no weights: language models such as T5 and Qwen3."""

from __future__ import annotations

from latentfarm.errors import JobError
from latentfarm.job import PromptSyntax
from latentfarm_worker.text_encoders.prompt_weights import parse


def unweighted(prompt: str, syntax: PromptSyntax) -> str:
    """Return the text of a prompt: itself if ``plain``; without the backslashes of escaped brackets if ``a1111``.

    Raises:
        JobError: code ``prompt_too_complex``: a word has a weight, or BREAK begins a new chunk.
    """
    if syntax == "plain":
        return prompt
    sections = parse(prompt)
    weighted = [piece for section in sections for piece in section if piece.weight != 1.0]
    if weighted:
        raise JobError(
            "prompt_too_complex",
            f"prompt {weighted[0].text[:40]!r} has the weight {weighted[0].weight:g}, and this model's text encoders "
            "take no weights; write it without brackets, or \\( for a bracket that is text",
        )
    if len(sections) > 1:
        raise JobError(
            "prompt_too_complex", "prompt has a BREAK, and this model's text encoders take no chunks; leave BREAK out"
        )
    return "".join(piece.text for piece in sections[0])
