"""Models of the Hugging Face hub: in the local cache, else downloaded into it as ``hf download`` does.

A broken connection goes on where it ended; files that are complete are not downloaded again. ``HF_HUB_OFFLINE``,
``HF_TOKEN``, ``HF_HOME`` and ``HF_ENDPOINT`` are honoured.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from latentfarm.errors import ModelError

log = logging.getLogger(__name__)

#: configs, tokenizers and the model card with its licence
TEXTS = ("model_index.json", "*.json", "*.txt", "*.model", "*.jinja", "README.md")
_IGNORED = ("safety_checker/*", "feature_extractor/*", "vae_1_0/*", "*onnx*", "*openvino*", "*flax*")
_LOG_INTERVAL_S = 10.0


def weight_patterns(variant: str) -> tuple[str, ...]:
    """Return the patterns of the weights' names, whole or in shards, without a variant or of it."""
    stems = ("model", "diffusion_pytorch_model")
    endings: tuple[str, ...] = (".safetensors", "-?????-of-?????.safetensors")
    if variant:
        # diffusers and transformers put the variant at different places of a shard's name
        endings = (
            f".{variant}.safetensors",
            f".{variant}-?????-of-?????.safetensors",
            f"-?????-of-?????.{variant}.safetensors",
        )
    return tuple(f"{folder}{stem}{ending}" for folder in ("", "*/") for stem in stems for ending in endings)


def snapshot(hub_id: str, *, revision: str = "", patterns: Sequence[str], local_only: bool = False) -> Path:
    """Return the folder of a repository with the files of some patterns, from the cache or downloaded.

    Raises:
        ModelError: it is not in the cache, and cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    def get() -> str:
        return snapshot_download(
            hub_id,
            revision=revision or None,
            allow_patterns=list(patterns),
            ignore_patterns=list(_IGNORED),
            local_files_only=local_only,
            tqdm_class=_progress_class(hub_id),
        )

    return _path(hub_id, revision, get, local_only=local_only)


def cached(hub_id: str, *, revision: str = "") -> Path | None:
    """Return the folder of a repository in the local cache, which may lack files; None if it is not there."""
    try:
        return snapshot(hub_id, revision=revision, patterns=TEXTS, local_only=True)
    except ModelError:
        return None


def file(source: str, *, revision: str = "", local_only: bool = False) -> Path:
    """Return a file of a repository, ``ORGANIZATION/REPOSITORY/PATH``, from the cache or downloaded.

    Raises:
        ModelError: it is not in the cache, and cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    organization, repository, path = source.split("/", 2)
    hub_id = f"{organization}/{repository}"
    return _path(
        hub_id,
        revision,
        lambda: hf_hub_download(
            hub_id,
            path,
            revision=revision or None,
            local_files_only=local_only,
            tqdm_class=_progress_class(path),
        ),
        file=path,
        local_only=local_only,
    )


def _path(hub_id: str, revision: str, get: Callable[[], Any], *, file: str = "", local_only: bool) -> Path:
    from huggingface_hub.errors import EntryNotFoundError, HTTPError  # type: ignore[attr-defined]

    try:
        return Path(get())
    except (OSError, ValueError, HTTPError, EntryNotFoundError) as error:
        words = ["hf download", hub_id, *([file] if file else []), *(["--revision", revision] if revision else [])]
        place = "/".join(filter(None, (hub_id, file)))
        if local_only:
            raise ModelError(f"{place}: not in the local hub cache; run `{' '.join(words)}` first") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"{place}: not in the local hub cache, and the hub does not serve it ({reason[:300]}); check the id, the "
            f"network, HF_TOKEN and HF_HUB_OFFLINE; without a network, run `{' '.join(words)} --local-dir FOLDER` "
            "elsewhere and name the copied folder"
        ) from error


def _progress_class(name: str) -> Any:
    """Return a progress bar's class that writes lines into the log, as a worker has no terminal."""
    from huggingface_hub.utils.tqdm import tqdm

    class LogLines(tqdm):
        """Progress of one download."""

        #: without a thread that watches for slow bars: no bar is drawn
        monitor_interval = 0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._logged_at = time.monotonic()
            kwargs.pop("name", None)
            # not the hub's own: a model that was loaded before has disabled its bars
            super(tqdm, self).__init__(*args, **{**kwargs, "disable": False, "mininterval": 1.0})

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            """Log the bytes at most every ten seconds, instead of drawing a bar."""
            del msg, pos
            now = time.monotonic()
            if self.unit == "B" and self.n and now - self._logged_at >= _LOG_INTERVAL_S:
                self._logged_at = now
                total = f" of {self.total / 1e6:.0f}" if self.total else ""
                log.info("%s: downloaded %.0f%s MB", name, self.n / 1e6, total)

        def close(self) -> None:
            """Log the end of a download."""
            if self.unit == "B" and self.n and not getattr(self, "disable", True):
                log.info("%s: downloaded %.0f MB", name, self.n / 1e6)
            super().close()

        def clear(self, *args: Any, **kwargs: Any) -> None:
            """Draw nothing."""

    return LogLines
