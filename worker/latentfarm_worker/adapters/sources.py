"""Where an adapter's files are: on this machine, below a prefix of a bucket, or on the hub. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from latentfarm.adapter_kind import AdapterKind
from latentfarm.errors import ModelError
from latentfarm.model_source import is_hub_file, is_hub_id
from latentfarm_worker.adapters.fetched import FetchCache
from latentfarm_worker.adapters.kinds import CONFIG, SUFFIX, UNET, kind_of_files, kind_of_tensors
from latentfarm_worker.checkpoints import hub
from latentfarm_worker.checkpoints.tensor_file import PICKLES, TensorInfo, read_tensor_file

#: how a location in a bucket begins
S3 = "s3://"
#: files of an adapter's folder that are read
_READ = (SUFFIX, ".json")
#: the limit of a header of an object, as many LoRAs have 100 kB
_MAX_HEADER = 16 * 1024**2
#: what the hub has of an adapter: its weights and configs, the image encoder of an IP-Adapter included
_HUB_PATTERNS = ("*.safetensors", "*.json")
#: of a refiner: its U-Net
_REFINER_PATTERNS = (f"{UNET}/*.json", *(f"{UNET}/{each}" for each in hub.weight_patterns("") if "/" not in each))


class StoredObject(Protocol):
    """An object of a bucket: its key, the store's tag of its content, and its bytes."""

    @property
    def key(self) -> str: ...
    @property
    def tag(self) -> str: ...
    @property
    def size(self) -> int: ...


class ObjectStore(Protocol):
    """A bucket whose objects are read as files, as ``latentfarm.storage.object_files.ObjectFiles``."""

    @property
    def name(self) -> str: ...
    def list(self, prefix: str) -> Iterator[StoredObject]: ...
    def read(self, key: str, begin: int, count: int) -> bytes: ...
    def download(self, key: str, path: Path) -> None: ...


class Source(Protocol):
    """One adapter before it is fetched."""

    @property
    def kind(self) -> AdapterKind: ...

    def fetch(self) -> Path:
        """Return the file or folder on this machine."""


@dataclass(frozen=True)
class LocalSource:
    """A file or folder on this machine."""

    kind: AdapterKind
    path: Path

    def fetch(self) -> Path:
        return self.path


