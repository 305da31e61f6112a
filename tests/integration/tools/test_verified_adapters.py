"""Receipts list the adapters of an image; verification renders with them, and refuses one that has another file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.tools.test_verification import SMALL, work
from tests.support.engines import single_thread
from tests.support.loras import ATTENTION, changes, write_peft
from tests.support.tiny import make_tiny

from latentfarm import Farm
from latentfarm.storage.embedded_receipt import embedded_receipt
from latentfarm_worker.models import load_family
from latentfarm_worker.tools.comparison import ComparisonResult
from latentfarm_worker.tools.verification import Verification, sample_finished

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


def write(path: Path, model: Path, seed: int) -> None:
    family: Any = load_family(model, dtype=torch.float32, device=torch.device("cpu"))
    write_peft(path, changes(family, rank=4, seed=seed, ends=ATTENTION))


def test_images_with_loras_are_verified_by_their_receipts(farm: Farm, tmp_path: Path) -> None:
    model, folder = make_tiny(tmp_path / "tiny"), tmp_path / "loras"
    folder.mkdir()
    for seed, name in enumerate(("one", "two")):
        write(folder / f"{name}.safetensors", model, seed)
    rows: list[Any] = [{"prompt": "a", "loras": "one:0.5,two", **SMALL}, {"prompt": "b", **SMALL}]
    batch = farm.submit(rows, batch="b")
    work(farm, model, adapters=folder)
    assert batch.status().done == 2, batch.status()

    def verify() -> dict[str, ComparisonResult]:
        settings = farm.settings.model_copy(update={"model_source": str(model), "adapters": str(folder)})
        indices = sample_finished(batch, None, seed=0)
        return {each.job: each for each in Verification(batch, settings, dtype=None).run(indices)}

    receipts = {line["job"]: line for line in batch.results()}
    digests = {
        name: hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest() for name in ("one", "two")
    }
    listed = [{"name": name, "kind": "lora", "sha256": sha256} for name, sha256 in digests.items()]
    assert receipts["b/0"]["adapters"] == listed
    assert "adapters" not in receipts["b/1"]
    line = receipts["b/0"]
    embedded = embedded_receipt(farm.bucket.get(line["key"]), line["key"], "b/0")
    assert embedded is not None
    assert embedded["adapters"] == listed
    assert [each for each in verify().values() if each.differences or not each.same_bytes] == []

    write(folder / "two.safetensors", model, seed=7)
    found = verify()
    assert found["b/1"].same_bytes
    [text] = found["b/0"].differences
    assert f"lora 'two' had the sha256 {digests['two']}, and here it has" in text
