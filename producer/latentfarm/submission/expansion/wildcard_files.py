"""Read a file of wildcards: txt has one name, yaml and json have a name for each list in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pydantic_core import from_json

from latentfarm.errors import InputError
from latentfarm.submission.expansion.weights import ChoiceError, Weights, parse_weight
from latentfarm.submission.prompts.rows import abbreviate

#: endings of files with several names
TREE_ENDINGS = (".yaml", ".yml", ".json")
_MAX_DEPTH = 20
#: values of a yaml file: with aliases, a short file could have any number of them
_MAX_VALUES = 500_000


@dataclass(frozen=True, slots=True)
class Lines:
    """The texts of a wildcard, their weights, and what was chosen or passed over when it was read."""

    texts: Sequence[str]
    weights: Weights
    notes: tuple[str, ...] = ()

    def distinct(self) -> Lines:
        """Return these lines without repetitions; the first weight counts."""
        places = {text: place for place, text in reversed(list(enumerate(self.texts)))}
        if len(places) == len(self.texts):
            return self
        kept = sorted(places.values())
        sums = [self.weights.sums[place] - self.weights.start(place) for place in kept]
        return Lines([self.texts[place] for place in kept], Weights.of(sums), self.notes)


def decode(place: str, content: bytes) -> str:
    """Return a file's text.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None


def read_txt(place: str, content: bytes) -> Lines:
    """Return the lines of a txt file, without blank lines and lines that begin with ``#``.

    Raises:
        InputError: the file is not UTF-8 or is empty, or a weight is invalid.
    """
    stripped = (raw.strip() for raw in decode(place, content).split("\n"))
    lines = [line for line in stripped if line and not line.startswith("#")]
    if not lines:
        raise InputError(f"{place} is empty; write one text per line")
    return _lines(place, lines)


def read_tree(place: str, path: PurePosixPath, content: bytes) -> dict[str, Lines]:
    """Return the lists of a yaml or json file by name: ``{a: {b: [...]}}`` has ``a/b``.

    A file with a list has its own name. Names are in the file's folder. A text is a list of one.

    Raises:
        InputError: the file is invalid.
    """
    text = decode(place, content)
    tree = _parse_json(place, text) if path.suffix.lower() == ".json" else _parse_yaml(place, text)
    folder = "".join(f"{part}/" for part in path.parent.parts)
    found: dict[str, Lines] = {}
    passed: list[str] = []
    named = tree if isinstance(tree, Mapping) else {path.stem: tree}
    for name, value in _named(named, (), passed):
        texts, weights = [], []
        for item in value:
            if (entry := _entry(place, name, item)) is None:
                passed.append(name)
            elif entry[0]:
                texts.append(entry[0])
                weights.append(entry[1])
        if texts:
            found[folder + name.strip("/")] = Lines(texts, Weights.of(weights))
    if passed:
        note = f"{place}: {len(passed)} values that are no texts are passed over, such as in {abbreviate(passed[0])}"
        found = {name: Lines(lines.texts, lines.weights, (note,)) for name, lines in found.items()}
    return found


def _lines(place: str, lines: list[str]) -> Lines:
    if not any("::" in line for line in lines):
        return Lines(lines, Weights.equal(len(lines)))
    entries = [_weighted(place, line) for line in lines]
    return Lines([text for text, _ in entries], Weights.of([weight for _, weight in entries]))


def _weighted(place: str, line: str) -> tuple[str, int]:
    try:
        weight, end = parse_weight(line)
    except ChoiceError as error:
        raise InputError(f"{place}, line {abbreviate(line)}: {error}") from None
    return (line[end:].strip() if end else line), weight


def _named(tree: Mapping[Any, Any], above: tuple[str, ...], passed: list[str]) -> Iterator[tuple[str, Sequence[Any]]]:
    for key, value in tree.items():
        name = "/".join((*above, str(key)))
        if not isinstance(key, str) or isinstance(key, _Scalar):
            passed.append(name)
        elif isinstance(value, Mapping):
            if len(above) == _MAX_DEPTH:
                passed.append(name)
            else:
                yield from _named(value, (*above, key), passed)
        elif isinstance(value, list):
            yield name, value
        elif isinstance(value, str) and not isinstance(value, _Scalar):
            yield name, [value]
        elif value is not None:
            passed.append(name)


def _entry(place: str, name: str, item: Any) -> tuple[str, int] | None:
    """Return text and weight of an item of a list; None: it has none."""
    if item is None:
        return "", 0
    if isinstance(item, str):
        return _weighted(f"{place}, {name}", item)
    if isinstance(item, int | float):
        return str(item).lower() if isinstance(item, bool) else str(item), Weights.equal(1).sums[0]
    if isinstance(item, Mapping):
        text, weight = item.get("text") or item.get("content"), item.get("weight", 1)
        if isinstance(text, str) and isinstance(weight, str | int | float):
            # the same numbers as before "::"
            rest, value = _weighted(f"{place}, {name}", f"{weight}::")
            if rest:
                raise InputError(f"{place}, {name}: weight {abbreviate(weight)} is invalid; write 0 to 999999")
            return text, value
    return None


def _parse_json(place: str, text: str) -> Any:
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise InputError(f"{place} is not JSON: {error}; correct or remove it") from None


class _Scalar(str):
    """A YAML value that is no text, such as a number, as it is written."""

    __slots__ = ()


def _parse_yaml(place: str, text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise InputError(f"{place} needs PyYAML; pip install 'latentfarm[yaml]', or write txt or json") from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        # nodes, not values: no tag makes an object, and an alias is no copy yet
        node = yaml.compose(text, Loader=loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise InputError(f"{place}{where} is not YAML: {problem}; correct or remove it") from None
    return _YamlTree(place).value(node, 0)


class _YamlTree:
    """Turns YAML nodes into values; counts them, because aliases may repeat them."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._values = 0

    def value(self, node: Any, depth: int) -> Any:
        self._values += 1
        if self._values > _MAX_VALUES or depth > _MAX_DEPTH:
            raise InputError(
                f"{self._place} has over {_MAX_VALUES:,} values or {_MAX_DEPTH} levels; write it without aliases"
            )
        kind = "" if node is None else node.id
        if kind == "mapping":
            return {self._key(key): self.value(value, depth + 1) for key, value in node.value}
        if kind == "sequence":
            return [self.value(item, depth + 1) for item in node.value]
        if node is None or node.tag == "tag:yaml.org,2002:null":
            return None
        return str(node.value) if node.tag == "tag:yaml.org,2002:str" else _Scalar(node.value)

    def _key(self, node: Any) -> str:
        if node.id != "scalar":
            raise InputError(f"{self._place} line {node.start_mark.line + 1} has a name that is no text; write a text")
        if node.tag == "tag:yaml.org,2002:merge":
            raise InputError(f"{self._place} line {node.start_mark.line + 1} merges with <<; write the lists out")
        return str(node.value) if node.tag == "tag:yaml.org,2002:str" else _Scalar(node.value)
