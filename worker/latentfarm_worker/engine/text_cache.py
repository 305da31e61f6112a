"""A bounded cache of encoded prompts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from latentfarm_worker.models.text_encoder import Prompt, Tensors


class TextCache:
    """The conditioning of the most recently used prompts, at most ``size`` [default: 256].

    So the empty negative prompt, which most jobs share, is encoded once.
    """

    def __init__(self, encode: Callable[[Sequence[Prompt]], Sequence[Tensors]], size: int = 256) -> None:
        self._encode = encode
        self._size = size
        self._texts: OrderedDict[Prompt, Tensors] = OrderedDict()

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, prompts: Sequence[Prompt]) -> list[Tensors]:
        """Return the conditioning of each prompt. Prompts that are not cached are encoded together."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        found = {prompt: self._texts[prompt] for prompt in prompts if prompt in self._texts}
        found.update(zip(missing, self._encode(missing), strict=True) if missing else ())
        for prompt, tensors in found.items():
            self._texts[prompt] = tensors
            self._texts.move_to_end(prompt)
        while len(self._texts) > self._size:
            self._texts.popitem(last=False)
        return [found[prompt] for prompt in prompts]
