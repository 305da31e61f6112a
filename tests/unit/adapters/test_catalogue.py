"""The catalogue of adapters: what a setting names, which kinds files are, and what is fetched from a bucket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from latentfarm.adapter_kind import AdapterKind, describe_unknown
from latentfarm.errors import InputError, JobError, ModelError
from latentfarm_worker.adapters.catalogue import Catalogue, open_catalogue
from latentfarm_worker.adapters.kinds import is_refiner, kind_of_tensors
from latentfarm_worker.checkpoints.tensor_file import TensorInfo

pytestmark = pytest.mark.unit

LORA = {"unet.a.lora_A.weight": torch.ones(2, 4), "unet.a.lora_B.weight": torch.ones(4, 2)}
EMBEDDING = {"emb_params": torch.ones(2, 8)}
#: of stabilityai/stable-diffusion-xl-refiner-1.0
REFINER = {
    "_class_name": "UNet2DConditionModel",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
UNET = {"conv_in.weight": torch.ones(2, 4, 3, 3)}
CONTROLNET = {"controlnet_cond_embedding.conv_in.weight": torch.ones(2, 3, 3, 3)}
IP_ADAPTER = {"image_proj.proj.weight": torch.ones(4, 4), "ip_adapter.1.to_k_ip.weight": torch.ones(4, 4)}


class Stored(NamedTuple):
    key: str
    tag: str
    size: int


class Store:
    """A bucket in memory, which counts downloads; a real one is in the integration tests."""

    name = "farm"

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.downloads: list[str] = []

    def list(self, prefix: str) -> Iterator[Stored]:
        for key, body in sorted(self.objects.items()):
            if key.startswith(prefix):
                yield Stored(key, str(hash(body)), len(body))

    def read(self, key: str, begin: int, count: int) -> bytes:
        return self.objects[key][begin : begin + count]

    def download(self, key: str, path: Path) -> None:
        self.downloads.append(key)
        path.write_bytes(self.objects[key])


def catalogue(
    text: str, cache: Path, *, store: Any = None, bundled: Path | None = None, max_bytes: int = 0
) -> Catalogue:
    def open_store(bucket: str) -> Any:
        assert bucket == "farm"
        return store

    return open_catalogue(text, cache=cache, max_bytes=max_bytes, open_store=open_store, bundled=bundled)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an adapter of each kind, and other files."""
    folder = tmp_path / "adapters"
    (folder / "edges").mkdir(parents=True)
    save_file(LORA, folder / "Outlined v2.safetensors")
    save_file(LORA, folder / "outlined.safetensors")
    save_file(EMBEDDING, folder / "nested.safetensors")
    save_file(IP_ADAPTER, folder / "faces.safetensors")
    (folder / "edges" / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    save_file(CONTROLNET, folder / "edges" / "diffusion_pytorch_model.safetensors")
    for place in (folder / "fine", folder / "whole" / "unet"):
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(REFINER))
        save_file(UNET, place / "diffusion_pytorch_model.safetensors")
    (folder / "old.ckpt").write_bytes(b"\x80")
    (folder / "README.md").write_text("notes")
    save_file({"vae.weight": torch.ones(2, 2, 2)}, folder / "vae.safetensors")
    return folder


def test_a_folder_has_an_adapter_of_each_file_and_folder(folder: Path, tmp_path: Path, caplog: Any) -> None:
    found = catalogue(str(folder), tmp_path / "cache")
    assert {kind.value: found.names(kind) for kind in AdapterKind} == {
        "lora": ("outlined",),
        "embedding": ("nested",),
        "controlnet": ("edges",),
        "ip_adapter": ("faces",),
        "refiner": ("fine", "whole"),
    }
    assert json.loads(found.announcement())["controlnet"] == ["edges"]
    assert found.get(AdapterKind.CONTROLNET, "edges").path == folder / "edges"
    assert found.get(AdapterKind.REFINER, "fine").path == folder / "fine"
    # of a pipeline's folder, the U-Net alone
    assert found.get(AdapterKind.REFINER, "whole").path == folder / "whole" / "unet"
    assert len({found.get(AdapterKind.REFINER, name).digest for name in ("fine", "whole")}) == 1
    # with spaces, a pickle, and weights of something else
    for name in ("Outlined v2", "old.ckpt", "vae.safetensors"):
        assert name in caplog.text


