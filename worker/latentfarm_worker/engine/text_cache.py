"""A bounded cache of encoded prompts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from latentfarm_worker.models.text_encoder import Prompt, Tensors

#: bytes of device memory. What comes again is mostly a few negative prompts, so 200 prompts of an SDXL model in half
#: precision are enough; a number of prompts is no bound, since one of 64 chunks has 20 MB
MAX_BYTES = 64 * 1024**2


class TextCache:
    """The conditioning of the most recently used prompts, at most ``max_bytes`` of it.

    So the empty negative prompt, which most jobs share, is encoded once.
    """

    def __init__(self, encode: Callable[[Sequence[Prompt]], Sequence[Tensors]], *, max_bytes: int = MAX_BYTES) -> None:
        self._encode = encode
        self._max_bytes = max_bytes
        self._texts: OrderedDict[Prompt, Tensors] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all cached tensors."""
        return self._bytes

    def get(self, prompts: Sequence[Prompt]) -> list[Tensors]:
        """Return the conditioning of each prompt. Prompts that are not cached are encoded together."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        found = {prompt: self._texts[prompt] for prompt in prompts if prompt in self._texts}
        new = dict(zip(missing, self._encode(missing), strict=True)) if missing else {}
        self._bytes += sum(map(_bytes_of, new.values()))
        self._texts.update(new)
        found.update(new)
        for prompt in found:
            self._texts.move_to_end(prompt)
        while self._bytes > self._max_bytes:
            _, dropped = self._texts.popitem(last=False)
            self._bytes -= _bytes_of(dropped)
        return [found[prompt] for prompt in prompts]


def _bytes_of(tensors: Tensors) -> int:
    # a view keeps all of its storage
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
