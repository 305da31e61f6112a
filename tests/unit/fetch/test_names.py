from __future__ import annotations

from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.fetching import result

from latentfarm.errors import InputError
from latentfarm.fetch.names import MAX_NAME_BYTES, NameTemplate, add_file_name, name_problem
from latentfarm.unique_names import UniqueNames

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{index:06d}.png", "000017.png"),
        ("{batch}-{row}-{seed}.png", "cats-3-9.png"),
        ("{id}-{width}x{height}.png", "x y-512x768.png"),
        ("{index:06d}", "000017.png"),
        ("{guidance_scale:.1f}", "7.5.png"),
        ("{num_inference_steps:3d}s{guidance_scale:.2f}{index}.png", None),
        ("s{num_inference_steps:03d}g{guidance_scale:.2f}-{{{index}}}.png", "s025g7.50-{17}.png"),
    ],
)
def test_a_template_is_filled_with_the_fields_of_the_job(template: str, name: str | None) -> None:
    if name is None:
        with pytest.raises(InputError, match="begins or ends with a space"):
            NameTemplate(template).name(result(id="x y"))
    else:
        assert NameTemplate(template).name(result(id="x y")) == name


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{index.__class__}.png", "index.__class__"),
        ("{index[0]}.png", "is not known"),
        ("{index!r}.png", "index!r"),
        ("{}.png", "is not known"),
        ("{0}.png", "is not known"),
        ("{prompt}.png", "is not known"),
        ("{index:{seed}}.png", "is not known"),
        ("{index:9999999999d}.png", "is not known"),
        ("{id:>9}.png", "is not known"),
        ("{index.png", "expected '}'"),
        ("}.png", "Single '}'"),
        ("{index}.gif", "images are .png or .webp or .jpg; leave the extension out"),
        ("{index}.png/", "contains '/'"),
        ("../{index}.png", "begins with a dot"),
        ("a/{index}.png", "contains '/'"),
        ("a\\{index}.png", "contains '\\\\'"),
        (".{index}.png", "begins with a dot"),
        ("a\n{index}.png", r"contains '\n'"),
        ("{index:099d}" + "x" * 150 + ".png", "is over 200 bytes long"),
        ("con.{index}.png", "a device on Windows"),
    ],
)
def test_a_template_with_an_unknown_field_or_an_unsafe_name_is_refused(template: str, problem: str) -> None:
    with pytest.raises(InputError, match="--name-template") as caught:
        NameTemplate(template)
    assert problem in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_a_template_with_safe_names_or_an_input_error(text: str) -> None:
    try:
        template = NameTemplate(text + ".png")
    except InputError:
        return
    assert name_problem(template.name(result(id="x"))) is None


@given(st.text(min_size=1, max_size=256))
def test_an_id_makes_one_file_in_the_folder_or_an_error_that_names_the_job(id_: str) -> None:
    template = NameTemplate("{id}.png")
    if name_problem(f"{id_}.png") is not None:
        with pytest.raises(InputError, match=r"(?s)job cats/17: .*use \{index\}"):
            template.name(result(id=id_))
        return
    name = template.name(result(id=id_))
    assert name == f"{id_}.png"
    assert len(name.encode()) <= MAX_NAME_BYTES
    assert Path("/out", name).resolve() == Path("/out") / name
    windows = PureWindowsPath("C:/out", name)
    assert (windows.parent, windows.name) == (PureWindowsPath("C:/out"), name)


@pytest.mark.parametrize("name", ["nul.png", "COM1.x.png", "lpt² .png", " a.png", "a..png", "a:b.png", "\u202ea.png"])
def test_names_with_a_meaning_on_another_system_are_refused(name: str) -> None:
    assert name_problem(name) is not None


@pytest.mark.parametrize("name", ["a.png", "ä 猫 🐈.png", "console.png", "-x.png", "it's [1].png"])
def test_ordinary_names_are_safe(name: str) -> None:
    assert name_problem(name) is None


def test_a_job_without_a_field_of_the_template_is_an_error() -> None:
    with pytest.raises(InputError, match=r"job cats/17 has no id .* use \{index\}"):
        NameTemplate("{id}.png").name(result())


@given(st.lists(st.sampled_from(["a", "A", "b", "ß", "SS", "é", "e\u0301", "k", "\u212a"]), max_size=6))
def test_the_error_for_a_duplicate_name_has_both_jobs(names: list[str]) -> None:
    same = {"A": "a", "SS": "ß", "e\u0301": "é", "\u212a": "k"}
    first: dict[str, int] = {}
    with UniqueNames() as unique:
        for index, name in enumerate(names):
            key = same.get(name, name)
            if key in first:
                with pytest.raises(InputError, match=rf"jobs cats/{first[key]} and cats/{index} would both be"):
                    add_file_name(unique, name, f"cats/{index}")
                return
            first[key] = index
            add_file_name(unique, name, f"cats/{index}")


def test_only_a_template_with_index_and_without_id_or_extension_needs_no_check_of_all_names() -> None:
    found = {
        text: NameTemplate(text).always_unique for text in ("{index}", "{seed}", "{id}{index}", "x", "{index}.png")
    }
    assert found == {"{index}": True, "{seed}": False, "{id}{index}": False, "x": False, "{index}.png": False}


@pytest.mark.parametrize("extension", [".png", ".webp", ".jpg"])
def test_a_file_has_the_extension_of_its_key(extension: str) -> None:
    assert NameTemplate("{index}").name(result(key=f"k/17{extension}")) == f"17{extension}"
    assert NameTemplate("{index}" + extension).name(result(key=f"k/17{extension}")) == f"17{extension}"


def test_a_template_with_another_extension_than_the_images_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"job cats/17: its image is \.webp, but .* requires \.png; leave the extension out"
    ):
        NameTemplate("{index}.png").name(result(key="k/17.webp"))


@given(st.text(max_size=40))
def test_every_file_has_the_extension_of_an_image_format(key: str) -> None:
    assert NameTemplate("{index}").name(result(key=key)) in {"17.png", "17.webp", "17.jpg"}


def test_names_that_differ_only_in_their_extension_are_duplicates() -> None:
    with UniqueNames() as unique:
        add_file_name(unique, "a.png", "cats/0")
        with pytest.raises(InputError, match="jobs cats/0 and cats/1 would both be"):
            add_file_name(unique, "a.webp", "cats/1")
