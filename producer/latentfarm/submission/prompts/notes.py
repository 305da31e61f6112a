"""Count what was mapped, dropped or chosen while prompts were read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

#: distinct sentences; a file with more of them has other problems
_MAX_SENTENCES = 100
_OTHERS = "other names and values were mapped or passed over"


class Notes(Mapping[str, int]):
    """Numbers of rows by sentence, such as ``'steps' is read as num_inference_steps``."""

    def __init__(self) -> None:
        self._rows: Counter[str] = Counter()

    def add(self, sentence: str) -> None:
        """Count a row. After 100 distinct sentences, the others are counted together."""
        known = sentence in self._rows or len(self._rows) < _MAX_SENTENCES
        self._rows[sentence if known else _OTHERS] += 1

    def clear(self) -> None:
        """Forget all rows: the source is read from the beginning."""
        self._rows.clear()

    def __getitem__(self, sentence: str) -> int:
        return self._rows[sentence]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
