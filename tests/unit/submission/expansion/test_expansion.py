from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from itertools import product
from math import prod
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from latentfarm.errors import InputError
from latentfarm.job import Row
from latentfarm.submission.expansion import Expansion

pytestmark = pytest.mark.unit

CAT = Row(prompt="a cat", id="x", seed=9, columns={"score": 1})


def decided(prompt: str, *, number: int = 0, seed: int = 0, wildcards: Path | None = None) -> str:
    expansion = Expansion.parse(dynamic=True, seed=seed, wildcards=wildcards)
    [row] = expansion.rows(Row(prompt=prompt), number)
    return row.prompt


@pytest.fixture
def wildcards(tmp_path: Path) -> Path:
    (tmp_path / "wildcards" / "animals").mkdir(parents=True)
    (tmp_path / "wildcards" / "animals" / "cats.txt").write_text("# cats\n\n  tabby\nsiamese  \n")
    (tmp_path / "wildcards" / "colour.txt").write_text("{light|dark} red\n__animals/cats__ grey\n")
    (tmp_path / "wildcards" / "loop.txt").write_text("__loop__\n")
    (tmp_path / "wildcards" / "bomb.txt").write_text("__bomb2__ " * 20 + "\n")
    (tmp_path / "wildcards" / "bomb2.txt").write_text("{a|b} " * 60 + "\n")
    (tmp_path / "wildcards" / "empty.txt").write_text("\n# nothing\n")
    (tmp_path / "wildcards" / "long.txt").write_text("a" * 3000 + "\n")
    (tmp_path / "wildcards" / "latin.txt").write_bytes(b"caf\xe9\n")
    return tmp_path / "wildcards"


def test_a_plain_expansion_leaves_every_row_unchanged() -> None:
    plain = Expansion.parse()
    assert (plain.is_plain, plain.key, plain.factor) == (True, "", 1)
    [row] = plain.rows(CAT, 0)
    assert row is CAT


