"""The adapters that a worker knows, by kind and the operator's alias."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from latentfarm.adapter_kind import AdapterKind, describe_unknown
from latentfarm.edit_fields import check_adapter_name
from latentfarm.errors import InputError, JobError, ModelError
from latentfarm_worker.adapters.fetched import FetchCache
from latentfarm_worker.adapters.sources import (
    S3,
    ObjectStore,
    Source,
    hub_source,
    local_children,
    local_source,
    object_children,
    object_source,
)
from latentfarm_worker.checkpoints.digest_cache import DigestCache

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adapter:
    """One adapter on this machine.

    Attributes:
        alias: the operator's name.
        kind: what it is.
        path: its safetensors file; the folder of a ControlNet or of an IP-Adapter with its image encoder.
        digest: the sha256 of the file; of a folder, over the names and the sha256 of its files.
    """

    alias: str
    kind: AdapterKind
    path: Path
    digest: str


class Catalogue:
    """The adapters of one model's worker. They are listed once; what is in a bucket is fetched when a job names it.

    Thread-safe.

    Args:
        sources: the adapters by kind and alias.
        digests: the digests of files.
    """

    def __init__(
        self, sources: dict[tuple[AdapterKind, str], Source] | None = None, *, digests: DigestCache | None = None
    ) -> None:
        self._sources = sources or {}
        self._digests = digests or DigestCache()
        self._lock = Lock()
        #: by path, size and time of the last change
        self._known: dict[tuple[Path, int, int], str] = {}

    def names(self, kind: AdapterKind) -> tuple[str, ...]:
        """Return the aliases of a kind, in order."""
        return tuple(sorted(alias for each, alias in self._sources if each is kind))

    def announcement(self) -> str:
        """Return the aliases by kind as JSON, for the ledger."""
        return json.dumps({kind.value: self.names(kind) for kind in AdapterKind if self.names(kind)})

    def get(self, kind: AdapterKind, alias: str) -> Adapter:
        """Return an adapter; what is in a bucket is fetched unless the cache has it.

        A file that was changed since the last call has its new digest.

        Raises:
            JobError: code ``adapter_unknown``: there is none of this kind and alias; ``adapter_invalid``: its files are
                gone or cannot be read.
            UnavailableError: the bucket does not answer.
        """
        source = self._sources.get((kind, alias))
        if source is None:
            raise JobError("adapter_unknown", describe_unknown(kind, alias, self.names(kind)))
        try:
            path = source.fetch()
            files = [path] if path.is_file() else _files_of(path)
            if not files:
                raise FileNotFoundError(2, "there is no such file", str(path))
            if path.is_file():
                digest = self._sha256(path)
            else:
                lines = (f"{each.relative_to(path).as_posix()}\0{self._sha256(each)}\n" for each in files)
                digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        except (OSError, ModelError) as error:
            raise JobError(
                "adapter_invalid", f"{kind} {alias!r} cannot be read: {error}; inform the operator"
            ) from error
        return Adapter(alias, kind, path, digest)

    def _sha256(self, path: Path) -> str:
        found = path.stat()
        key = (path, found.st_size, found.st_mtime_ns)
        with self._lock:
            if key not in self._known:
                self._known[key] = self._digests.sha256(path)
            return self._known[key]


def open_catalogue(
    text: str,
    *,
    cache: Path,
    max_bytes: int,
    open_store: Callable[[str], ObjectStore],
    bundled: Path | None = None,
) -> Catalogue:
    """Return the adapters that a setting names.

    Args:
        text: ``ALIAS=SOURCE`` of adapters, and folders or ``s3://BUCKET/PREFIX`` in which each file and each folder
            with weights is an adapter by its stem; separated by commas. A source is a file, a folder,
            ``s3://BUCKET/KEY``, a hub id, or a hub id and a file in it.
        cache: the folder for what is fetched and for digests.
        max_bytes: bytes of what is fetched.
        open_store: returns the store of a bucket's name.
        bundled: a folder of adapters of the bundled model; those of the setting take precedence.

    Raises:
        InputError: the text is none of these, or two adapters have one alias.
        ModelError: an adapter that is named cannot be read.
        UnavailableError: a bucket does not answer.
    """
    opener = _Opener(open_store, FetchCache(cache / "adapters", max_bytes=max_bytes))
    sources: dict[tuple[AdapterKind, str], Source] = {}
    for entry in filter(None, (each.strip() for each in text.split(","))):
        for alias, source in opener.open(entry):
            if (source.kind, alias) in sources:
                raise InputError(f"LATENTFARM_ADAPTERS has two adapters {alias!r}; write ALIAS=SOURCE for one of them")
            sources[source.kind, alias] = source
    if bundled is not None and bundled.is_dir():
        for alias, source in opener.open(str(bundled)):
            sources.setdefault((source.kind, alias), source)
    return Catalogue(sources, digests=DigestCache(cache))


class _Opener:
    """Opens the entries of the setting."""

    def __init__(self, open_store: Callable[[str], ObjectStore], cache: FetchCache) -> None:
        self._open_store, self._cache = open_store, cache

    def open(self, entry: str) -> Iterator[tuple[str, Source]]:
        """Yield the adapters of an entry: one that is named, or all of a folder or prefix."""
        alias, equals, location = entry.partition("=")
        # an equals sign after a slash belongs to a path
        if equals and "/" not in alias:
            yield _checked(alias), self._named(location)
            return
        if entry.startswith(S3):
            bucket, _, prefix = entry.removeprefix(S3).partition("/")
            children = object_children(self._open_store(bucket), prefix, self._cache)
        elif Path(entry).is_dir():
            children = local_children(Path(entry))
        else:
            raise InputError(f"LATENTFARM_ADAPTERS: {entry!r} is no folder and no {S3} prefix; write ALIAS={entry}")
        for name, open_child in children:
            try:
                yield _checked(name), open_child()
            except (InputError, ModelError) as error:
                # of hundreds of files, one that cannot be used is no reason not to start
                log.warning("an adapter is left out: %s", error)

    def _named(self, location: str) -> Source:
        if location.startswith(S3):
            bucket, _, key = location.removeprefix(S3).partition("/")
            return object_source(self._open_store(bucket), key, self._cache)
        path = Path(location)
        return local_source(path) if path.exists() else hub_source(location)


def _checked(alias: str) -> str:
    try:
        return check_adapter_name(alias)
    except ValueError as error:
        raise InputError(f"adapter {alias!r} {error}") from None


def _files_of(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json"))
    return sorted(path for path in found if not path.name.startswith("."))
