r"""Comments in dynamic prompts: ``# comment``, ``// comment`` and ``/* comment */``.

``#`` begins a comment at the start of a line, or between white space. Elsewhere it is an error, because the library
``dynamicprompts`` would cut a prompt such as ``a #1 mug`` there; ``\#`` is the character itself. ``//`` and ``/*``
begin one at the start of a line, and after a choice and white space; elsewhere they are text, as in ``http://``.
"""

from __future__ import annotations

import re

from latentfarm.submission.expansion.weights import ChoiceError

_MARK = re.compile(r"\\.|#+|//|/\*", re.DOTALL)
_LINE = re.compile(r"[^\n]*")
_SYNTAX = frozenset("{}|_")


def strip_comments(text: str) -> str:
    """Return a text without comments. A line end after a comment is kept.

    Raises:
        ChoiceError: ``#`` is neither a comment nor escaped, or a comment is not closed.
    """
    if "#" not in text and "//" not in text and "/*" not in text:
        return text
    kept: list[str] = []
    at = end = 0
    while mark := _MARK.search(text, at):
        at = mark.end()
        if mark[0][0] == "#":
            starts = _is_hash_comment(text, mark.start(), mark.end())
        else:
            starts = mark[0][0] == "/" and _is_slash_comment(text, mark.start(), end)
        if starts:
            kept.append(text[end : mark.start()])
            at = end = _end(text, mark)
    kept.append(text[end:])
    stripped = "".join(kept)
    if not stripped.strip():
        raise ChoiceError(r"there is only a comment; write \# for the character itself")
    return stripped


def _end(text: str, mark: re.Match[str]) -> int:
    if mark[0] != "/*":
        line = _LINE.match(text, mark.end())
        return line.end() if line else len(text)
    closed = text.find("*/", mark.end())
    if closed < 0:
        raise ChoiceError(r"a /* is not closed; write */, or \/* for the text itself")
    return closed + 2


def _is_hash_comment(text: str, at: int, end: int) -> bool:
    before, after = text[max(at - 1, 0) : at], text[end : end + 1]
    if _begins_line(text, at) or ((not before or before.isspace() or before in _SYNTAX) and not after.strip()):
        return True
    raise ChoiceError(r"# begins a comment; write \# for the character itself, or # and a space for a comment")


def _is_slash_comment(text: str, at: int, end: int) -> bool:
    if _begins_line(text, at):
        return True
    before = at
    while before > end and text[before - 1].isspace():
        before -= 1
    after_syntax = before == end or text[before - 1] in _SYNTAX
    return before < at and after_syntax


def _begins_line(text: str, at: int) -> bool:
    while at and text[at - 1] != "\n":
        at -= 1
        if not text[at].isspace():
            return False
    return True
