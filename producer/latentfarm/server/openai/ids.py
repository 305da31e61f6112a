"""Ids of files and batches. In lexical order, the newest comes first, as OpenAI lists them."""

from __future__ import annotations

import re
import secrets

from latentfarm.ledger import Ledger

#: milliseconds count down from here, so that a later id comes first
_TOP_MS = 0xFFF_FFFF_FFFF
_STEM = "[0-9a-f]{24}"
_FILE = re.compile(rf"file-{_STEM}")
_BATCH = re.compile(rf"batch_{_STEM}")


def new_stem(ledger: Ledger) -> str:
    """Return what follows the prefix of a new id: 11 hex digits of Redis' time and 13 random ones."""
    return f"{_TOP_MS - ledger.now_us() // 1_000:011x}{secrets.token_hex(7)[:13]}"


def created_at(stem: str) -> int:
    """Return the time in an id's stem, in seconds since 1970."""
    return (_TOP_MS - int(stem[:11], 16)) // 1000


def is_file_id(text: str) -> bool:
    """Return whether a text is the id of an uploaded file: it may be part of a key then."""
    return _FILE.fullmatch(text) is not None


def is_batch_id(text: str) -> bool:
    """Return whether a text is the id of a batch: it may be part of a key then, and names a batch of the ledger."""
    return _BATCH.fullmatch(text) is not None


def stem_of(identifier: str) -> str:
    """Return an id without its prefix. Stems of files and batches are of one order."""
    return identifier.removeprefix("file-").removeprefix("batch_")
