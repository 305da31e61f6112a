"""A single file: the weights of a model in its family's original layout, or in ComfyUI's, with a base for the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentfarm.errors import ModelError
from latentfarm_worker.checkpoints.digest_cache import DigestCache
from latentfarm_worker.checkpoints.folder import FolderCheckpoint, read_json
from latentfarm_worker.checkpoints.layout import FAMILY_NAMES, Layout, recognize
from latentfarm_worker.checkpoints.licence import licence_of_folder
from latentfarm_worker.checkpoints.published import CLIP_PADDING, CLIP_VOCABULARY, CONFIGS, PIPELINES, USUAL_BASES
from latentfarm_worker.checkpoints.sizes import READERS, complete
from latentfarm_worker.checkpoints.tensor_file import TensorFile, TensorInfo
from latentfarm_worker.checkpoints.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch

#: sizes of the denoising model that show whether a base fits: those of its texts and latents
_DISTINCTIVE = ("cross_attention_dim", "joint_attention_dim", "pooled_projection_dim", "cap_feat_dim", "in_channels")
#: parts that a model may be without
_OPTIONAL = frozenset({"text_encoder_3"})
#: names of tensors with which fine-tuned XL models say that they predict the velocity, down to no signal at all
_VELOCITY, _ZERO_SNR = "v_pred", "ztsnr"


class SingleFileCheckpoint:
    """A model in one file.

    Args:
        file: the file's header.
        name: the source as the user wrote it.
        base: the folder with tokenizers, and with the configs and weights that the file lacks, if there is one.
        digests: the digests of weights that are known.

    Raises:
        ModelError: the file is no model that can be read, or the base is another model's.
    """

    def __init__(self, file: TensorFile, *, name: str, base: Path | None, digests: DigestCache) -> None:
        self.file, self.name, self.base, self._digests = file, name, base, digests
        self.layout: Layout = recognize(file)
        whole = base is not None and (base / "model_index.json").is_file()
        self._folder = FolderCheckpoint(base, name=str(base), digests=digests) if base is not None and whole else None
        self._check_base()

    @property
    def kind(self) -> str:
        """The key of the published configs: the family, and ``schnell`` for FLUX.1 without embedded guidance."""
        if self.layout.family == "flux" and not self._sizes(self.layout.denoiser)["guidance_embeds"]:
            return "schnell"
        return self.layout.family

    @property
    def usual_base(self) -> str:
        """The hub id of a base that fits."""
        return USUAL_BASES[self.kind]

    @cached_property
    def index(self) -> dict[str, Any]:
        """Return the content that ``model_index.json`` would have."""
        if self._folder is not None:
            # where the base came from means nothing for the file
            return {name: entry for name, entry in self._folder.index.items() if name != "_name_or_path"}
        family = self.layout.family
        settings = self._published("model_index") or {}
        return {"_class_name": PIPELINES[family], **settings}

    @property
    def licence(self) -> str | None:
        """The licence in the file's metadata, else that of the model card beside the file."""
        return self.file.licence or licence_of_folder(self.file.path.parent)

    def has(self, part: str) -> bool:
        """Return whether the file or its base has a part."""
        return part in self.layout.parts or (self._folder is not None and self._folder.has(part))

    def where(self, part: str) -> Path:
        """Return the file, or the path of the base's config, for messages."""
        if part in self.layout.parts or self._folder is None:
            return self.file.path
        return self._folder.where(part)

    def config(self, part: str) -> dict[str, Any]:
        """Return the config of a part: the base's, else the published one, with the sizes that the tensors have.

        Raises:
            ModelError: neither the base nor this version has it.
        """
        config = self._base_config(part)
        if config is None:
            config = self._published(part)
        if config is None:
            raise self._needs_base(f"the config of {part}")
        if part == "scheduler":
            return {**config, **self._prediction()}
        return complete(config, self._sizes(part)) if part in self.layout.parts else config

    def tensors(self, part: str) -> list[TensorInfo]:
        """Return what the headers say about a part's tensors.

        Raises:
            ModelError: neither the file nor the base has the part.
        """
        if part in self.layout.parts:
            prefix = self.layout.parts[part]
            return [tensor for name, tensor in self.file.tensors.items() if name.startswith(prefix)]
        return self._base_of(part).tensors(part)

    def place(self, part: str) -> Path:
        """Return the file or the base's folder with a part's weights.

        Raises:
            ModelError: neither has the part.
        """
        return self.file.path if part in self.layout.parts else self._base_of(part).place(part)

    def required(self) -> list[str]:
        """Return the parts that the base must have."""
        return [part for part in self.layout.lacks if part not in _OPTIONAL]

    def load_model(self, part: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """Load a part's module, of a diffusers or transformers class, on the CPU: from the file, else from the base.

        Raises:
            ModelError: neither has the part, or tensors are missing, or do not fit the config.
        """
        if part not in self.layout.parts:
            return self._base_of(part).load_model(part, kind, dtype)
        from latentfarm_worker.checkpoints.assembly import build
        from latentfarm_worker.checkpoints.conversion import convert
        from latentfarm_worker.checkpoints.weights import read_weights

        config = self.config(part)
        where = f"{self.file.path}: {part}"
        tensors = read_weights(self.file, self.layout.parts[part])
        try:
            converted = convert(self.layout.family, part, tensors, config)
        except KeyError as error:
            raise ModelError(f"{where}: lacks the tensor {error}; download the file again, or use another") from error
        except (IndexError, ValueError, RuntimeError, AttributeError, TypeError) as error:
            raise ModelError(f"{where}: its tensors do not fit {FAMILY_NAMES[self.layout.family]}: {error}") from error
        module: torch.nn.Module = build(kind, config, converted, dtype, where)
        return module

    def load_tokenizer(self, part: str, kind: Any) -> Any:
        """Load a tokenizer of a transformers class from the base, or make one with CLIP's published vocabulary.

        Raises:
            ModelError: there is no base, or it has no such tokenizer, and the vocabulary is another.
        """
        if self.base is not None and (self.base / part).is_dir():
            return load_tokenizer(self.base, part, kind)
        if not self._reads_published_vocabulary:
            raise self._needs_base(f"{part}/")
        from latentfarm_worker.checkpoints.clip_vocabulary import make_tokenizer

        return make_tokenizer(kind, pad=CLIP_PADDING[self.layout.family][part])

    def require_base(self) -> None:
        """Check that there are tokenizers and all parts, before gigabytes are read.

        Raises:
            ModelError: something is missing.
        """
        lacks = self.required() if self._folder is None else []
        parts = f"the parts {', '.join(lacks)}, which it lacks" if lacks else ""
        there = self.base is not None and (self.base / "tokenizer").is_dir()
        if not (there or self._reads_published_vocabulary):
            raise self._needs_base(" and ".join(filter(None, ("its tokenizers", parts))))
        if lacks:
            raise self._needs_base(parts)

    @property
    def _reads_published_vocabulary(self) -> bool:
        """Whether all the tokenizers of the family have CLIP's vocabulary, and the file's text encoders too."""
        encoders = [part for part in ("text_encoder", "text_encoder_2") if part in self.layout.parts]
        sizes = [self._sizes(part).get("vocab_size") for part in encoders]
        return self.layout.family in CLIP_PADDING and all(size == CLIP_VOCABULARY for size in sizes)

    def digest(self, parts: Iterable[str]) -> str:
        """Return the sha256 over the contents of the file and of the base's weights, as far as ``parts`` use them.

        Raises:
            ModelError: the base lacks a part.
        """
        digest = hashlib.sha256()
        for part in sorted(parts):
            if part in self.layout.parts:
                digest.update(f"{part} {self.layout.parts[part]} {self._digests.sha256(self.file.path)}\n".encode())
            else:
                digest.update(f"{part} {self._base_of(part).digest([part])}\n".encode())
        return digest.hexdigest()

    def _base_of(self, part: str) -> FolderCheckpoint:
        if self._folder is None:
            raise self._needs_base(f"the part {part}, which the file lacks")
        return self._folder

    def _sizes(self, part: str) -> dict[str, Any]:
        """Return the sizes of a part by its tensors; nothing where they do not show it."""
        prefix, read = self.layout.parts[part], READERS[self.layout.family].get(part)
        if read is None:
            return {}
        shapes = {
            name.removeprefix(prefix): tensor.shape
            for name, tensor in self.file.tensors.items()
            if name.startswith(prefix)
        }
        try:
            return read(shapes)
        except KeyError as error:
            raise ModelError(f"{self.file.path}: {part} lacks the tensor {error}; download it again") from error
        except (IndexError, ValueError, ZeroDivisionError) as error:
            raise ModelError(f"{self.file.path}: {part} has tensors of other shapes; download it again") from error

    def _published(self, part: str) -> dict[str, Any] | None:
        by_family: Mapping[str, dict[str, Any]] = CONFIGS.get(self.layout.family, {})
        found = CONFIGS.get(self.kind, {}).get(part) or by_family.get(part)
        return None if found is None else dict(found)

    def _base_config(self, part: str) -> dict[str, Any] | None:
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        path = None if self.base is None else self.base / part / name
        return read_json(path) if path is not None and path.is_file() else None

    def _prediction(self) -> dict[str, Any]:
        """Return what the file states about the model's prediction."""
        found: dict[str, Any] = {}
        if _VELOCITY in self.file.tensors or self.file.metadata.get("modelspec.prediction_type") == "v":
            found["prediction_type"] = "v_prediction"
        if _ZERO_SNR in self.file.tensors:
            found["rescale_betas_zero_snr"] = True
        return found

    def _check_base(self) -> None:
        """Check that the base is of the file's family and takes the same texts and latents.

        Raises:
            ModelError: it is another model's.
        """
        wanted, name = PIPELINES[self.layout.family], FAMILY_NAMES[self.layout.family]
        cure = f"name a base of {name} with --base, such as {self.usual_base}"
        if self._folder is not None and self._folder.index.get("_class_name") != wanted:
            raise ModelError(
                f"{self.file.path}: is a model of {name}, but its base {self.base} is one of "
                f"{self._folder.index.get('_class_name')}; {cure}"
            )
        config, sizes = self._base_config(self.layout.denoiser) or {}, self._sizes(self.layout.denoiser)
        for key in _DISTINCTIVE:
            if key in sizes and sizes[key] != config.get(key, sizes[key]):
                raise ModelError(
                    f"{self.file.path}: {key} is {sizes[key]}, but {config[key]} in its base {self.base}: they are "
                    f"models of other families or sizes; {cure}"
                )

    def _needs_base(self, what: str) -> ModelError:
        found = f"its base {self.base} has not" if self.base is not None else "there is none in the local hub cache"
        return ModelError(
            f"{self.file.path}: a single file needs a base for {what}, and {found}; name a folder or hub id with "
            f"--base, such as --base {self.usual_base}"
        )
