"""Notice what looks like syntax in prompts and is rendered as written."""

from __future__ import annotations

import re
from collections.abc import Collection

from latentfarm.adapter_kind import AdapterKind
from latentfarm.job import Defaults, Row
from latentfarm.model_facts import ModelFacts
from latentfarm.submission.expansion import has_choices
from latentfarm.submission.lora_tags import has_lora_tag
from latentfarm.submission.prompt_weights import looks_weighted
from latentfarm.submission.prompts import Notes
from latentfarm.submission.prompts.flags import has_flags

_CHOICES = "choices such as {a|b} and __name__ are rendered as written; add --dynamic-prompts"
_FLAGS = "flags such as --steps 20 in a prompt are rendered as written; only lines of a txt have flags"
_LORA = "<lora:name:scale> is rendered as written; add --prompt-syntax a1111, or write the field loras"
_MAX_SHOWN = 10
#: written as an embedding's name
_NAME = re.compile(r"<([^\s,:<>+|/\\]+)>")
#: what all of these have, so that most prompts are searched once
_MARK = re.compile(r"[{(\[]|__| -|\+\+|--|<(?i:lora|lyco|hypernet)\s*:")


def note_syntax(row: Row, defaults: Defaults, notes: Notes, *, dynamic: bool) -> None:
    """Note the syntax in a row's texts that its options do not read.

    Args:
        row: a valid row.
        defaults: the batch's defaults.
        notes: counts the sentences, each once for the row.
        dynamic: whether dynamic prompts are on.
    """
    texts = [text for text in (row.prompt, row.negative_prompt) if text and _MARK.search(text)]
    if not texts:
        return
    plain = (row.prompt_syntax or defaults.prompt_syntax) != "a1111"
    found = {sentence for text in texts for sentence in _sentences(text, plain=plain, dynamic=dynamic)}
    for sentence in sorted(found):
        notes.add(sentence)


def note_unknown_embeddings(row: Row, facts: ModelFacts | None, notes: Notes) -> None:
    """Note names in angle brackets that the model's workers do not have, if they have any: a name may be misspelt."""
    known = {name.lower() for name in (facts.adapters or {}).get(AdapterKind.EMBEDDING, ())} if facts else set()
    texts = " ".join(text for text in (row.prompt, row.negative_prompt) if text and "<" in text)
    if known and any(name.lower() not in known for name in _NAME.findall(texts)):
        notes.add(f"<names> of no embedding are rendered as written; the model's workers have {_listed(known)}")


def _listed(names: Collection[str]) -> str:
    shown = sorted(names)[:_MAX_SHOWN]
    more = len(names) - len(shown)
    return ", ".join(f"<{name}>" for name in shown) + (f" and {more} more" if more else "")


def _sentences(text: str, *, plain: bool, dynamic: bool) -> list[str]:
    found = []
    if not dynamic and has_choices(text):
        found.append(_CHOICES)
    if plain and has_lora_tag(text):
        found.append(_LORA)
    if " -" in text and has_flags(text):
        found.append(_FLAGS)
    if plain and (weighted := looks_weighted(text)):
        found.append(weighted)
    return found
