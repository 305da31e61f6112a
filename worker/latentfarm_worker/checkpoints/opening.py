"""Open the checkpoint that a source names: a folder, a single file, or the hub's; with another VAE, if it names one."""

from __future__ import annotations

from pathlib import Path

from latentfarm.errors import ModelError
from latentfarm.model_source import ModelSource, is_hub_file, is_hub_id, parse_source
from latentfarm_worker.checkpoints import hub
from latentfarm_worker.checkpoints.base import Checkpoint
from latentfarm_worker.checkpoints.digest_cache import DigestCache
from latentfarm_worker.checkpoints.folder import FolderCheckpoint
from latentfarm_worker.checkpoints.headers import read_header
from latentfarm_worker.checkpoints.other_vae import OtherVae
from latentfarm_worker.checkpoints.single_file import SingleFileCheckpoint


def open_checkpoint(source: str | Path, *, cache: Path | None = None) -> Checkpoint:
    """Return the model that a source names, as ``model_spec.ModelSource`` is written (``HF_HUB_OFFLINE`` is honoured).

    The folder ``cache`` keeps the digests of the weights for the next start.

    Raises:
        ModelError: the model does not exist, contains custom code, or is a single file that lacks something.
    """
    parsed = ModelSource(str(source)) if isinstance(source, Path) else parse_source(source)
    digests = DigestCache(cache)
    path = locate(parsed)
    checkpoint: Checkpoint
    if path.is_dir():
        if parsed.base:
            raise ModelError(f"{source}: a diffusers folder has its tokenizers and configs; leave out --base")
        checkpoint = FolderCheckpoint(path, name=str(source), digests=digests, variant=parsed.variant)
    else:
        checkpoint = open_single_file(parsed, path, digests)
        checkpoint.require_base()
    return OtherVae(checkpoint, vae_path(parsed.vae), digests=digests) if parsed.vae else checkpoint


def open_single_file(
    source: ModelSource, path: Path, digests: DigestCache, *, local_only: bool = False
) -> SingleFileCheckpoint:
    """Return a single file's checkpoint with its base: the one named, else one that is on this machine.

    A base that is named is downloaded, unless ``local_only``.

    Raises:
        ModelError: the file is no model that can be read, or the base is not there, or is another model's.
    """
    if source.variant:
        raise ModelError(f"{source.location}: a single file has no variants; leave out --variant, or name another file")
    file = read_header(path)
    alone = SingleFileCheckpoint(file, name=str(source), base=None, digests=digests)
    base = _base_path(source.base, alone, local_only=local_only) if source.base else _near_base(source, path, alone)
    return alone if base is None else SingleFileCheckpoint(file, name=str(source), base=base, digests=digests)


def locate(source: ModelSource, *, local_only: bool = False) -> Path:
    """Return the folder or file of a source; what is on the hub comes from the local cache or is downloaded.

    If ``local_only``, nothing is downloaded.

    Raises:
        ModelError: there is no such folder, file or hub model.
    """
    path = Path(source.location)
    if path.is_file() or (path / "model_index.json").is_file():
        return path
    is_id = is_hub_id(source.location)
    if path.exists() or not (is_id or is_hub_file(source.location)):
        raise ModelError(
            f"{source.location}: no model_index.json there; name a folder saved by save_pretrained, a .safetensors or "
            ".gguf file, or a hub id such as CompVis/stable-diffusion-v1-4"
        )
    if not is_id:
        return hub.file(source.location, revision=source.revision, local_only=local_only)

    def get(*patterns: str) -> Path:
        return hub.snapshot(source.location, revision=source.revision, patterns=patterns, local_only=local_only)

    folder = get(*hub.TEXTS, *hub.weight_patterns(source.variant))
    if source.variant and not local_only and _lacks_weights(folder):
        # diffusers too loads a part's plain weights where it has no others
        folder = get(*hub.weight_patterns(""))
    return folder


def _lacks_weights(folder: Path) -> bool:
    configs = (path.parent for path in folder.glob("*/config.json"))
    return any(not list(part.glob("*.safetensors")) for part in configs)


def _base_path(base: str, file: SingleFileCheckpoint, *, local_only: bool) -> Path:
    path = Path(base)
    if path.is_dir():
        return path
    if not is_hub_id(base):
        raise ModelError(f"{base}: is no folder and no hub id; name the base of the file with --base")
    weights = [
        pattern.replace("*/", f"{part}/")
        for part in file.layout.lacks
        for pattern in hub.weight_patterns("")
        if pattern.startswith("*/")
    ]
    return hub.snapshot(base, patterns=(*hub.TEXTS, *weights), local_only=local_only)


def _near_base(source: ModelSource, path: Path, file: SingleFileCheckpoint) -> Path | None:
    """Return a base that was not named: the folder or repository of the file, else the usual one in the hub's cache."""
    if (path.parent / "model_index.json").is_file():
        return path.parent
    repositories = [file.usual_base]
    if not Path(source.location).exists():
        repositories.insert(0, "/".join(source.location.split("/")[:2]))
    found = (hub.cached(each) for each in repositories)
    return next((each for each in found if each is not None and (each / "tokenizer").is_dir()), None)


def vae_path(vae: str, *, local_only: bool = False) -> Path:
    """Return the folder or file of a VAE, as ``locate`` does.

    Raises:
        ModelError: there is none.
    """
    path = Path(vae)
    if path.exists():
        return path
    if is_hub_id(vae):
        weights = (each for each in hub.weight_patterns("") if each.startswith(("vae/", "model", "diffusion")))
        return hub.snapshot(vae, patterns=("config.json", "vae/*", *weights), local_only=local_only)
    if is_hub_file(vae):
        return hub.file(vae, local_only=local_only)
    raise ModelError(f"{vae}: no such folder or file; name a VAE with --vae")
