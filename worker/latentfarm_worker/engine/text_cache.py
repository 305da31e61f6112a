"""A bounded cache of encoded prompts, in device memory and on disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Self

import torch

from latentfarm_worker.host_copy import send
from latentfarm_worker.models.base import Family
from latentfarm_worker.text_encoders.embedding_files import EmbeddingFiles
from latentfarm_worker.text_encoders.placement import EncoderPlacement
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors

#: bytes of device memory. What comes again is mostly a few negative prompts, so 200 prompts of an SDXL model in half
#: precision are enough; a number of prompts is no bound, since one of 64 chunks has 20 MB
MAX_BYTES = 64 * 1024**2
#: of a GPU's memory, if that is more: a prompt of FLUX.1 has 4 MB
_GPU_SHARE = 1 / 64
#: prompts encoded between two signs of life. A CPU takes seconds for each with an encoder of 5 billion parameters
_GROUP = {"cuda": 32}
_GROUP_ON_CPU = 4


class TextCache:
    """The conditioning of the most recently used prompts, at most ``max_bytes`` of it, and what is stored on disk.

    So the empty negative prompt, which most jobs share, is encoded once, and nothing is encoded again after a restart.

    Args:
        encode: a family's ``encode``.
        placement: where its text encoders are.
        files: embeddings on disk [default: none].
        max_bytes: bytes of device memory [default: 64 MiB, or a 64th of a GPU's memory if that is more].
        on_forward: called before each further group of prompts, as a sign of life.

    Attributes:
        encoded: prompts that were encoded so far.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[Prompt]], Sequence[Tensors]],
        *,
        placement: EncoderPlacement | None = None,
        files: EmbeddingFiles | None = None,
        max_bytes: int | None = None,
        on_forward: Callable[[], None] = lambda: None,
    ) -> None:
        self._encode = encode
        self._placement = placement or EncoderPlacement()
        self._files = files
        self._max_bytes = _bound(self._placement.model_device) if max_bytes is None else max_bytes
        self._group = _GROUP.get(self._placement.device.type, _GROUP_ON_CPU)
        self._on_forward = on_forward
        self._texts: OrderedDict[Prompt, Tensors] = OrderedDict()
        self._bytes = 0
        self.encoded = 0

    @classmethod
    def of(cls, family: Family, files: EmbeddingFiles | None, *, on_forward: Callable[[], None]) -> Self:
        """Return the cache of a family's conditioning."""
        encode = partial(_encode, family)
        return cls(encode, placement=family.encoder_placement, files=files, on_forward=on_forward)

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def moves(self) -> bool:
        """Whether ``get`` encodes prompts that follow, because the text encoders are moved for it."""
        return self._placement.placement == "offload"

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all cached tensors."""
        return self._bytes

    def get(self, prompts: Sequence[Prompt], following: Iterable[Prompt] = ()) -> list[Tensors]:
        """Return the conditioning of each prompt. Prompts that are not cached are encoded together.

        If text encoders are moved for it, the prompts ``following`` are encoded as well, as far as there is room.
        """
        wanted = dict.fromkeys(prompts)
        found = {prompt: text for prompt in wanted if (text := self._find(prompt)) is not None}
        missing = [prompt for prompt in wanted if prompt not in found]
        if missing:
            encoded = self._encode_all(missing, self._worth_moving_for(following, wanted))
            found.update((prompt, encoded[prompt]) for prompt in missing)
        for prompt in wanted:
            # in the order of their last use
            self._texts.move_to_end(prompt)
        while self._bytes > self._max_bytes:
            _, dropped = self._texts.popitem(last=False)
            self._bytes -= _bytes_of(dropped)
        return [found[prompt] for prompt in prompts]

    def _find(self, prompt: Prompt) -> Tensors | None:
        """Return what is cached in device memory or on disk."""
        if prompt in self._texts or self._files is None:
            return self._texts.get(prompt)
        stored = self._files.get(prompt)
        if stored is None:
            return None
        device = self._placement.model_device
        return self._add(prompt, {name: send(tensor, device) for name, tensor in stored.items()})

    def _worth_moving_for(self, following: Iterable[Prompt], wanted: Iterable[Prompt]) -> list[Prompt]:
        """Return the prompts to encode while the text encoders are on the device: none if they are always there."""
        if not self.moves:
            return []
        known = {*wanted, *self._texts}
        others = (prompt for prompt in dict.fromkeys(following) if prompt not in known)
        return [prompt for prompt in others if self._files is None or prompt not in self._files]

    def _encode_all(self, missing: Sequence[Prompt], following: Sequence[Prompt]) -> dict[Prompt, Tensors]:
        """Encode prompts in groups, and of those that follow as many groups as there is room for."""
        encoded: dict[Prompt, Tensors] = {}
        new_bytes = 0
        prompts = [*missing, *following]
        with self._placement.ready():
            for at in range(0, len(prompts), self._group):
                if at >= len(missing) and new_bytes >= self._max_bytes:
                    break
                if at:
                    self._on_forward()
                group = prompts[at : at + self._group]
                for prompt, text in zip(group, self._placement.encode(self._encode, group), strict=True):
                    encoded[prompt] = self._add(prompt, text)
                    new_bytes += _bytes_of(text)
                    if self._files is not None:
                        self._files.put(prompt, text)
                self.encoded += len(group)
        return encoded

    def _add(self, prompt: Prompt, text: Tensors) -> Tensors:
        self._texts[prompt] = text
        self._bytes += _bytes_of(text)
        return text


def _encode(family: Family, prompts: Sequence[Prompt]) -> Sequence[Tensors]:
    """Return the conditioning of each prompt, encoded with its LoRAs."""
    if any(prompt.loras for prompt in prompts):
        return family.loras.encode(family.encode, prompts)
    return family.encode(prompts)


def _bound(device: torch.device) -> int:
    if device.type != "cuda":
        return MAX_BYTES
    return max(MAX_BYTES, int(torch.cuda.get_device_properties(device).total_memory * _GPU_SHARE))


def _bytes_of(tensors: Tensors) -> int:
    # a view keeps all of its storage
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
