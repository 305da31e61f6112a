"""Find the field of a column, a key or a flag: by its own name, by the user's options, or by an alias."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from latentfarm.edit_fields import EDIT_FIELDS
from latentfarm.errors import InputError
from latentfarm.job import Row
from latentfarm.submission.prompts.aliases import ALIASES, Alias, Dialect, normalize
from latentfarm.submission.prompts.off_values import is_off

#: fields that a row may set. ``columns`` is filled by ``ReadOptions.keep_columns`` only; ``partial_images`` is for a
#: submission that is watched: rows of files for OpenAI's API have it, and would pay for images without a reader
FIELDS = frozenset(Row.model_fields) - {"columns", "partial_images"}

_MAX_NAME_CHARACTERS = 60
#: names whose meaning is kept; a hostile file can have a million
_MAX_CACHED = 1_000
_NEAR = 0.8


def suggest_field(name: str, fields: Collection[str]) -> str:
    """Return the cure for an unknown field: the nearest of these fields, else all of them."""
    close = get_close_matches(name, fields, n=1) if len(name) < _MAX_NAME_CHARACTERS else []
    return f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(sorted(fields))}"


@dataclass(frozen=True)
class ReadOptions:
    """How a source is read.

    ``prompt_column``: the column, or JSON field, of the prompt [default: prompt].
    ``keep_columns``: copy unknown columns to the results: all of them, or those named. By default they are errors.
    ``format``: txt, jsonl, json, csv, tsv or parquet, each also with .gz [default: from the source's name].
    ``columns``: pairs of a field and the column that sets it.
    ``models``: for a file of an OpenAI batch that is answered: the names of its model. Then a line that is no request,
    or names another model, is an error, and ``response_format`` is kept if it is ``b64_json``.
    """

    prompt_column: str | None = None
    keep_columns: bool | tuple[str, ...] = False
    format: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field, column in self.mapped.items():
            if field not in FIELDS:
                cure = suggest_field(normalize(field), sorted(FIELDS))
                raise InputError(f"--column {field}={column}: {field!r} is not a field; {cure}")
            if not column:
                raise InputError(f"--column {field}=: the column has no name; write {field}=NAME")
        if len(set(self.mapped.values())) < len(self.mapped) or len(self.mapped) < len(self._pairs):
            raise InputError(f"--column: {self._repeated()} is mapped twice; map each field and column once")

    @property
    def mapped(self) -> dict[str, str]:
        """The columns that the user has named, by field."""
        return dict(self._pairs)

    @property
    def key(self) -> str:
        """A text that differs if rows may be read differently. Batches of earlier versions are found by it."""
        columns = f", columns={self.columns!r}" if self.columns else ""
        models = f", models={self.models!r}" if self.models else ""
        return (
            f"ReadOptions(prompt_column={self.prompt_column!r}, keep_columns={self.keep_columns!r}, "
            f"format={self.format!r}{columns}{models})"
        )

    @property
    def _pairs(self) -> tuple[tuple[str, str], ...]:
        return ((("prompt", self.prompt_column),) if self.prompt_column is not None else ()) + self.columns

    def _repeated(self) -> str:
        words = [*(field for field, _ in self._pairs), *(column for _, column in self._pairs)]
        return repr(next(word for word in words if words.count(word) > 1))


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a column's name means.

    Attributes:
        field: the field that it sets; empty if it is passed over or an alias sets other fields.
        alias: how its values are read; None for a field by its own name.
        note: what was mapped or passed over, after the name; empty for a field by its own name.
    """

    field: str
    alias: Alias | None = None
    note: str = ""

    @property
    def weak(self) -> bool:
        """Whether another name of the field takes precedence: a row has one prompt, and often more texts."""
        return self.field == "prompt" and bool(self.note) and (self.alias is None or self.alias.weak)


class ColumnNames:
    """Knows the meaning of each name in one source."""

    def __init__(self, options: ReadOptions) -> None:
        self._options = options
        self._mapped = {column: field for field, column in options.mapped.items()}
        # a field whose column the user has named has no other name
        own = {name: name for name in FIELDS if name not in options.mapped}
        self._field_of: Mapping[str, str] = MappingProxyType(own | self._mapped)
        self._cache: dict[tuple[str, Dialect], Meaning | None] = {}

    def meaning(self, name: str, dialect: Dialect = Dialect.LONG) -> Meaning | None:
        """Return the meaning of a name, or None for an unknown one."""
        key = name, dialect
        if key not in self._cache:
            if len(self._cache) == _MAX_CACHED:
                self._cache.clear()
            self._cache[key] = self._find(name, dialect)
        return self._cache[key]

    def keeps(self, name: str) -> bool:
        """Return whether an unknown column is copied to the results."""
        keep = self._options.keep_columns
        return keep if isinstance(keep, bool) else name in keep

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Return the names of a header that have no meaning."""
        names = list(names)
        prompt = self.prompt_name(names)
        return [name for name in names if self._is_unknown(name, prompt)]

    def prompt_name(self, names: Iterable[str]) -> str | None:
        """Return which of the names is the prompt's; a weak alias only if there is no other."""
        found = [(name, meaning) for name in names if (meaning := self.meaning(name)) and meaning.field == "prompt"]
        candidates = [*(name for name, meaning in found if not meaning.weak), *(name for name, _ in found)]
        return candidates[0] if candidates else None

    def cure(self, name: str) -> str:
        """Return the cure for an unknown column."""
        known = sorted(self._field_of)
        close = get_close_matches(name, known, n=1) if len(name) <= _MAX_NAME_CHARACTERS else []
        other = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(known)}."
        return f"is not known; {other} Or use --keep-columns to copy it to the results"

    def near_miss(self, name: str) -> str | None:
        """Return the field that a kept column's name resembles, or None."""
        if len(name) > _MAX_NAME_CHARACTERS:
            return None
        # the resemblance of short names is chance
        names = sorted([*self._field_of, *(alias for alias in ALIASES[Dialect.LONG] if len(alias) > 3)])
        close = get_close_matches(normalize(name), names, n=1, cutoff=_NEAR)
        if not close:
            return None
        meaning = self.meaning(close[0])
        return meaning.field or None if meaning else None

    def is_ignored(self, name: str, value: object) -> bool:
        """Return whether a kept column is an option that would change the image in another tool."""
        alias = ALIASES[Dialect.LONG].get(normalize(name))
        return alias is not None and bool(alias.cure) and not is_off(value)

    def _is_unknown(self, name: str, prompt: str | None) -> bool:
        meaning = self.meaning(name)
        return meaning is None or (meaning.field == "prompt" and name != prompt)

    def _find(self, name: str, dialect: Dialect) -> Meaning | None:
        keep = self._options.keep_columns
        kept = not isinstance(keep, bool) and name in keep and name not in self._mapped
        # data sets have columns such as image, which are no inputs if the user keeps them
        if kept and name in EDIT_FIELDS:
            return None
        if dialect is Dialect.LONG and name in self._field_of:
            return Meaning(self._field_of[name])
        if kept:
            return None
        plain = normalize(name)
        alias = ALIASES[dialect].get(plain)
        if alias is not None and alias.field not in self._options.mapped:
            return self._of_alias(alias, dialect)
        if plain in self._field_of and plain not in self._mapped:
            return Meaning(plain, note="" if plain == name else f"is read as {plain}")
        return None

    def _of_alias(self, alias: Alias, dialect: Dialect) -> Meaning | None:
        # with --keep-columns, a name without effect is data of the user, unless it is a flag
        kept = self._options.keep_columns and dialect is not Dialect.KOHYA
        return None if kept and not alias.field else Meaning(alias.field, alias, alias.note)
