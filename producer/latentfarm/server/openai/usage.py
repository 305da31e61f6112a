"""The tokens that an answer names.

OpenAI bills them. Here they measure work: input tokens are those that the text encoder has read of the prompt and, with
guidance, of the negative prompt, without padding; output tokens are the positions of the latents, one for 8 x 8 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latentfarm.server.openai.shapes import TokenDetails, Usage

#: pixels of a position's side
_POSITION = 8


def usage_of(results: Sequence[Mapping[str, Any]]) -> Usage:
    """Return the usage of the images of one request. They share the prompt, so it counts once."""
    # receipts of earlier versions have no number of tokens
    given = int(results[0].get("tokens") or 0)
    made = sum(_positions(result["request"]) for result in results)
    return Usage(
        input_tokens=given,
        input_tokens_details=TokenDetails(image_tokens=0, text_tokens=given),
        output_tokens=made,
        output_tokens_details=TokenDetails(image_tokens=made, text_tokens=0),
        total_tokens=given + made,
    )


def _positions(request: Mapping[str, Any]) -> int:
    return (int(request["width"]) // _POSITION) * (int(request["height"]) // _POSITION)