def test_an_alias_names_a_file_or_a_folder_with_one(folder: Path, tmp_path: Path) -> None:
    inner = tmp_path / "run-7"
    inner.mkdir()
    save_file(LORA, inner / "pytorch_lora_weights.safetensors")
    found = catalogue(f"style={folder}/outlined.safetensors, trained={inner}", tmp_path / "cache")
    assert found.names(AdapterKind.LORA) == ("style", "trained")
    assert found.get(AdapterKind.LORA, "trained").path == inner / "pytorch_lora_weights.safetensors"
    assert found.get(AdapterKind.LORA, "style").digest == found.get(AdapterKind.LORA, "trained").digest


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{folder}/README.md", InputError, "write ALIAS="),
        ("a b={folder}/outlined.safetensors", InputError, "without spaces"),
        ("x={folder}/gone.safetensors", ModelError, "no such file or folder"),
        ("x={folder}/old.ckpt", ModelError, "pickles run code"),
        ("x={folder}/vae.safetensors", ModelError, "no LoRA, embedding, ControlNet or IP-Adapter"),
        ("{folder},outlined={folder}/outlined.safetensors", InputError, "two adapters 'outlined'"),
    ],
)
def test_a_setting_that_is_invalid_has_a_cure(
    folder: Path, tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        catalogue(text.format(folder=folder), tmp_path / "cache")


def test_the_operators_adapters_hide_bundled_ones(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    save_file({**LORA, "unet.b.lora_A.weight": torch.ones(2, 4)}, own)
    found = catalogue(f"outlined={own}", tmp_path / "cache", bundled=folder)
    assert found.get(AdapterKind.LORA, "outlined").path == own
    assert found.names(AdapterKind.EMBEDDING) == ("nested",)
    assert catalogue("", tmp_path / "cache", bundled=tmp_path / "none").announcement() == "{}"


def test_an_unknown_name_is_a_job_error_with_those_that_are_known(folder: Path, tmp_path: Path) -> None:
    found = catalogue(str(folder), tmp_path / "cache")
    with pytest.raises(JobError, match="lora 'edges' is unknown; write outlined") as caught:
        found.get(AdapterKind.LORA, "edges")
    assert caught.value.code == "adapter_unknown"
    assert "none; set LATENTFARM_ADAPTERS" in describe_unknown(AdapterKind.LORA, "x", ())
    assert describe_unknown(AdapterKind.LORA, "x", [str(n) for n in range(25)]).endswith("19 or one of 5 others")


def test_a_file_that_changes_has_its_new_digest_and_one_that_is_gone_fails_its_jobs(
    folder: Path, tmp_path: Path
) -> None:
    found = catalogue(str(folder), tmp_path / "cache")
    before = found.get(AdapterKind.LORA, "outlined").digest
    save_file({**LORA, "unet.b.lora_A.weight": torch.ones(2, 4)}, folder / "outlined.safetensors")
    assert found.get(AdapterKind.LORA, "outlined").digest != before
    (folder / "outlined.safetensors").unlink()
    with pytest.raises(JobError, match="inform the operator") as caught:
        found.get(AdapterKind.LORA, "outlined")
    assert caught.value.code == "adapter_invalid"


def test_a_prefix_of_a_bucket_is_listed_by_headers_and_fetched_once(tmp_path: Path) -> None:
    store = Store(
        {
            "loras/one.safetensors": save(LORA),
            "loras/edges/config.json": b'{"_class_name": "ControlNetModel"}',
            "loras/edges/diffusion_pytorch_model.safetensors": save(CONTROLNET),
            "loras/notes.txt": b"x",
            "lorasx/two.safetensors": save(LORA),
        }
    )
    found = catalogue("s3://farm/loras", tmp_path, store=store)
    assert found.names(AdapterKind.LORA) == ("one",)
    assert store.downloads == []
    first = found.get(AdapterKind.LORA, "one")
    assert first.path.read_bytes() == store.objects["loras/one.safetensors"]
    net = found.get(AdapterKind.CONTROLNET, "edges")
    assert (net.path / "config.json").is_file()
    assert len(store.downloads) == 3
    again = catalogue("s3://farm/loras,named=s3://farm/loras/one.safetensors", tmp_path, store=store)
    assert again.get(AdapterKind.LORA, "named").digest == again.get(AdapterKind.LORA, "one").digest == first.digest
    assert again.get(AdapterKind.CONTROLNET, "edges").digest == net.digest
    assert len(store.downloads) == 3, "another process has them in the cache"


def test_of_a_refiner_in_a_bucket_only_the_unet_is_fetched(tmp_path: Path) -> None:
    store = Store(
        {
            "refiners/fine/model_index.json": b"{}",
            "refiners/fine/unet/config.json": json.dumps(REFINER).encode(),
            "refiners/fine/unet/diffusion_pytorch_model.safetensors": save(UNET),
            "refiners/fine/vae/diffusion_pytorch_model.safetensors": save(UNET),
        }
    )
    found = catalogue("s3://farm/refiners", tmp_path, store=store).get(AdapterKind.REFINER, "fine")
    assert sorted(path.name for path in found.path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert len(store.downloads) == 2


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, True),
        # the base model's: six numbers, and the states of both text encoders
        ({"cross_attention_dim": 2048, "projection_class_embeddings_input_dim": 2816}, False),
        ({"projection_class_embeddings_input_dim": 2816}, False),
        ({"addition_embed_type": None}, False),
        ({"_class_name": "ControlNetModel"}, False),
        ({"cross_attention_dim": [1280, 1280]}, False),
        ({"addition_time_embed_dim": None}, False),
    ],
)
def test_a_refiner_is_known_by_its_config(change: dict[str, Any], found: bool) -> None:  # noqa: FBT001 (a parameter)
    assert is_refiner({**REFINER, **change}) is found


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    store = Store({"loras/one.safetensors": save(LORA)})
    path = catalogue("s3://farm/loras", tmp_path, store=store).get(AdapterKind.LORA, "one").path
    path.write_bytes(path.read_bytes()[:-1])
    found = catalogue("s3://farm/loras", tmp_path, store=store).get(AdapterKind.LORA, "one")
    assert found.path.read_bytes() == store.objects["loras/one.safetensors"]
    assert len(store.downloads) == 2