@dataclass(frozen=True)
class ObjectSource:
    """Objects of a bucket, fetched into a cache.

    Attributes:
        prefix: what the keys of all its objects begin with.
        file: the file or folder among them that is the adapter, relative to the prefix; empty: all of them are.
    """

    kind: AdapterKind
    store: ObjectStore
    prefix: str
    objects: tuple[StoredObject, ...]
    file: str
    cache: FetchCache

    def fetch(self) -> Path:
        """Return the file or folder in the cache.

        Raises:
            UnavailableError: the store does not answer, or lacks an object.
        """
        content = [[each.key, each.tag, each.size] for each in self.objects]
        folder = self.cache.get(json.dumps([self.store.name, content]), self._fill)
        return folder / self.file if self.file else folder

    def _fill(self, folder: Path) -> None:
        for each in self.objects:
            path = folder / each.key.removeprefix(self.prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.store.download(each.key, path)


class Found(NamedTuple):
    """An adapter of a folder or prefix, by the stem of its name."""

    name: str
    source: Source


def local_source(path: Path) -> Source:
    """Return the adapter that a file or a folder is.

    Raises:
        ModelError: it is none that can be read.
    """
    if path.is_dir():
        names = [each.relative_to(path).as_posix() for each in sorted(path.rglob("*")) if each.is_file()]
        found = kind_of_files(
            names, lambda name: (path / name).read_bytes(), lambda name: read_tensor_file(path / name).tensors
        )
        if found is None:
            raise ModelError(f"{path}: has no adapter; name a folder with {CONFIG} and weights, or a {SUFFIX} file")
        kind, file = found
        return LocalSource(kind, path / file if file else path)
    return LocalSource(_required(kind_of_tensors(read_tensor_file(path).tensors), str(path)), path)


def local_children(folder: Path) -> Iterator[tuple[str, Callable[[], Source]]]:
    """Yield the stem of each file and folder that may be an adapter, with what opens it."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and (any(path.glob(f"*{SUFFIX}")) or (path / UNET / CONFIG).is_file()):
            yield path.name, lambda path=path: local_source(path)  # type: ignore[misc]
        elif path.suffix.lower() in (SUFFIX, *PICKLES):
            yield path.stem, lambda path=path: local_source(path)  # type: ignore[misc]


def hub_source(location: str) -> Source:
    """Return the adapter that a repository of the hub is, or a file of it; it is downloaded.

    Raises:
        ModelError: it is none, or cannot be downloaded.
    """
    if is_hub_file(location):
        return local_source(hub.file(location))
    if is_hub_id(location):
        folder = hub.snapshot(location, patterns=(f"{UNET}/{CONFIG}",))
        # a refiner's repository has tens of gigabytes besides its U-Net
        patterns = _REFINER_PATTERNS if (folder / UNET / CONFIG).is_file() else _HUB_PATTERNS
        return local_source(hub.snapshot(location, patterns=patterns))
    raise ModelError(
        f"{location}: there is no such file or folder; name a {SUFFIX} file, a folder, {S3}BUCKET/KEY, or a hub id "
        "such as organization/repository"
    )


def object_source(store: ObjectStore, key: str, cache: FetchCache) -> Source:
    """Return the adapter that an object or the objects below a prefix are.

    Raises:
        ModelError: there is none.
        UnavailableError: the store does not answer.
    """
    objects = [each for each in store.list(key) if each.key == key or each.key.startswith(f"{key.rstrip('/')}/")]
    return _object_source(store, key, objects, cache)


def object_children(store: ObjectStore, prefix: str, cache: FetchCache) -> Iterator[tuple[str, Callable[[], Source]]]:
    """Yield the stem of each object and folder below a prefix that may be an adapter, with what opens it."""
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    folders: dict[str, list[StoredObject]] = {}
    for each in store.list(prefix):
        folders.setdefault(each.key.removeprefix(prefix).partition("/")[0], []).append(each)
    for name, objects in folders.items():
        key = prefix + name
        if objects[0].key == key and not name.endswith((SUFFIX, *PICKLES)):
            continue
        stem = PurePosixPath(name).stem if objects[0].key == key else name
        yield stem, lambda key=key, objects=objects: _object_source(store, key, objects, cache)  # type: ignore[misc]


def _object_source(store: ObjectStore, key: str, objects: Iterable[StoredObject], cache: FetchCache) -> Source:
    where = f"{S3}{store.name}/{key}"
    objects = tuple(objects)
    if len(objects) == 1 and objects[0].key == key:
        kind = _required(kind_of_tensors(_object_tensors(store, key)), where)
        prefix, _, file = key.rpartition("/")
        return ObjectSource(kind, store, f"{prefix}/" if prefix else "", objects, file, cache)
    prefix = f"{key.rstrip('/')}/"
    inside = tuple(each for each in objects if each.key.startswith(prefix) and each.key.endswith(_READ))
    sizes = {each.key: each.size for each in inside}
    found = kind_of_files(
        [each.key.removeprefix(prefix) for each in inside],
        lambda name: store.read(prefix + name, 0, min(sizes[prefix + name], _MAX_HEADER)),
        lambda name: _object_tensors(store, prefix + name),
    )
    if found is None:
        raise ModelError(f"{where}: has no adapter; name a {SUFFIX} object, or a prefix with {CONFIG} and weights")
    kind, file = found
    place = prefix + file
    kept = tuple(each for each in inside if not file or each.key == place or each.key.startswith(f"{place}/"))
    return ObjectSource(kind, store, prefix, kept, file, cache)


def _object_tensors(store: ObjectStore, key: str) -> Mapping[str, TensorInfo]:
    """Return the tensors of an object's header; their bytes are checked when it is fetched.

    Raises:
        ModelError: it is no safetensors file.
    """
    where = f"{S3}{store.name}/{key}"
    if not key.endswith(SUFFIX):
        raise ModelError(f"{where}: is not a {SUFFIX} file; pickles run code: convert it")
    start = store.read(key, 0, 9)
    length = int.from_bytes(start[:8], "little")
    if start[8:] != b"{" or length > _MAX_HEADER:
        raise ModelError(f"{where}: is not a safetensors file; upload it again")
    try:
        header = json.loads(store.read(key, 8, length))
        return {
            name: TensorInfo(entry["dtype"], tuple(entry["shape"]), 0)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{where}: is damaged: its header is not that of a safetensors file") from error


def _required(kind: AdapterKind | None, where: str) -> AdapterKind:
    if kind is None:
        raise ModelError(f"{where}: is no LoRA, embedding, ControlNet or IP-Adapter by the names of its tensors")
    return kind
