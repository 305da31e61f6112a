"""A preference set in the libraries that read it: Hugging Face's ``datasets``, and what diffusers' DPO scripts do."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.support.fetching import image_bytes, work

from latentfarm import Batch, Farm, UnavailableError
from latentfarm.fetch import preferences
from latentfarm.fetch.preferences import PreferenceOptions, preference_set

# the libraries leave files to the garbage collector
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.fixture
def batch(farm: Farm) -> Batch:
    made = farm.submit([{"prompt": prompt, "negative_prompt": "blurry"} for prompt in "aabb"], batch="cats")
    work(farm, made)
    made.pick([0], "picked")
    made.pick([1], "rejected")
    made.pick([2], rating=2)
    made.pick([3], rating=4)
    return made


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_UPDATE_DOWNLOAD_COUNTS"):
        monkeypatch.setenv(name, "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()

    def load_file(batch: Batch, **options: Any) -> Any:
        file = tmp_path / "pairs.parquet"
        file.write_bytes(b"".join(batch.preferences(**options)))
        return datasets.load_dataset("parquet", data_files=str(file), split="train")

    return load_file


def test_datasets_shows_the_images_of_a_preference_set(batch: Batch, load: Any) -> None:
    rows = load(batch, images="bytes")
    assert rows.column_names[:3] == ["prompt", "chosen", "rejected"]
    assert [(row["prompt"], row["chosen_index"], row["rejected_index"]) for row in rows] == [("a", 0, 1), ("b", 3, 2)]
    assert rows[1]["chosen"].tobytes() == Image.open(io.BytesIO(image_bytes(3))).tobytes()
    assert rows[1]["rejected"].tobytes() == Image.open(io.BytesIO(image_bytes(2))).tobytes()
    assert rows[0]["negative_prompt"] == "blurry"


def test_with_keys_the_paths_are_those_of_the_bucket(batch: Batch, load: Any) -> None:
    import datasets

    rows = load(batch)
    assert isinstance(rows.features["chosen"], datasets.Image)
    undecoded = rows
    for name in ("chosen", "rejected"):
        undecoded = undecoded.cast_column(name, datasets.Image(decode=False))
    assert undecoded[0]["chosen"] == {"bytes": None, "path": next(batch.results())["key"]}


def test_the_scripts_of_diffusers_read_pickapic(batch: Batch, load: Any) -> None:
    examples = load(batch, images="bytes", form="pickapic")[:]
    # as in preprocess_train of train_diffusion_dpo.py: its first image is the preferred one
    columns = [[Image.open(io.BytesIO(body)).convert("RGB") for body in examples[name]] for name in ("jpg_0", "jpg_1")]
    pairs = [
        pair[::-1] if label == 0 else pair
        for pair, label in zip(zip(*columns, strict=True), examples["label_0"], strict=True)
    ]
    assert examples["caption"] == ["a", "b"]
    expected = [Image.open(io.BytesIO(image_bytes(index))).tobytes() for index in (0, 3)]
    assert [preferred.tobytes() for preferred, _ in pairs] == expected


def test_an_image_that_does_not_match_its_receipt_ends_the_export(batch: Batch, farm: Farm) -> None:
    farm.bucket.put(next(batch.results())["key"], b"another image")
    with pytest.raises(UnavailableError, match="its sha256 differs"):
        list(batch.preferences(images="bytes"))


def test_memory_does_not_grow_with_the_pairs(batch: Batch, farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preferences, "_GROUP_BYTES", 2**20)
    lines = list(batch.results())[:2]
    big = 2**18

    monkeypatch.setattr(preferences, "_reader", lambda _: lambda _pair: (bytes(big), bytes(big)))
    results = (
        {**lines[side], "index": 2 * pair + side, "request": {"prompt": f"{pair}"}}
        for pair in range(400)
        for side in range(2)
    )
    tracemalloc.start()
    try:
        size = sum(map(len, preference_set(farm.bucket, results, PreferenceOptions("bytes"))))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 200 MB of images; zeros compress well
    assert size > 0
    assert peak < 30 * 2**20
