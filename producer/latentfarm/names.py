"""The names of batches, models and jobs, which become parts of keys, queues and file names; of a column; of sources."""

from __future__ import annotations

import re
import unicodedata

from latentfarm.errors import InputError

#: the column of a row whose client wants the bytes of its images, and its value: OpenAI's names
RESPONSE_FORMAT, BYTES = "response_format", "b64_json"

#: before the source of a mask that is transparent where the image is painted again, as OpenAI's masks are
TRANSPARENT = "transparent:"

DEFAULT_MODEL = "mini"
#: the models in the package, which need no source; ``latentfarm_worker.mini`` has their folders
BUNDLED_MODELS = (DEFAULT_MODEL, "mini-flow")

_BATCH_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_MODEL_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def check_batch_name(name: str) -> str:
    """Return ``name``.

    Raises:
        InputError: the name cannot be part of an object key.
    """
    if not _BATCH_NAME.fullmatch(name):
        raise InputError(
            f"batch name {_quoted(name)}: write 1 to 64 of a-z, 0-9, '-' and '_', beginning with a letter or digit"
        )
    return name


def check_model_alias(alias: str) -> str:
    """Return ``alias``.

    Raises:
        InputError: the alias cannot be part of a queue's name.
    """
    if not _MODEL_ALIAS.fullmatch(alias):
        raise InputError(
            f"model alias {_quoted(alias)}: write 1 to 64 of a-z, 0-9, '-', '_' and '.', "
            "beginning with a letter or digit"
        )
    return alias


def _quoted(name: str) -> str:
    """Return the name in quotes, with the first character that only looks like one of ASCII, or cannot be seen."""
    strange = next((character for character in name if not character.isascii()), None)
    if strange is None:
        return repr(name)
    return f"{name!r}, which contains {strange!r} ({unicodedata.name(strange, f'U+{ord(strange):04X}')})"


def parse_job_name(name: str) -> tuple[str, int]:
    """Split ``<batch>/<index>``.

    Raises:
        InputError: the name has another form.
    """
    batch, slash, index = name.partition("/")
    if not slash or not index.isascii() or not index.isdecimal():
        raise InputError(f"job {name!r}: write BATCH/INDEX, such as {batch or 'cats'}/17")
    return check_batch_name(batch), int(index)
