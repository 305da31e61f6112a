"""The command ``picks``, and what other commands do with picks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pyarrow import parquet
from tests.support.done_jobs import done_batch
from tests.support.invocation import invoke

from latentfarm import Farm

pytestmark = pytest.mark.integration


def test_images_are_picked_listed_and_fetched(farm: Farm, tmp_path: Path) -> None:
    done_batch(farm, [f"a {index}" for index in range(8)])
    settings = farm.settings
    # the last word of a field counts
    words = ["--set", "0,3-5=picked", "--set", "4=rejected", "--set", "3=5", "--set", "5=none"]
    assert invoke(settings, "picks", "cats", *words) == (0, "2 picked, 1 rejected, 1 rated\n")
    assert invoke(settings, "picks", "cats") == (
        0,
        "cats/0  picked    -\ncats/3  picked    5\ncats/4  rejected  -\n2 picked, 1 rejected, 1 rated\n",
    )
    code, text = invoke(settings, "picks", "cats", "--set", "3=unrated", "--json")
    assert (code, json.loads(text)) == (0, {"picked": 2, "rejected": 1, "rated": 0})
    code, text = invoke(settings, "picks", "cats", "--json")
    listed = json.loads(text)
    assert [(each["index"], each["pick"]) for each in listed["picks"]] == [
        (0, "picked"),
        (3, "picked"),
        (4, "rejected"),
    ]
    assert listed["picked"] == 2
    out = tmp_path / "out"
    code, text = invoke(settings, "fetch", "cats", "-o", str(out), "--pick", "picked")
    assert (code, "2 files fetched" in text) == (0, True)
    assert sorted(file.name for file in out.glob("*.png")) == ["000000.png", "000003.png"]
    code, text = invoke(settings, "fetch", "cats", "--presign", "--pick", "picked,rejected")
    assert [line.partition("?")[0].rpartition("/")[2][:8] for line in text.splitlines()] == [
        "00000000",
        "00000003",
        "00000004",
    ]
    code, text = invoke(settings, "results", "cats", "--pick", "none", "--pick", "rejected")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["index"], line.get("pick")) for line in lines] == [
        (1, None),
        (2, None),
        (4, "rejected"),
        (5, None),
        (6, None),
        (7, None),
    ]
    table = tmp_path / "results.parquet"
    assert invoke(settings, "results", "cats", "-o", str(table))[0] == 0
    assert parquet.read_table(table).column("pick").to_pylist()[:5] == ["picked", None, None, "picked", "rejected"]


def test_a_preference_set_is_written(farm: Farm, tmp_path: Path) -> None:
    batch = done_batch(farm, ["a", "a"])
    batch.pick([1], "picked")
    batch.pick([0], "rejected")
    file = tmp_path / "pairs.parquet"
    code, text = invoke(farm.settings, "picks", "cats", "--preferences", str(file))
    assert (code, text) == (0, f"preference set: {file}\n")
    assert parquet.read_table(file).column("chosen_index").to_pylist() == [1]
    words = ["--images", "bytes", "--format", "pickapic"]
    assert invoke(farm.settings, "picks", "cats", "--preferences", str(file), *words)[0] == 0
    assert parquet.read_table(file).column_names[:4] == ["caption", "jpg_0", "jpg_1", "label_0"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--set 3", "--set '3': write INDICES=WORD, such as 3,17-40=picked"),
        ("--set 0=kept", "--set ...= 'kept': write one of picked, rejected, none, 1, 2, 3, 4, 5, unrated"),
        ("--set x=picked", "--set 'x': write indices and rising ranges, such as 3,17-40"),
        ("--set 0-1000000=picked", "--set 0-1000000: 1,000,001 jobs; write at most 1,000,000"),
        ("--set 2=picked", "job cats/2 does not exist; the batch has the jobs 0 to 1"),
        ("--set 1=picked", "job cats/1 is failed; only the image of a done job, or a draft, can be picked or rated"),
        ("--images bytes", "--images and --format are options of --preferences; add it, or leave them out"),
        ("--preferences x --images files", "--images 'files': write one of keys, bytes"),
        ("--preferences x --format csv", "--format 'csv': write one of preference, pickapic"),
        ("--preferences x --format pickapic", "the form pickapic has the bytes of images; write images bytes"),
        ("--preferences x --set 0=picked", "--set and --preferences do not go together; run picks twice"),
    ],
)
def test_a_wrong_word_is_refused_with_the_cure(
    farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done_batch(farm, ["a", "b"], fail=[1])
    assert invoke(farm.settings, "picks", "cats", *words.split()) == (2, message)
    assert list(tmp_path.iterdir()) == []


def test_a_filter_by_an_unknown_pick_is_refused(farm: Farm) -> None:
    done_batch(farm, ["a"])
    for command in (["fetch", "cats", "--presign"], ["results", "cats"]):
        code, text = invoke(farm.settings, *command, "--pick", "kept")
        assert (code, text) == (2, "--pick 'kept': write one of picked, rejected, none")


def test_without_pyarrow_the_cure_is_printed(farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done_batch(farm, ["a"])
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    code, text = invoke(farm.settings, "picks", "cats", "--preferences", str(tmp_path / "pairs.parquet"))
    assert (code, text) == (2, "a preference set is Parquet, which needs pyarrow: pip install 'latentfarm[parquet]'")
