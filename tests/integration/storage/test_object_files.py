"""Adapters in a bucket of a real store: listed by their headers, fetched in pieces, checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from latentfarm import Farm
from latentfarm.adapter_kind import AdapterKind
from latentfarm.storage.bucket import MissingObjectError
from latentfarm.storage.object_files import ObjectFiles
from latentfarm_worker.adapters.catalogue import open_catalogue

pytestmark = pytest.mark.integration

BODY = save({"unet.a.lora_A.weight": torch.randn(8, 300_000), "unet.a.lora_B.weight": torch.ones(4, 8)})


@pytest.fixture
def files(farm: Farm) -> ObjectFiles:
    farm.bucket.put("adapters/style one.safetensors", BODY)
    farm.bucket.put("adapters/style.safetensors", BODY)
    farm.bucket.put("adapters2/other.safetensors", BODY)
    return ObjectFiles(farm.bucket)


def test_a_part_of_an_object_and_all_of_it(files: ObjectFiles, tmp_path: Path) -> None:
    found = [*files.list("adapters/")]
    assert [each.key for each in found] == ["adapters/style one.safetensors", "adapters/style.safetensors"]
    assert all(each.size == len(BODY) and each.tag for each in found)
    assert files.read("adapters/style.safetensors", 8, 20) == BODY[8:28]
    assert files.read("adapters/style.safetensors", len(BODY) - 4, 20) == BODY[-4:]
    files.download("adapters/style.safetensors", tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == BODY


def test_an_object_that_is_gone(files: ObjectFiles, tmp_path: Path) -> None:
    with pytest.raises(MissingObjectError):
        files.read("adapters/x.safetensors", 0, 8)
    with pytest.raises(MissingObjectError):
        files.download("adapters/x.safetensors", tmp_path / "whole")


def test_a_worker_lists_a_prefix_and_fetches_what_a_job_names(farm: Farm, files: ObjectFiles, tmp_path: Path) -> None:
    found = open_catalogue(
        f"s3://{files.name}/adapters", cache=tmp_path, max_bytes=10**9, open_store=lambda _: ObjectFiles(farm.bucket)
    )
    assert found.names(AdapterKind.LORA) == ("style",)
    assert not (tmp_path / "adapters").exists()
    assert found.get(AdapterKind.LORA, "style").path.read_bytes() == BODY
    farm.bucket.delete(["adapters/style.safetensors"])
    assert found.get(AdapterKind.LORA, "style").path.read_bytes() == BODY, "it is in the cache"
