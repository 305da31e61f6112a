r"""Weights in prompts: refuse compel's where AUTOMATIC1111's are read, and notice those that are rendered as written.

``(red)1.3``, ``red++`` and ``("a", "b").blend(0.5, 0.5)`` are the syntax of the library compel. ``a1111`` would read
them as other weights or as text. To a1111 users ``C++``, ``Disney+``, ``a--b`` and ``(c)2024`` are text, so a weight is
only what hardly can be text: two signs or more after a word of two letters that is no programming language, a sign or a
small number directly after a bracket, and ``.and(``, ``.blend(`` and ``.swap(``. A backslash makes it text: ``red\++``.
"""

from __future__ import annotations

import re

from latentfarm.errors import InputError
from latentfarm.job import Defaults, Row
from latentfarm.submission.prompts.rows import abbreviate

#: what follows a weight
_END = r"(?=[\s,.;:!?)\]\"']|$)"
_COMPEL = re.compile(
    rf"""
      (?<!\\) \) (?P<number> [+-]? (?: \d{{0,2}} \.\d+ | \d ) ) (?! [\w.%] )
    | (?<!\\) \) (?P<signs> \+ + {_END} | -{{2,}} {_END} | - (?= \s* (?: , | $ ) ) )
    | (?<! [\w\\+-] ) (?P<word> [^\W\d_]{{2,}} (?: - [^\W\d_]+ )* ) (?P<word_signs> \+{{2,}} | -{{2,}} ) {_END}
    | (?<= [\w)"'] ) \. (?P<call> and | blend | swap ) \(
    """,
    re.VERBOSE,
)
#: what each of them has; a search for it is much faster
_MARK = re.compile(r"\+\+|--|\)[-+.\d]|\.(?:and|blend|swap)\(")
#: words that end with ++ and are no weights; also all that end with -c, such as Dev-C++
_NAMES = frozenset({"notepad", "clang", "libstdc", "libc"})
_A1111 = re.compile(
    r"""(?<!\\) (?:
      \( [^()]* [^\W\d_] [^()]* : \s* [+-]? (?: \d? \.\d+ | [0-3] ) \s* \)
    | \( \( [^()]+ \) \) | \[ \[ [^\[\]]+ \] \]
    )""",
    re.VERBOSE,
)
_CALLS = {
    "and": "write BREAK between the parts",
    "blend": "write one prompt",
    "swap": "write the other words only",
}


def check_weights(row: Row, defaults: Defaults) -> None:
    """Refuse compel's weights in a row that is read in AUTOMATIC1111's syntax.

    Raises:
        InputError: a prompt has them; the text has field, value and cure.
    """
    if (row.prompt_syntax or defaults.prompt_syntax) != "a1111":
        return
    negative = defaults.negative_prompt if row.negative_prompt is None else row.negative_prompt
    for field, text in (("prompt", row.prompt), ("negative_prompt", negative or "")):
        if problem := _compel_weight(text):
            raise InputError(f"{field} {abbreviate(text)}: {problem}")


def check_default_weights(defaults: Defaults) -> None:
    """Refuse compel's weights in the negative prompt of a batch that is read in AUTOMATIC1111's syntax.

    Raises:
        InputError: it has them.
    """
    text = defaults.negative_prompt
    if text and defaults.prompt_syntax == "a1111" and (problem := _compel_weight(text)):
        raise InputError(f"options: negative_prompt {abbreviate(text)}: {problem}", field="negative_prompt")


def looks_weighted(text: str) -> str | None:
    """Return a note for a plain prompt that seems to have weights, or None."""
    if _A1111.search(text):
        return "weights such as (red:1.3) are rendered as written; add --prompt-syntax a1111"
    if _compel_weight(text):
        return "weights such as red++ are rendered as written; write (red:1.3) and add --prompt-syntax a1111"
    return None


def _compel_weight(text: str) -> str | None:
    """Return the problem of compel's first weight in a text, and its cure."""
    if _MARK.search(text) is None:
        return None
    for found in _COMPEL.finditer(text):
        word, number, signs = found["word"], found["number"], found["signs"] or found["word_signs"]
        if call := found["call"]:
            return f".{call}() is compel's and is not supported; {_CALLS[call]}"
        if word and found["word_signs"][0] == "+" and (word.lower() in _NAMES or word.lower().endswith("-c")):
            continue
        weight = number or f"{1.1 ** len(signs) if signs[0] == '+' else 0.9 ** len(signs):.4g}"
        inner = abbreviate(word or _group(text, found.start()))[1:-1]
        before, after = (inner, signs) if word else (f"({inner})", number or signs)
        return (
            f"{before}{after} is a weight of compel; write ({inner}:{weight.removeprefix('+')}), "
            f"or {before}\\{after} for the text itself"
        )
    return None


def _group(text: str, end: int) -> str:
    """Return the text of the bracket that closes at ``end``."""
    depth = 0
    for at in range(end, -1, -1):
        if at and text[at - 1] == "\\":
            continue
        depth += (text[at] == ")") - (text[at] == "(")
        if depth == 0:
            return text[at + 1 : end]
    return text[:end]
