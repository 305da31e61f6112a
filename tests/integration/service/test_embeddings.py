"""Prompts name embeddings of the operator's catalogue, from a file to the receipt, by a real Redis and S3 server."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.support.rendering import SMALL, render_loop
from tests.support.tiny import make_tiny

from latentfarm import Farm
from latentfarm.storage.bucket import Bucket
from latentfarm_worker.build import load_model

pytestmark = pytest.mark.integration


def write(path: Path, width: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({"emb_params": torch.randn(3, width, generator=torch.Generator().manual_seed(1))}, path)
    return path


def render(farm: Farm, model: Path, adapters: str, prompts: list[str], **fields: Any) -> list[dict[str, Any]]:
    """Render prompts with the same seed by a worker with these adapters; return the results."""
    settings = farm.settings.model_copy(update={"model_source": str(model), "adapters": adapters})
    batch = farm.submit([{"prompt": prompt, "seed": 1, **SMALL, **fields} for prompt in prompts], batch="b")
    with render_loop(farm, load_model(settings)) as loop:
        loop.render_all()
        batch.wait(timeout_s=60)
    return list(batch.results())


def test_an_embedding_is_in_the_image_and_in_its_receipt_and_a_wrong_one_fails_its_own_job(
    farm: Farm, tmp_path: Path
) -> None:
    folder = tmp_path / "embeddings"
    good = write(folder / "nested.safetensors", 64)
    write(folder / "other.safetensors", 768)
    model = make_tiny(tmp_path / "model")
    found = render(farm, model, str(folder), ["a hut, <nested>", "a hut, <other>", "a hut, <missing>", "a hut"])
    digest = hashlib.sha256(good.read_bytes()).hexdigest()
    assert found[0]["adapters"] == [{"name": "nested", "kind": "embedding", "sha256": digest}]
    assert found[1]["error"]["code"] == "adapter_mismatch"
    assert all("adapters" not in line for line in found[2:])
    assert len({line["sha256"] for line in found if "sha256" in line}) == 3
    # five tokens for the words and three for the vectors, of two prompts
    assert found[0]["tokens"] > found[3]["tokens"]


def test_an_embedding_in_a_bucket_is_fetched_by_the_worker_that_meets_its_name(farm: Farm, tmp_path: Path) -> None:
    body = write(tmp_path / "nested.safetensors", 64).read_bytes()
    bucket: Bucket = farm.bucket
    bucket.put("adapters/nested.safetensors", body)
    model = make_tiny(tmp_path / "model")
    prefix = f"s3://{bucket.name}/adapters"
    [line] = render(farm, model, prefix, ["a nested hut"], prompt_syntax="a1111")
    assert line["adapters"] == [{"name": "nested", "kind": "embedding", "sha256": hashlib.sha256(body).hexdigest()}]