def test_the_cache_keeps_its_bound_and_what_this_process_uses(tmp_path: Path) -> None:
    store = Store({f"loras/{name}.safetensors": save({**LORA, name: torch.ones(1)}) for name in "abc"})
    first = catalogue("s3://farm/loras", tmp_path, store=store)
    first.get(AdapterKind.LORA, "a")
    second = catalogue("s3://farm/loras", tmp_path, store=store, max_bytes=1)
    paths = [second.get(AdapterKind.LORA, name).path for name in "bc"]
    assert all(path.is_file() for path in paths)
    assert len([path for path in (tmp_path / "adapters").iterdir() if path.is_dir()]) == 2, (
        "that of another process left"
    )


def test_a_broken_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store({"loras/one.safetensors": save(LORA)})
    found = catalogue("s3://farm/loras", tmp_path, store=store)

    def fail(_key: str, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "no space left")

    monkeypatch.setattr(store, "download", fail)
    with pytest.raises(JobError, match="no space left"):
        found.get(AdapterKind.LORA, "one")
    assert list((tmp_path / "adapters").iterdir()) == []
    monkeypatch.undo()
    assert found.get(AdapterKind.LORA, "one").path.is_file()


@given(st.dictionaries(st.text(max_size=40), st.lists(st.integers(0, 9), max_size=4).map(tuple), max_size=5))
def test_any_names_of_tensors_have_a_kind_or_none(tensors: dict[str, tuple[int, ...]]) -> None:
    found = kind_of_tensors({name: TensorInfo("F32", shape, 0) for name, shape in tensors.items()})
    assert found is None or found in AdapterKind
