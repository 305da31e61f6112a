from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from latentfarm.errors import InputError
from latentfarm.job import Row
from latentfarm.submission.expansion import Expansion, wildcard_files
from latentfarm.submission.expansion.wildcards import Wildcards

pytestmark = pytest.mark.unit


def made(prompt: str, folder: Path, rows: int = 60) -> Counter[str]:
    expansion = Expansion.parse(dynamic=True, wildcards=folder)
    return Counter(row.prompt for number in range(rows) for row in expansion.rows(Row(prompt=prompt), number))


def notes(prompt: str, folder: Path) -> list[str]:
    expansion = Expansion.parse(dynamic=True, wildcards=folder)
    list(expansion.rows(Row(prompt=prompt), 0))
    assert expansion.dynamic is not None
    return list(expansion.dynamic.notes)


def test_a_line_of_a_txt_file_may_have_a_weight(tmp_path: Path) -> None:
    (tmp_path / "wood.txt").write_text("3::oak\nash\n0::elm\n")
    counts = made("__wood__", tmp_path, 4000)
    assert set(counts) == {"oak", "ash"}
    assert 2850 < counts["oak"] < 3150
    (tmp_path / "bad.txt").write_text("oak\n-1::ash\n")
    with pytest.raises(InputError, match=r"bad\.txt, line '-1::ash': weight -1:: is invalid; write 0:: to 999999::"):
        made("__bad__", tmp_path)


def test_repeated_lines_count_twice_but_two_different_lines_are_different(tmp_path: Path) -> None:
    (tmp_path / "wood.txt").write_text("oak\noak\nash\n")
    assert made("__wood__", tmp_path, 3000)["oak"] > 1850
    assert set(made("{2$$__wood__}", tmp_path)) == {"oak, ash", "ash, oak"}


def test_yaml_scalars_are_texts_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "p.yml").write_text(
        "years: [1950, 1960.0, yes, ~, 'no']\nmulti:\n  - |\n    # note\n    a {b|b}\n    c\n"
    )
    assert set(made("__years__", tmp_path)) == {"1950", "1960.0", "yes", "no"}
    assert set(made("__multi__", tmp_path)) == {"a b\nc"}
    (tmp_path / "q.json").write_text('{"sizes": [1, 2.5, true, null, ""], "none": []}')
    assert set(made("__sizes__", tmp_path)) == {"1", "2.5", "true"}


def test_values_that_are_no_texts_are_passed_over_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("a: [x, [y]]\n1: [z]\nb: 5\nc: {d: [w]}\n")
    [note] = notes("__a__", tmp_path)
    assert note.endswith("p.yaml: 3 values that are no texts are passed over, such as in 'a'")
    with pytest.raises(InputError, match="wildcard __b__ is not in"):
        made("__b__", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.yaml", b"a: [b\n", "x.yaml line 2 is not YAML: "),
        ("x.yaml", b"a: !!python/object/apply:os.system [b]\n", None),
        ("x.yaml", b"a: &a [b]\nc:\n  <<: {d: e}\n", "x.yaml line 3 merges with <<; write the lists out"),
        ("x.yaml", b"? [a]\n: b\n", "x.yaml line 1 has a name that is no text; write a text"),
        ("x.yaml", b"a: &a [*a]\n", "has over 500,000 values or 20 levels; write it without aliases"),
        ("x.yaml", b"a" * 3 + b": [" * 5000, "x.yaml"),
        ("x.yaml", b"a: [\xff]\n", "x.yaml: byte 5 is not UTF-8; save the file as UTF-8"),
        ("x.yaml", b"--- a\n--- b\n", "x.yaml line 2 is not YAML: "),
        ("x.json", b'{"a": [', "x.json is not JSON: "),
        ("x.json", b'{"a": ' * 5000, "x.json is not JSON: "),
        ("x.json", b'{"a": ["-1::b"]}', "x.json, a, line '-1::b': weight -1:: is invalid"),
        (
            "x.json",
            b'{"a": [{"text": "b", "weight": "much"}]}',
            "x.json, a: weight 'much' is invalid; write 0 to 999999",
        ),
    ],
)
def test_an_invalid_file_is_an_error_with_its_place(
    name: str, content: bytes, problem: str | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    if problem is None:
        assert set(made("__a__", tmp_path)) == {"b"}
        return
    with pytest.raises(InputError) as caught:
        made("__a__", tmp_path)
    assert problem in str(caught.value)


def test_aliases_may_repeat_but_not_multiply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a tenth of the values takes a tenth of the time
    monkeypatch.setattr(wildcard_files, "_MAX_VALUES", 50_000)
    (tmp_path / "x.yaml").write_text("base: &base [a, b]\nsame: *base\n")
    assert set(made("__same__", tmp_path)) == {"a", "b"}
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} {{{', '.join(f'k{k}: *a{n - 1}' for k in range(10))}}}" for n in range(1, 12)]
    (tmp_path / "x.yaml").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"x\.yaml has over 50,000 values or 20 levels; write it without aliases"):
        made("__a0__", tmp_path)


def test_an_invalid_file_does_not_hide_other_names(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("oak\n")
    (tmp_path / "settings.json").write_text("// no JSON")
    (tmp_path / ".vscode").mkdir()
    (tmp_path / ".vscode" / "settings.json").write_text("// no JSON")
    assert set(made("__good__", tmp_path)) == {"oak"}
    for name in ("__go*__", "__other__"):
        with pytest.raises(InputError, match=r"settings\.json is not JSON"):
            made(name, tmp_path)


def test_a_name_in_two_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wood.txt").write_text("oak\n")
    (tmp_path / "all.yaml").write_text("wood: [ash]\nstone: [slate]\n")
    assert set(made("__stone__", tmp_path)) == {"slate"}
    with pytest.raises(
        InputError, match=r"wildcard __wood__ is in wood\.txt and in all\.yaml of .*; rename one of them"
    ):
        made("__wood__", tmp_path)


def test_yaml_without_pyyaml_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "all.yaml").write_text("wood: [ash]\n")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(
        InputError, match=r"all\.yaml needs PyYAML; pip install 'latentfarm\[yaml\]', or write txt or j"
    ):
        made("__wood__", tmp_path)


def test_the_digests_of_txt_files_are_under_their_names_and_those_of_others_under_a_path(tmp_path: Path) -> None:
    # the key of a batch depends on them
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "wood.txt").write_text("oak\n")
    before = Wildcards(tmp_path).digests
    assert list(before) == ["sub/wood"]
    (tmp_path / "sub" / "all.yaml").write_text("stone: [slate]\n")
    assert Wildcards(tmp_path).digests.keys() == {"sub/wood", "/sub/all.yaml"}
    assert Wildcards(tmp_path).digests["sub/wood"] == before["sub/wood"]
    (tmp_path / "sub" / "link.json").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match=r"link\.json: the link leads out of"):
        Wildcards(tmp_path)


def test_endings_may_be_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "WOOD.TXT").write_text("oak\r\n")
    (tmp_path / "ALL.YAML").write_text("stone: [slate]\n")
    assert set(made("__WOOD__ __stone__", tmp_path)) == {"oak slate"}
    (tmp_path / "WOOD.txt").write_text("ash\n")
    with pytest.raises(InputError, match=r"WOOD\.txt: WOOD\.TXT has the same name; rename one of them"):
        Wildcards(tmp_path)
