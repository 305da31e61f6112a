"""Make the choices of a tree, from pseudo-random numbers that depend only on a key."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import perm

from latentfarm.submission.expansion.grammar import (
    COMBINATORIAL,
    CYCLICAL,
    MAX_DEPTH,
    RANDOM,
    Choice,
    Part,
    Template,
    Variable,
    Wildcard,
    Wrapping,
    parse,
)
from latentfarm.submission.expansion.weights import ChoiceError, Weights
from latentfarm.submission.expansion.wildcard_files import Lines
from latentfarm.submission.expansion.wildcards import Wildcards
from latentfarm.submission.prompts.notes import Notes
from latentfarm.submission.prompts.rows import abbreviate

_MAX_CHOICES = 1000
#: of trees; variables in variables could need any number of them
_MAX_STEPS = 10_000
#: of text, chosen or not
_MAX_CHARACTERS = 1_000_000

#: what ``%{...}`` replaces by the inner text: three dots or more, or an ellipsis of another script
_ELLIPSIS = re.compile("[\u1801\u2026\u22ee\u22ef\u22f0\u22f1\ufe19]+|\\.{3,}")


class SeededDraws:
    """Pseudo-random numbers that depend only on a key."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._drawn = 0

    def below(self, limit: int) -> int:
        """Return the next number, from 0 to ``limit - 1``."""
        self._drawn += 1
        if self._drawn > _MAX_CHOICES:
            raise ChoiceError(f"it needs over {_MAX_CHOICES:,} choices; write fewer")
        digest = hashlib.blake2b(f"{self._key}/{self._drawn}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest) * limit) >> 64


@dataclass(slots=True)
class _Scope:
    """What a tree's choices depend on, besides the draws.

    ``sampler``: of the choice around it. ``turn``: number of turns of that choice before. ``open``: the variables whose
    values it is in.
    """

    variables: Mapping[str, Template] = field(default_factory=dict)
    sampler: str = ""
    turn: int = 0
    depth: int = 0
    open: frozenset[str] = frozenset()

    def inner(self, levels: int = 1) -> _Scope:
        if self.depth + levels > MAX_DEPTH:
            raise ChoiceError(f"choices are nested over {MAX_DEPTH} deep; does a wildcard contain itself?")
        return _Scope(self.variables, self.sampler, self.turn, self.depth + levels, self.open)


class Chooser:
    """Makes the choices of one text.

    ``turn``: number of texts before it; cyclical and combinatorial choices depend on it.
    """

    def __init__(self, wildcards: Wildcards, draws: SeededDraws, notes: Notes, *, turn: int) -> None:
        self._wildcards = wildcards
        self._draws = draws
        self._notes = notes
        self._turn = turn
        #: what is left of ``turn`` for the next combinatorial choice: the first changes fastest
        self._combination = turn
        self._steps = 0
        self._characters = 0

    def choose(self, text: str) -> str:
        """Return the text with all choices made.

        Raises:
            ChoiceError: a choice is invalid.
            InputError: so is a wildcard.
        """
        template = parse(text)
        chosen = self._text(template, _Scope(turn=self._turn))
        if template.commented:
            self._notes.add("comments in dynamic prompts are left out")
        # the place of an assignment or a comment leaves white space
        return chosen.strip() if template.commented or template.assignments else chosen

    def _text(self, template: Template, scope: _Scope) -> str:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise ChoiceError(f"it needs over {_MAX_STEPS:,} steps; write fewer variables and choices")
        if template.assignments:
            scope = replace(scope, variables=self._assigned(template, scope))
        return "".join([part if isinstance(part, str) else self._part(part, scope) for part in template.parts])

    def _assigned(self, template: Template, scope: _Scope) -> Mapping[str, Template]:
        variables = dict(scope.variables)
        for made in template.assignments:
            if made.keep and made.name in scope.variables:
                continue
            value = made.value
            if made.immediate:
                inner = replace(scope.inner(), variables=variables)
                value = Template((self._text(value, inner),))
            variables[made.name] = value
        return variables

    def _part(self, part: Part, scope: _Scope) -> str:
        match part:
            case Choice():
                text = self._choice(part, scope)
            case Wildcard():
                text = self._wildcard(part, scope)
            case Variable():
                text = self._variable(part, scope)
            case Wrapping():
                text = self._wrapping(part, scope)
            case _:
                text = part
        self._characters += len(text)
        if self._characters > _MAX_CHARACTERS:
            raise ChoiceError(f"it expands to over {_MAX_CHARACTERS:,} characters; write fewer variables and choices")
        return text

    def _choice(self, choice: Choice, scope: _Scope) -> str:
        match choice.options:
            case (Template(parts=(Wildcard() as wildcard,)),) if choice.most != 1 and choice.weights.positive:
                # {2$$__x__} takes two different lines
                return self._lines(choice, wildcard, scope)
            case (_,) if choice.most == 1:
                self._notes.add("braces around one alternative are left out")
        places, inner = self._places(choice, choice.weights, scope)
        return choice.joiner.join([self._text(choice.options[place], inner) for place in places])

    def _lines(self, choice: Choice, wildcard: Wildcard, scope: _Scope) -> str:
        name = self._text(wildcard.name, scope)
        lines = self._found(name).distinct()
        choice = replace(choice, sampler=choice.sampler or wildcard.sampler)
        places, inner = self._places(choice, lines.weights, scope.inner())
        inner.variables = {**scope.variables, **dict(wildcard.variables)}
        return choice.joiner.join([self._line(name, lines.texts[place], inner) for place in places])

    def _wildcard(self, wildcard: Wildcard, scope: _Scope) -> str:
        name = self._text(wildcard.name, scope)
        lines = self._found(name)
        one = Choice((), lines.weights, wildcard.sampler)
        [place], inner = self._places(one, lines.weights, scope)
        if wildcard.variables:
            inner.variables = {**scope.variables, **dict(wildcard.variables)}
        return self._line(name, lines.texts[place], inner)

    def _found(self, name: str) -> Lines:
        lines = self._wildcards.lines(name)
        for note in lines.notes:
            self._notes.add(note)
        return lines

    def _line(self, name: str, line: str, scope: _Scope) -> str:
        try:
            template = parse(line)
        except ChoiceError as error:
            raise ChoiceError(f"wildcard __{name}__, line {abbreviate(line)}: {error}") from None
        text = self._text(template, scope)
        return text.strip() if template.commented or template.assignments else text

    def _variable(self, variable: Variable, scope: _Scope) -> str:
        name = variable.name
        value = scope.variables.get(name, variable.default)
        if value is None:
            raise ChoiceError(f"variable {name} has no value; write ${{{name}=...}} before, or ${{{name}:default}}")
        if name in scope.open:
            raise ChoiceError(f"variable {name} contains itself; use another name")
        return self._text(value, replace(scope.inner(), open=scope.open | {name}))

    def _wrapping(self, wrapping: Wrapping, scope: _Scope) -> str:
        inner = scope.inner()
        wrapper, text = self._text(wrapping.wrapper, inner), self._text(wrapping.inner, inner)
        mark = _ELLIPSIS.search(wrapper)
        if mark is None:
            self._notes.add("a wrapper of %{wrapper$$text} without ... is put before the text")
            return wrapper + text
        return wrapper[: mark.start()] + text + wrapper[mark.end() :]

    def _places(self, choice: Choice, weights: Weights, scope: _Scope) -> tuple[Iterator[int], _Scope]:
        """Return the places of the options to take, and the scope of their choices.

        Places are drawn one by one: the choices inside one are drawn before the next is.
        """
        inner, possible = scope.inner(), weights.positive
        if not possible:
            raise ChoiceError("1 of 0 alternatives cannot be chosen; write a weight above 0")
        least, most = min(choice.least, possible), possible if choice.most is None else min(choice.most, possible)
        if max(choice.least, choice.most or 0) > possible:
            self._notes.add("a choice of more alternatives than it has takes all of them")
        if most > _MAX_CHOICES:
            raise ChoiceError(f"it needs over {_MAX_CHOICES:,} choices; write fewer")
        sampler = choice.sampler or scope.sampler
        if sampler == COMBINATORIAL and scope.sampler in {RANDOM, CYCLICAL}:
            # a choice around it that does not take every combination decides
            sampler = scope.sampler
        if sampler in {"", RANDOM}:
            count = least + (self._draws.below(most - least + 1) if most > least else 0)
            inner.sampler = sampler
            return self._drawn(weights, count), inner
        if weights.vary:
            self._notes.add("weights have no effect in {@...} and {!...}")
        ways = _count_ways(possible, least, most)
        if sampler == CYCLICAL:
            turn, way = divmod(scope.turn, ways)
        else:
            self._notes.add("{!...} takes its combinations in turn, one for each row and place in a sweep")
            turn, (self._combination, way) = scope.turn, divmod(self._combination, ways)
        places = weights.places()
        chosen = (places[place] for place in _arrangement(way, possible, least))
        return chosen, replace(inner, sampler=sampler, turn=turn)

    def _drawn(self, weights: Weights, count: int) -> Iterator[int]:
        #: the weights of what was taken: (sum before it, weight), in order
        taken: list[tuple[int, int]] = []
        left = weights.sums[-1]
        for _ in range(count):
            drawn = self._draws.below(left)
            for start, weight in taken:
                drawn += weight if drawn >= start else 0
            place = bisect_right(weights.sums, drawn)
            start = weights.start(place)
            weight = weights.sums[place] - start
            insort(taken, (start, weight))
            left -= weight
            yield place


def _count_ways(possible: int, least: int, most: int) -> int:
    """Return in how many ways ``least`` to ``most`` can be taken in order."""
    ways, total = 1, 0
    for taken in range(most + 1):
        total += ways if taken >= least else 0
        ways *= possible - taken
    return total


def _arrangement(way: int, possible: int, least: int) -> list[int]:
    """Return the places of a way: few before many, then in the order of the places."""
    count = least
    while way >= (ways := perm(possible, count)):
        way -= ways
        count += 1
    places: list[int] = []
    for taken in range(count):
        ways //= possible - taken
        place, way = divmod(way, ways)
        # places are numbered without those that are taken
        for other in sorted(places):
            place += place >= other
        places.append(place)
    return places
