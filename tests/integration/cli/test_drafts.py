"""The commands ``drafts``, ``finish`` and ``discard``, and what other commands do with drafts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.support.drafted_jobs import drafted_batch, render
from tests.support.invocation import invoke

from latentfarm import Farm

pytestmark = pytest.mark.integration


def scores(index: int) -> dict[str, Any]:
    return {"sharpness": index / 8, "clip": None, "phash": f"{index // 2 * 0x9E3779B97F4A7C15 % (1 << 64):016x}"}


def states(farm: Farm) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for job in farm.batch("cats").jobs():
        found.setdefault(job.state, []).append(int(job.id.rpartition("/")[2]))
    return found


def test_drafts_are_listed_picked_finished_and_discarded(farm: Farm, tmp_path: Path) -> None:
    drafted_batch(farm, [f"cat {index}" for index in range(8)], scores=scores)
    settings = farm.settings
    assert invoke(settings, "picks", "cats", "--set", "1,6=picked", "--set", "0=rejected")[0] == 0
    sheet = tmp_path / "best.png"
    code, text = invoke(settings, "drafts", "cats", "--top", "3", "--by", "sharpness", "--sheet", str(sheet))
    assert (code, text.splitlines()) == (
        0,
        [
            "cats/7  3/10  -  sharpness 0.875  clip -  cat 7",
            "cats/6  3/10  picked  sharpness 0.75  clip -  cat 6",
            "cats/5  3/10  -  sharpness 0.625  clip -  cat 5",
            f"contact sheet: {sheet}",
            "`latentfarm finish cats --indices 5-7` renders them to their end",
        ],
    )
    with Image.open(sheet) as opened:
        assert opened.width > 3 * 192
    code, text = invoke(settings, "drafts", "cats", "--picked", "--json")
    lines = [json.loads(line) for line in text.splitlines()[:-1]]
    assert [(line["index"], line["pick"], line["draft"]["evaluations"]) for line in lines] == [
        (1, "picked", 3),
        (6, "picked", 3),
    ]
    assert invoke(settings, "finish", "cats", "--picked", "--dry-run") == (
        0,
        "drafts     8, 2 selected\nmade       24 evaluations\nto finish  14 evaluations\n"
        "saved      42 evaluations (52% of all), if the others are discarded\n",
    )
    assert states(farm) == {"drafted": list(range(8))}
    finish = ["finish", "cats", "--picked"]
    code, text = invoke(settings, *finish)
    assert (code, text.splitlines()[0]) == (0, "cats finishes 2 drafts; 6 drafts left")
    assert "no worker is running now" in text
    assert (
        invoke(settings, *finish)[1].splitlines()[0]
        == "cats has no draft to finish; 2 of the selection finished before"
    )
    names = tmp_path / "names.txt"
    names.write_text("cats/2\n\n 3, 4-5 \n")
    code, text = invoke(settings, "finish", "cats", "--from", str(names), "--top", "50%", "--by", "sharpness", "--json")
    assert (code, json.loads(text[: text.rindex("}") + 1])["indices"]) == (0, [4, 5])
    assert invoke(settings, "discard", "cats", "--rejected") == (0, "cats discards 1 draft; 3 drafts left\n")
    code, text = invoke(settings, "discard", "cats")
    assert (code, text) == (2, "discard prompts for confirmation, and stdin is not a terminal; write --yes")
    assert invoke(settings, "discard", "cats", "--yes") == (0, "cats discards 3 drafts; no draft is left\n")
    assert states(farm) == {"cancelled": [0, 2, 3, 7], "pending": [1, 4, 5, 6]}
    render(farm)
    code, text = invoke(settings, "jobs", "cats", "--state", "done")
    assert [line.partition("  ")[0] for line in text.splitlines()] == ["cats/1", "cats/4", "cats/5", "cats/6"]
    assert invoke(settings, "drafts", "cats") == (0, "cats has no such draft\n")


def test_previews_are_fetched_until_the_images_take_their_place(farm: Farm, tmp_path: Path) -> None:
    drafted_batch(farm, ["a", "b", "c"])
    out, settings = tmp_path / "out", farm.settings
    code, text = invoke(settings, "fetch", "cats", "-o", str(out))
    assert (code, "3 jobs not done" in text, list(out.glob("*.png"))) == (0, True, [])
    code, text = invoke(settings, "fetch", "cats", "-o", str(out), "--drafts")
    assert (code, "3 files fetched" in text, "3 previews of drafts among them" in text) == (0, True, True)
    previews = {file.name: file.read_bytes() for file in out.glob("*.png")}
    assert sorted(previews) == ["000000.png", "000001.png", "000002.png"]
    assert invoke(settings, "finish", "cats", "--indices", "1")[0] == 0
    render(farm, image=lambda lease: b"the image of " + lease.name.encode())
    code, text = invoke(settings, "fetch", "cats", "-o", str(out), "--drafts")
    assert (code, "1 file fetched" in text, "2 already present" in text) == (0, True, True)
    assert {file.name: file.read_bytes() for file in out.glob("*.png")} == {
        **previews,
        "000001.png": b"the image of cats/1",
    }
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(line["state"], line["file"]) for line in lines] == [
        ("drafted", "000000.png"),
        ("done", "000001.png"),
        ("drafted", "000002.png"),
    ]


def test_an_urgent_draft_batch_is_submitted_and_its_running_images_are_parked_by_a_pause(
    farm: Farm, tmp_path: Path
) -> None:
    file = tmp_path / "cats.jsonl"
    file.write_text(
        '{"prompt": "a", "draft": "0.5"}\n{"prompt": "b", "scorers": "clip, mine"}\n{"prompt": "c", "draft": 0}\n'
    )
    options = ["--draft", "30%", "--score", "sharpness", "--num-inference-steps", "20", "--preempt"]
    code, text = invoke(farm.settings, "submit", str(file), "--batch", "cats", *options)
    assert (code, text.splitlines()[0]) == (0, "cats")
    jobs = [farm.batch("cats")._manifest.job("cats", index) for index in range(3)]
    assert [(job.draft, job.scorers) for job in jobs] == [
        (0.5, ("sharpness",)),
        (0.3, ("clip", "mine")),
        (0, ("sharpness",)),
    ]
    [lease] = farm.ledger.lease("mini", "w", 1, lease_s=30, urgent=True)
    assert lease.urgent
    with farm.ledger.redis.pubsub(ignore_subscribe_messages=True) as signals:  # type: ignore[no-untyped-call]
        signals.subscribe("{lf}:paused")
        assert signals.get_message(timeout=5) is None
        assert invoke(farm.settings, "pause", "cats", "--now") == (
            0,
            "cats is paused, and its running images are parked\n",
        )
        message = signals.get_message(timeout=5)
        assert message is not None
        assert message["data"] == b"cats"


def test_the_price_of_drafts_is_estimated_before_they_are_submitted(farm: Farm, tmp_path: Path) -> None:
    file = tmp_path / "cats.txt"
    file.write_text("a cat\n" * 100)
    words = ["estimate", str(file), "--draft", "0.3", "--num-inference-steps", "50", "--keep", "10%"]
    code, text = invoke(farm.settings, *words)
    assert (code, [line for line in text.splitlines() if line.split()[0] in {"drafts", "finishing", "saved"}]) == (
        0,
        [
            "drafts          100 images: 1,500 steps",
            "finishing       10% of them: 350 steps",
            "saved           3,150 steps (63%)",
        ],
    )
    code, text = invoke(farm.settings, *words, "--json")
    assert json.loads(text)["drafts"]["saved"] == {"steps": 3_150, "gpu_hours": None}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("finish cats", "finish: write which drafts, --indices, --from, --picked or --top, or --all without them"),
        ("finish cats --all --picked", "finish: write which drafts, --indices, --from, --picked or --top, or --all"),
        (
            "finish cats --indices 1 --from x",
            "--indices and --from do not go together; write the indices into the file",
        ),
        ("drafts cats --picked --rejected", "--picked and --rejected do not go together; no draft is both"),
        ("finish cats --top 0", "--top '0': write a share such as 0.1 or 10%, or a number such as 20"),
        ("finish cats --top 100% --by a", "--top '100%': write a share such as 0.1 or 10%, or a number such as 20"),
        ("finish cats --top 1.5 --by a", "--top '1.5': write a share such as 0.1 or 10%, or a number such as 20"),
        ("finish cats --top 5", "top 5: write by which number, such as the scorer sharpness, a draft is better"),
        ("finish cats --top 5 --by sharpness", "no draft of cats has the number 'sharpness'; write rating"),
        ("finish cats --distinct 65 --top 1 --by a", "distinct 65: write the bits in which two hashes differ, 0 to 64"),
        ("finish cats --indices 7", "job cats/7 does not exist; the batch has the jobs 0 to 1"),
        ("discard cats --from dogs.txt", "dogs.txt:2: job dogs/1 is of another batch than cats; leave it out"),
        ("discard cats --from words.txt", "words.txt:1: 'cat': write indices and rising ranges, such as 3,17-40"),
        ("estimate x.txt --keep 10%", "--keep '10%': no row stops as a draft; add --draft, such as --draft 0.3"),
        ("estimate x.txt --draft 3 --keep 5", "--keep '5': write a share such as 0.1 or 10%"),
        ("submit x.txt --draft 1.5", "--draft '1.5': write a share such as 0.1 or 10%, or a number such as 20"),
    ],
)
def test_a_wrong_selection_is_refused_with_the_cure(
    farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("a cat\n")
    Path("dogs.txt").write_text("cats/0\ndogs/1\n")
    Path("words.txt").write_text("cat\n")
    drafted_batch(farm, ["a", "b"])
    code, text = invoke(farm.settings, *words.split())
    assert (code, text[: len(message)]) == (2, message)
    assert states(farm) == {"drafted": [0, 1]}
