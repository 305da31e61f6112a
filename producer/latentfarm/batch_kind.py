"""The kinds of batches: who submitted them, and how."""

from __future__ import annotations

from enum import StrEnum


class BatchKind(StrEnum):
    """What a batch was submitted for."""

    #: with the command line, the Python API or the server's own API
    SUBMITTED = "submitted"
    #: a client of the server waits for its few images
    INTERACTIVE = "interactive"
    #: with OpenAI's Batch API
    OPENAI = "openai"