def test_the_last_sweep_varies_fastest_and_replaces_the_rows_own_value() -> None:
    expansion = Expansion.parse(["guidance_scale=5,7.5,10", "seed=1..2"])
    assert expansion.factor == 6
    made = list(expansion.rows(CAT, 0))
    assert [(row.guidance_scale, row.seed) for row in made] == list(product([5.0, 7.5, 10.0], [1, 2]))
    assert {(row.prompt, row.id, str(row.columns)) for row in made} == {("a cat", "x", "{'score': 1}")}


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("seed=1..10..3", [1, 4, 7, 10]),
        ("seed=1..9..3,100,5..6", [1, 4, 7, 100, 5, 6]),
        ("seed= 3 , 4", [3, 4]),
        ("width=512..640..64", [512, 576, 640]),
        ("scheduler=euler,dpm++2m-karras", ["euler", "dpm++2m-karras"]),
        ('negative_prompt=,blurry,"dark, grim",1..4', ["", "blurry", "dark, grim", "1..4"]),
        ("save_intermediates=true,false", [True, False]),
        ("prompt_syntax=plain,a1111", ["plain", "a1111"]),
        ("clip_skip=0..2", [0, 1, 2]),
        ('scheduler_options={"solver_order": 2},{}', [{"solver_order": 2}, {}]),
        ("num_images_per_prompt=1,2", [1, 2]),
    ],
)
def test_a_sweep_lists_values_and_ranges(option: str, values: list[object]) -> None:
    made = list(Expansion.parse([option]).rows(CAT, 0))
    assert [getattr(row, option.partition("=")[0]) for row in made] == values
    for row in made:
        assert Row.model_validate(row.model_dump()) == row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["seed"], "--sweep 'seed' has no values; write FIELD=VALUES, such as seed=1..4"),
        (["seed="], "--sweep 'seed=': there are no values; write FIELD=VALUES"),
        (["seed=1,,2"], "--sweep 'seed=1,,2': seed has an empty value; remove the comma, or write a value"),
        (["steps=10,20"], "--sweep 'steps=10,20': field 'steps' cannot be swept; did you mean 'num_inference_steps'?"),
        (["sead=1"], "--sweep 'sead=1': field 'sead' cannot be swept; did you mean 'seed'?"),
        (["prompt=a,b"], "--sweep 'prompt=a,b': field 'prompt' cannot be swept; "),
        (["id=a"], "--sweep 'id=a': field 'id' cannot be swept; write one of clip_skip, control_guidance_end"),
        (["seed=1,x"], "--sweep 'seed=1,x': seed 'x' is invalid; write a valid integer"),
        (["seed=-1..4"], "--sweep 'seed=-1..4': seed -1 is invalid; write greater than or equal to 0"),
        (["seed=4..1"], "--sweep 'seed=4..1': 4..1 is reversed; write 1..4"),
        (["seed=1..4..0"], "--sweep 'seed=1..4..0': the step of 1..4..0 is invalid; write 1 or more"),
        (["seed=1..1.5"], "--sweep 'seed=1..1.5': seed '1..1.5' is invalid"),
        (["width=512..640..50"], "--sweep 'width=512..640..50': width 612 is not a multiple of 8; write 608 or 616"),
        (["guidance_scale=5,nan"], "--sweep 'guidance_scale=5,nan': guidance_scale 'nan' is invalid; "),
        (["scheduler=eulr"], "--sweep 'scheduler=eulr': scheduler 'eulr' is not known; did you mean 'euler'?"),
        (["scheduler_options=1,"], "--sweep 'scheduler_options=1,': '1,' is not JSON; write objects such as"),
        (["scheduler_options=1"], "--sweep 'scheduler_options=1': scheduler_options 1 is invalid; write a valid dict"),
        (['negative_prompt="a'], "--sweep 'negative_prompt=\"a': the quotes in '\"a' are not closed; write \"a, b\""),
        (["seed=1", "seed=2"], "--sweep 'seed=2': seed is swept twice; use one --sweep"),
        (
            ["seed=1..10000001"],
            "--sweep 'seed=1..10000001': a row would expand to 10,000,001 rows; the limit is 10,000,000",
        ),
        (
            ["seed=0..9223372036854775807"],
            "--sweep 'seed=0..9223372036854775807': a row would expand to 9,223,372,036,854,",
        ),
        (
            ["seed=1..5000000", "save_intermediates=true,false,true"],
            "--sweep 'save_intermediates=true,false,true': a row would expand to 15,000,000 rows;",
        ),
    ],
)
def test_an_invalid_sweep_is_reported_with_option_value_and_cure(options: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Expansion.parse(options)
    assert str(caught.value).startswith(message)


def test_a_product_of_ten_million_is_never_in_memory() -> None:
    expansion = Expansion.parse(["seed=1..5000000", "save_intermediates=true,false"])
    tracemalloc.start()
    rows = expansion.rows(CAT, 0)
    assert [(next(rows).seed, next(rows).seed) for _ in range(1000)] == [(seed, seed) for seed in range(1, 1001)]
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert expansion.factor == 10_000_000


def test_the_key_changes_with_all_that_changes_the_rows_and_with_nothing_else(wildcards: Path) -> None:
    options: list[tuple[list[str], int, Path | None, bool]] = [
        ([], 0, None, False),
        ([], 0, None, True),
        ([], 1, None, True),
        ([], 0, wildcards, True),
        (["seed=1..3"], 0, None, False),
        (["seed=1..4"], 0, None, False),
        (["seed=1,4"], 0, None, False),
        (["seed=1..3", "save_intermediates=true,false"], 0, None, False),
        (["save_intermediates=true,false", "seed=1..3"], 0, None, False),
    ]

    def keys() -> list[str]:
        return [Expansion.parse(s, seed=n, wildcards=w, dynamic=d).key for s, n, w, d in options]

    before = keys()
    assert len(set(before)) == len(before)
    assert keys() == before
    assert Expansion.parse(["guidance_scale=5"]).key == Expansion.parse(["guidance_scale = 5.0 "]).key
    (wildcards / "colour.txt").write_text("blue\n")
    assert [old == new for old, new in zip(before, keys(), strict=True)].count(False) == 1


@given(
    st.dictionaries(
        st.sampled_from(["seed", "num_inference_steps", "num_images_per_prompt"]),
        st.lists(st.integers(1, 500), min_size=1, max_size=5),
        max_size=3,
    )
)
def test_the_rows_are_the_product_in_order(sweeps: dict[str, list[int]]) -> None:
    expansion = Expansion.parse([f"{field}={','.join(map(str, values))}" for field, values in sweeps.items()])
    made = [tuple(getattr(row, field) for field in sweeps) for row in expansion.rows(CAT, 0)]
    assert made == list(product(*sweeps.values()))
    assert len(made) == expansion.factor == prod(map(len, sweeps.values()))


def test_prompts_are_unchanged_unless_dynamic_prompts_are_on(wildcards: Path) -> None:
    braces = Row(prompt="{a|b} __c__ \\{")
    assert list(Expansion.parse(["seed=1"]).rows(braces, 0)) == [Row(prompt=braces.prompt, seed=1)]
    with pytest.raises(InputError, match="add --dynamic-prompts"):
        Expansion.parse(wildcards=wildcards)


def test_the_choice_is_the_same_everywhere() -> None:
    # a change here would change the images of existing batches
    colours = [decided("a {red|green|blue} cat", number=number).split()[1] for number in range(6)]
    assert colours == ["blue", "green", "green", "green", "blue", "green"]
    assert decided("{2$$ and $$a|b|c|d} {1-3$$x|y|z} {0.5::p|9.5::q}", seed=7) == "c and a z q"


def test_alternatives_are_chosen_as_often_as_their_weights() -> None:
    equal = Counter(decided("{a|b|c|d}", number=number) for number in range(4000))
    assert set(equal) == set("abcd")
    assert max(equal.values()) < 1150
    weighted = Counter(decided("{3::a|b|0::c}", number=number) for number in range(4000))
    assert set(weighted) == {"a", "b"}
    assert 2850 < weighted["a"] < 3150
    pairs = Counter(decided("{2$$-$$a|b|c}", number=number) for number in range(600))
    assert set(pairs) == {"a-b", "b-a", "a-c", "c-a", "b-c", "c-b"}


def test_the_seed_the_row_the_position_and_the_field_each_change_the_choice() -> None:
    text = "".join(["{a|b}"] * 40)
    row = Row(prompt=text, negative_prompt=text)
    expansion = Expansion.parse(["seed=1,2"], dynamic=True)
    first, second = expansion.rows(row, 0)
    [other_row, _] = expansion.rows(row, 1)
    [other_seed, _] = Expansion.parse(["seed=1,2"], dynamic=True, seed=1).rows(row, 0)
    texts = [first.prompt, first.negative_prompt, second.prompt, other_row.prompt, other_seed.prompt]
    assert len(set(texts)) == 5


@pytest.mark.parametrize(
    ("text", "outcomes"),
    [
        ("a {red|{light|dark} blue} cat", {"a red cat", "a light blue cat", "a dark blue cat"}),
        ("{a|}b", {"ab", "b"}),
        ("{2$$a|b}", {"a, b", "b, a"}),
        ("{2$$ and $$a|b}", {"a and b", "b and a"}),
        ("{0-1$$a|b}.", {".", "a.", "b."}),
        ("{3$$a|b}", {"a, b", "b, a"}),
        (r"\{a\|b\} {x}", {"{a|b} x"}),
        (r"{\{|\}}", {"{", "}"}),
        (r"\__colour\__ {x} (a:1.2) \(b\)", {r"__colour__ x (a:1.2) \(b\)"}),
        ("snake_case a_b __ c", {"snake_case a_b __ c"}),
        ("a } | b {x}", {"a } | b x"}),
        ("a __animals/cats__!", {"a tabby!", "a siamese!"}),
        ("__colour__", {"light red", "dark red", "tabby grey", "siamese grey"}),
        ("{__animals/cats__|dog}", {"tabby", "siamese", "dog"}),
    ],
)
def test_a_choice_is_one_of_its_outcomes(text: str, outcomes: set[str], wildcards: Path) -> None:
    expansion = Expansion.parse(dynamic=True, wildcards=wildcards)
    assert {row.prompt for number in range(100) for row in expansion.rows(Row(prompt=text), number)} == outcomes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a {b|c", r"prompt 'a {b|c': a { is not closed; write }, or \{ for the brace itself"),
        ("{$$a}", r"prompt '{$$a}': $$ has no number before it; write 2$$, or \$\$ for the characters themselves"),
        ("{0::a}", "prompt '{0::a}': 1 of 0 alternatives cannot be chosen"),
        ("{3-1$$a|b|c}", "prompt '{3-1$$a|b|c}': 3-1$$ is reversed; write 1-3$$"),
        ("{|}", "prompt '{|}' is empty after its choices; write an alternative that is not empty"),
        ("__colours__", "prompt '__colours__': wildcard __colours__ is not in "),
        ("__colours__", "did you mean __colour__?"),
        ("__dogs__", "known are animals/cats, bomb, bomb2, colour, empty, latin, long, loop"),
        ("__loop__", "prompt '__loop__': choices are nested over 20 deep; does a wildcard contain itself?"),
        ("__bomb__", "prompt '__bomb__': it needs over 1,000 choices; write fewer"),
        ("__empty__", "empty.txt is empty; write one text per line"),
        ("__latin__", "latin.txt: byte 4 is not UTF-8; save the file as UTF-8"),
        ("{" * 50 + "a" + "}" * 50, "choices are nested over 20 deep"),
        ("__long__ __long__", "prompt 'aaaaaaaaaaaaaaaa"),
        ("__long__ __long__", "is 6,001 bytes long; shorten it to 4,096"),
        ("__../secret__ {x}", "write a name without '..'"),
        ("__animals/../../secret__", "prompt '__animals/../../secret__': wildcard __animals/../../secret__ is not in "),
    ],
)
def test_an_invalid_choice_is_reported_with_field_value_and_cure(text: str, message: str, wildcards: Path) -> None:
    expansion = Expansion.parse(dynamic=True, wildcards=wildcards)
    row = Row(prompt=text)
    with pytest.raises(InputError) as caught:
        list(expansion.rows(row, 0))
    assert message in str(caught.value)
    assert str(caught.value).startswith("prompt ")


def test_a_wildcard_needs_a_folder_and_no_link_leads_out_of_it(tmp_path: Path, wildcards: Path) -> None:
    with pytest.raises(
        InputError, match=r"wildcard __colour__ has no file; name the folder of colour\.txt with --wildc"
    ):
        decided("__colour__")
    with pytest.raises(InputError, match="the folder does not exist"):
        Expansion.parse(dynamic=True, wildcards=tmp_path / "none")
    (tmp_path / "secret.txt").write_text("secret\n")
    (wildcards / "link.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(InputError, match=r"link\.txt: the link leads out of"):
        Expansion.parse(dynamic=True, wildcards=wildcards)


def test_a_wildcard_file_that_changes_is_an_error(wildcards: Path) -> None:
    expansion = Expansion.parse(dynamic=True, wildcards=wildcards)
    (wildcards / "colour.txt").write_text("blue\n")
    with pytest.raises(InputError, match=r"colour\.txt changed since the command started; run it again"):
        list(expansion.rows(Row(prompt="__colour__"), 0))


LEAVES = st.text("abc ", min_size=1, max_size=4)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=12)
Tree = str | list["Tree"]


def written(tree: Tree) -> str:
    return tree if isinstance(tree, str) else "{" + "|".join(map(written, tree)) + "}"


def outcomes(tree: Tree) -> set[str]:
    return {tree} if isinstance(tree, str) else set().union(*map(outcomes, tree))


@given(TREES, st.integers(0, 10**9), st.integers(0, 2**64))
def test_a_choice_is_always_the_same_and_one_of_the_alternatives(tree: Tree, number: int, seed: int) -> None:
    possible = outcomes(tree)
    assume(all(map(str.strip, possible)))
    chosen = decided(written(tree), number=number, seed=seed)
    assert chosen == decided(written(tree), number=number, seed=seed)
    assert chosen in possible


@given(st.text("{}|\\_$:-a1./ ", max_size=60))
def test_any_text_is_expanded_or_refused(text: str) -> None:
    assume(text.strip())
    try:
        assert decided(text).strip()
    except InputError as error:
        assert json.dumps(str(error))  # noqa: PT017 - not raising is as good


def test_adapters_and_strengths_are_swept() -> None:
    expansion = Expansion.parse(["strength=0.3,0.5", "loras=outlined,striped:0.5,outlined+striped:0.5,none"])
    made = list(expansion.rows(Row(prompt="a", image="a.png", loras=("furry",)), 0))
    assert [row.strength for row in made] == [0.3] * 4 + [0.5] * 4
    assert [[(lora.name, lora.scale) for lora in row.loras or ()] for row in made[:4]] == [
        [("outlined", 1.0)],
        [("striped", 0.5)],
        [("outlined", 1.0), ("striped", 0.5)],
        [],
    ]
    assert json.loads(expansion.key)["sweeps"][0] == ["strength", [{"values": [0.3]}, {"values": [0.5]}]]
    [sweep] = Expansion.parse(["controlnet_conditioning_scale=0.5,1+0.2"]).sweeps
    assert [sweep.value(place) for place in range(len(sweep))] == [(0.5,), (1.0, 0.2)]
    [sweep] = Expansion.parse(["control_image=a+b.png,1..4"]).sweeps
    assert [sweep.value(place) for place in range(len(sweep))] == [("a+b.png",), ("1..4",)]


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("loras=a+,b", "loras has an empty value; remove the comma or the plus sign, or write a value"),
        ("loras=a:x", "loras 'x' is invalid; write a valid number"),
        ("lora=a", "field 'lora' cannot be swept; did you mean 'loras'?"),
        ("strength=0,1", "strength '0' is invalid; write greater than 0"),
    ],
)
def test_an_invalid_sweep_of_adapters_is_refused(option: str, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        Expansion.parse([option])
    assert problem in str(caught.value)
