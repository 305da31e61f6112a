"""Templates in the grammar of the PyPI library ``dynamicprompts`` 0.31: what each gives, or its error."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from dynamicprompts.generators import CombinatorialPromptGenerator
from dynamicprompts.wildcards import WildcardManager

from latentfarm.errors import InputError
from latentfarm.job import Row
from latentfarm.submission.expansion import Expansion, has_choices

pytestmark = [
    pytest.mark.unit,
    # the library calls names that pyparsing deprecates
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:dynamicprompts.*"),
]

TXT = {
    "hues/cold.txt": "# cold\nteal\n\nnavy\n",
    "hues/warm.txt": "ochre\nrust\n",
    "beast.txt": "a {small|big} newt\n__hues/warm__ fox  # not the quick one\n",
    "scene.txt": "${time?=!{dawn|dusk}} a ${what:barn} at ${time}\n",
    "frame.txt": "etching, ..., hatched\noil on … , framed\n",
    "one.txt": "only\n",
}
YAML = """\
garments:
  - kilt
  - 3::cape
  - {weight: 2, text: clogs}
  - {weight: 1, content: poncho}
makers:
  first: [Ada, Bo]
  second:
    third: [Cy]
  lone: Di
  1234: 5678
  count: 12345
  empty: ""
"""
JSON = {"tart": ["plum", "2::quince"], "deep": {"salt": ["olive"]}}


@pytest.fixture(scope="module")
def wildcards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wildcards")
    for name, text in TXT.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "pantry.yaml").write_text(YAML)
    (folder / "tastes").mkdir()
    (folder / "tastes" / "pantry.json").write_text(json.dumps(JSON))
    (folder / "tastes" / "solids.yaml").write_text("- cube\n- cone\n")
    (folder / "invalid.txt.bak").write_text("{")
    return folder


def outcomes(template: str, wildcards: Path, rows: int = 120) -> set[str]:
    expansion = Expansion.parse(dynamic=True, wildcards=wildcards)
    return {row.prompt for number in range(rows) for row in expansion.rows(Row(prompt=template), number)}


#: templates whose outcomes the library lists; white space apart, ours are the same
SHARED = [
    "plain text, with (weights:1.2), [alternating|words] and [edits:here:0.3]",
    "an open ended bra}ce",
    "ärger und {Öl|Wasser}",
    "{teal|navy|rust} boat",
    "{|tall } ship",
    "{one}",
    "{}x",
    "{3::oak|ash|0.5::elm} tree",
    "{ .5::oak | 2.::ash }",
    "{1::oak|{2::ash|elm}}",
    "{oak {tall|short}|ash}",
    "{{oak|ash}|{elm|yew}}",
    "{2$$oak|ash|elm}",
    "{2$$ or $$oak|ash|elm}",
    "{2$$|$$oak|ash|elm}",
    "{2$$ $$oak|ash|elm}",
    "{1-2$$oak|ash|elm}",
    "{-2$$oak|ash|elm}",
    "{2-$$oak|ash|elm}",
    "{0-1$$oak|ash} wood",
    "{9$$oak|ash}",
    "{1-9$$+$$oak|ash}",
    "{ 2$$ / $$ oak | ash }",
    "{2$$oak|{ash|elm}|yew}",
    "{oak|ash}{1|2} {2$$x|y}",
    "({0$$a|b} {1$$c|d|e}),\nend",
    "__hues/cold__ sea",
    "__hues/*__",
    "__hues/c*__",
    "__**/warm__",
    "__h*/?arm__",
    "__hues/[cw]*__",
    "__warm__",
    "__garments__",
    "__makers/**__",
    "__makers/second/third__",
    "__lone__",
    "__tastes/tart__",
    "__tastes/deep/salt__",
    "__tastes/solids__",
    "{2$$__hues/cold__}",
    "{2$$ and $$__hues/*__}",
    "{1-2$$__hues/cold__}",
    "{5$$__tastes/solids__}",
    "{__hues/cold__|__hues/warm__|grey}",
    "{2$$__hues/cold__|grey}",
    "__beast__",
    "__hues\\cold__",
    "__hues/${heat:cold}__",
    "${heat=warm}__hues/${heat}__",
    "${c=red} ${c} on ${c}",
    "${c={red|blue}}${c} on ${c}",
    "${ c = red } a ${ c }.",
    "${c:red} hat",
    "${c:{red|blue}} hat",
    "${c=red}${c:blue} hat",
    "${a={x|y}}${b=${a}${a}}${b}",
    "${long-name_2=v} ${long-name_2}",
    "${c?=red} ${c}",
    "${a=oak}{${a}|ash}",
    "__scene(time=noon)__",
    "__scene(time=noon, what=mill)__",
    "__scene(time=noon,what={mill|inn})__",
    "${what=mill}${time=noon} __scene__",
    "${time={noon|night}} __scene(what=mill)__",
    "%{a print of ..., signed$$a {cat|cow}}",
    "%{a print of $$a cat}",
    "%{ … in oil$$a {cat|cow}}",
    "%{{neat|odd} ......$$cat}",
    "%{__frame__$$a {cat|cow}}",
    "%{… by {A|B}$$${c:cat}}",
    "a {cat|cow} # which of them",
    "# what it shows\na {cat|cow} ## not a calf",
    "{\n  # likely\n  0.6::cat\n  |\n  # less so\n  0.4::cow\n}",
    "{cat\n| cow\n# | calf\n}",
    "{cat|cow} // which of them\n at night",
    "{cat|cow} /* which\n of them */ at night",
    "http://a.b/{cat|cow}",
    "{~oak|ash}",
    "{!oak|ash} {!big|small}",
    "{!2$$oak|ash|elm}",
    "__!hues/cold__",
]


@pytest.mark.parametrize("template", SHARED)
def test_outcomes_are_those_of_the_library(template: str, wildcards: Path) -> None:
    logging.disable(logging.ERROR)
    generator = CombinatorialPromptGenerator(WildcardManager(wildcards))
    listed = {"".join(str(prompt).split()) for prompt in generator.generate(template, 100)}
    logging.disable(logging.NOTSET)
    assert {
        "".join(prompt.split()) for prompt in outcomes(template, wildcards, rows=max(60, 12 * len(listed)))
    } == listed


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # the library takes the first value only
        ("${c=!{red|blue}}${c} on ${c}", {"red on red", "blue on blue"}),
        ("${ c =! {red|blue} }${c} on ${c}", {"red on red", "blue on blue"}),
        ("${c=!__hues/cold__}${c} on ${c}", {"teal on teal", "navy on navy"}),
        ("${c?=!{red|blue}}${c}, ${c}", {"red, red", "blue, blue"}),
        ("__scene__", {"a barn at dawn", "a barn at dusk"}),
        ("${time=noon}__scene__", {"a barn at noon"}),
        ("__hues/{cold|warm}__", {"teal", "navy", "ochre", "rust"}),
        # the library lists no finite set
        ("{~oak|ash} {~oak|ash}", {"oak oak", "oak ash", "ash oak", "ash ash"}),
        ("__~hues/cold__", {"teal", "navy"}),
        # embeddings are kept together
        ("{@e1|e2} and {@e3|e4}", {"e1 and e3", "e2 and e4"}),
        ("__@hues/cold__ with {@a|b}", {"teal with a", "navy with b"}),
        ("{@0.2::oak|0.4::ash}", {"oak", "ash"}),
        ("{@oak|{ash|elm}}", {"oak", "ash", "elm"}),
        ("{@2$$oak|ash}", {"oak, ash", "ash, oak"}),
        # what the library refuses or changes, and is text
        ("50% off, $5 {off|less}", {"50% off, $5 off", "50% off, $5 less"}),
        ("{costs $5|is 100% free}", {"costs $5", "is 100% free"}),
        (r"\{a\|b\} \__c\__ \# 1 \${x}", {"{a|b} __c__ # 1 $x"}),
        ("fill in ______ here, snake_case, __", {"fill in ______ here, snake_case, __"}),
        (r"{2$$\|$$oak|ash}", {"oak|ash", "ash|oak"}),
        # the library takes the closing bracket of a weight for the end of the values
        ("__scene(time=noon, what=(mill:1.2))__", {"a (mill:1.2) at noon"}),
        ("${c=red}${d=!${c}}${d}", {"red"}),
    ],
)
def test_outcomes_beyond_the_librarys_list(template: str, expected: set[str], wildcards: Path) -> None:
    assert outcomes(template, wildcards) == expected


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{oak|ash", r"a { is not closed; write }, or \{ for the brace itself"),
        ("{3-1$$oak|ash|elm}", "3-1$$ is reversed; write 1-3$$"),
        ("{$$oak|ash}", "$$ has no number before it; write 2$$"),
        ("{-$$oak|ash}", "$$ has no number before it"),
        ("{two$$oak|ash}", "$$ has no number before it"),
        ("{1 - 2 $$oak|ash}", "$$ has no number before it"),
        ("{2$$ $ $$oak|ash}", "$$ has no number before it"),
        ("{-1::oak|ash}", "weight -1:: is invalid; write 0:: to 999999::"),
        ("{0::oak}", "1 of 0 alternatives cannot be chosen; write a weight above 0"),
        ("${tree}", "variable tree has no value; write ${tree=...} before, or ${tree:default}"),
        ("${tree=oak|ash} ${tree}", r"| is outside a choice; write {a|b}"),
        ("${tree", "${ begins a variable; write ${name}"),
        ("${2|3}", r"or \$ for the dollar sign"),
        ("${tree=oak}${tree=ash}", "variable tree is assigned twice; use two names"),
        ("${tree=${tree}}${tree}", "variable tree contains itself"),
        ("{${tree=oak}|ash}", "variable tree is assigned inside braces; assign it outside"),
        ("__no/such__", r"wildcard __no/such__ is not in"),
        ("__no*such__", "wildcard __no*such__ is not in"),
        ("__ärger__", "wildcard __ärger__ is not in"),
        ("__beats__", "did you mean __beast__?"),
        ("__hues/../beast__", "write a name without '..'"),
        ("__scene(noon)__", "write __name(a=1)__"),
        ("__scene(time=noon__", "the values of a wildcard are not closed"),
        ("%{a print of ...}", "%{ wraps a text; write %{before ... after$$text}"),
        ("%{a ...$$b", "%{ wraps a text"),
        ("C# {tutor|book}", r"# begins a comment; write \# for the character itself"),
        ("a #1 {mug|cup}", r"# begins a comment; write \# for the character itself"),
        ("# only this", r"there is only a comment; write \# for the character itself"),
        ("/* open {a|b}", "a /* is not closed; write */"),
        ("{% for c in cs %}{{ c }}{% endfor %}", r"{% is Jinja, which is not supported"),
        ("a {{ choice('red', 'blue') }} rose", r"{{ choice( is Jinja, which is not supported; write \{ for the"),
        ("a {# note #} rose", "a { is not closed"),
    ],
)
def test_what_is_not_supported_is_an_error(template: str, problem: str, wildcards: Path) -> None:
    with pytest.raises(InputError) as caught:
        outcomes(template, wildcards)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{9$$oak|ash}", "a choice of more alternatives than it has takes all of them"),
        ("__warm__", "wildcard __warm__ is read as __hues/warm__"),
        ("{!oak|ash}", "{!...} takes its combinations in turn, one for each row and place in a sweep"),
        ("{@2::oak|ash}", "weights have no effect in {@...} and {!...}"),
        ("%{a print of $$cats}", "a wrapper of %{wrapper$$text} without ... is put before the text"),
        ("{oak} tree", "braces around one alternative are left out"),
        ("{oak|ash} # tree", "comments in dynamic prompts are left out"),
    ],
)
def test_what_is_chosen_for_the_user_is_noted(template: str, sentence: str, wildcards: Path) -> None:
    expansion = Expansion.parse(dynamic=True, wildcards=wildcards)
    assert expansion.dynamic is not None
    list(expansion.rows(Row(prompt=template), 0))
    assert dict(expansion.dynamic.notes) == {sentence: 1}


def test_cyclical_and_combinatorial_choices_go_on_from_row_to_row_of_a_sweep() -> None:
    expansion = Expansion.parse(["seed=1..3"], dynamic=True)
    row = Row(prompt="{@a|b} {!c|d} {!e|f}")
    made = [found.prompt for number in range(2) for found in expansion.rows(row, number)]
    assert made == ["a c e", "b d e", "a c f", "b d f", "a c e", "b d e"]


@pytest.mark.parametrize(
    "text",
    ["{a|b}", "a {2$$x|y}", "__x__", "a __b/c*__ d", "${c=red}", "${c}", "%{a ...$$b}", "{|x}", "{a|{b|c}}"],
)
def test_a_text_with_choices_is_recognized(text: str) -> None:
    assert has_choices(text)


@pytest.mark.parametrize(
    "text",
    ["a cat", r"\{a|b\}", "{a}", "a | b", "snake_case", "a__b", "___", "____ and ____", "$5", "[a|b]", "50% off", ""],
)
def test_a_text_without_choices_is_recognized(text: str) -> None:
    assert not has_choices(text)
