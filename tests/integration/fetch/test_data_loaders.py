"""Folders of a fetch in the libraries that read them: Hugging Face's ``datasets``, ``webdataset`` and pandas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.fetching import image_bytes, result, stored

from latentfarm import Farm, InputError
from latentfarm.fetch import FetchOptions, FetchReport, Layout, Owner, fetch_batch

# the libraries leave files to the garbage collector
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

#: rows whose results differ in every field that only some have
ROWS: list[dict[str, Any]] = [
    {},
    {"id": "x"},
    {"request": {"prompt": "b", "seed": 2**63 - 1, "guidance_scale": 7, "scheduler": "PNDMScheduler"}},
    {"columns": {"class": 3}},
    {"columns": {"class": "cat", "tags": ["a", 1]}},
    {"request": {"prompt": "c", "seed": 1, "scheduler_options": {"beta": 0.5}}},
    {"request": {"prompt": "d", "seed": 1, "scheduler_options": {"beta": "x"}, "clip_skip": 1}},
    {"request": {"prompt": "e", "seed": 1, "guidance_interval": [0.2, 0.8], "prompt_syntax": "a1111"}},
    {"attempts": 2, "row": 9},
    {"intermediates": True},
]


@pytest.fixture
def fetched(
    farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[dict[str, Any]], Layout], FetchReport]:
    """Store made-up jobs, fetch them into ``out``, and let the libraries use no network and no shared cache."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_UPDATE_DOWNLOAD_COUNTS"):
        monkeypatch.setenv(name, "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()

    def fetch(rows: list[dict[str, Any]], layout: Layout) -> FetchReport:
        def job(index: int, fields: dict[str, Any]) -> dict[str, Any]:
            receipt = stored(farm.bucket, f"i/{index}.png", image_bytes(index))
            if fields.get("intermediates"):
                fields = {**fields, "intermediates": stored(farm.bucket, f"s/{index}.png", image_bytes(index + 7))}
            return result(index, **{**receipt, **fields})

        # jobs of three parts, so that there are three shards
        places = [index * 250 for index in range(len(rows))]
        results = [job(index, fields) for index, fields in zip(places, rows, strict=True)]
        options = FetchOptions(layout=layout)
        return fetch_batch(farm.bucket, lambda: results, tmp_path / "out", Owner("cats", ""), options=options)

    return fetch


Fetched = Callable[[list[dict[str, Any]], Layout], FetchReport]


@pytest.mark.parametrize("rows", [ROWS, ROWS[::-1], ROWS[1:2], ROWS[9:] + ROWS[:3]], ids=["all", "reversed", "1", "4"])
@pytest.mark.parametrize("how", ["folder", "data_dir", "data_files", "streaming"])
def test_datasets_loads_every_sample_of_a_webdataset(
    fetched: Fetched, rows: list[dict[str, Any]], how: str, tmp_path: Path
) -> None:
    from datasets import load_dataset

    out = tmp_path / "out"
    fetched([*rows, {"state": "failed"}], "webdataset")
    name = str(out) if how == "folder" else "webdataset"
    options: dict[str, dict[str, Any]] = {
        "folder": {},
        "data_dir": {"data_dir": str(out)},
        "data_files": {"data_files": f"{out}/*.tar"},
        "streaming": {"data_dir": str(out), "streaming": True},
    }
    found = list(load_dataset(name, split="train", **options[how]))
    assert [sample["__key__"] for sample in found] == [f"{250 * n:08d}" for n in range(len(rows))]
    assert [sample["png"].size for sample in found] == [(8, 8)] * len(rows)
    assert [sample["txt"] for sample in found] == [sample["json"]["prompt"] for sample in found]
    assert [json.loads(sample["json"]["columns"]) for sample in found] == [row.get("columns", {}) for row in rows]
    assert [sample["json"]["id"] for sample in found] == [row.get("id", "") for row in rows]


def test_datasets_loads_the_strips_from_their_own_shards(fetched: Fetched, tmp_path: Path) -> None:
    from datasets import load_dataset

    fetched(ROWS, "webdataset")
    [found] = load_dataset("webdataset", data_dir=str(tmp_path / "out" / "__intermediates__"), split="train")
    assert (found["__key__"], found["png"].size, found["txt"]) == ("00002250", (8, 8), "a cat")


def test_webdataset_decodes_every_sample(fetched: Fetched, tmp_path: Path) -> None:
    import webdataset

    fetched(ROWS, "webdataset")
    shards = f"{tmp_path}/out/shard-{{00000..00002}}.tar"
    found = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("__key__", "png", "json"))
    assert [(key, image.size) for key, image, _ in found] == [(f"{250 * n:08d}", (8, 8)) for n in range(len(ROWS))]
    assert len({tuple((name, type(value)) for name, value in line.items()) for _, _, line in found}) == 1


def test_datasets_loads_a_folder_of_files_as_images_with_their_metadata(fetched: Fetched, tmp_path: Path) -> None:
    from datasets import load_dataset

    fetched(ROWS, "files")
    for arguments in (("imagefolder", str(tmp_path / "out")), (str(tmp_path / "out"), None)):
        found = load_dataset(arguments[0], data_dir=arguments[1], split="train")
        assert found.num_rows == len(ROWS)
        assert [sample["image"].size for sample in found] == [(8, 8)] * len(ROWS)
        assert found["id"] == [row.get("id", "") for row in ROWS]


@pytest.mark.parametrize("name", ["index.parquet", "results.jsonl"])
def test_pandas_reads_the_tables(fetched: Fetched, tmp_path: Path, name: str) -> None:
    import pandas as pd

    fetched(ROWS, "webdataset")
    file = tmp_path / "out" / "__tables__" / name
    found = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_json(file, lines=True)
    assert len(found) == len(ROWS)
    assert found["image_format"].tolist() == ["png"] * len(ROWS)
    assert found["seed"].max() == 2**63 - 1


def test_a_webdataset_of_two_formats_is_refused_before_the_first_download(fetched: Fetched, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"jobs cats/0 \(png\) and cats/250 \(webp\) .* with --image-format"):
        fetched([{}, {"key": "i/1.webp"}, {}], "webdataset")
    assert not (tmp_path / "out").exists()
