"""Prompts are encoded once: in memory, on disk, and while moved text encoders are on the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from latentfarm_worker.engine.text_cache import TextCache
from latentfarm_worker.text_encoders.embedding_files import EmbeddingFiles
from latentfarm_worker.text_encoders.placement import EncoderPlacement, Placement
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors, TokenizedPrompt

pytestmark = pytest.mark.unit

META = torch.device("meta")


def prompts(*numbers: int) -> list[Prompt]:
    return [Prompt(TokenizedPrompt(((number,),), count=3)) for number in numbers]


class Encoder:
    """Encodes a prompt as its token, and remembers the calls."""

    def __init__(self) -> None:
        self.weight = torch.nn.Linear(4, 4)
        self.calls: list[list[int]] = []
        self.devices: list[str] = []

    def encode(self, prompts: Sequence[Prompt]) -> list[Tensors]:
        self.calls.append([prompt.tokens.chunks[0][0] for prompt in prompts])
        self.devices.append(self.weight.weight.device.type)
        return [{"encoder_hidden_states": torch.full((4,), float(number))} for number in self.calls[-1]]

    def cache(self, placement: Placement, *, files: EmbeddingFiles | None = None, max_bytes: int = 2**20) -> TextCache:
        placed = EncoderPlacement([self.weight], META, placement)
        return TextCache(self.encode, placement=placed, files=files, max_bytes=max_bytes)


def files(folder: Path) -> EmbeddingFiles:
    return EmbeddingFiles(folder, conditions={}, max_bytes=2**20)


def test_what_is_on_disk_is_not_encoded_after_a_restart_and_has_the_same_bits(tmp_path: Path) -> None:
    first, second = Encoder(), Encoder()
    stored = files(tmp_path)
    cache = TextCache(first.encode, files=stored)
    before = cache.get(prompts(1, 2, 1))
    stored.flush()
    restarted = TextCache(second.encode, files=files(tmp_path))
    after = restarted.get(prompts(1, 2, 1, 3))
    assert first.calls == [[1, 2]]
    assert second.calls == [[3]]
    assert restarted.encoded == 1
    assert [text["encoder_hidden_states"].tolist() for text in after[:3]] == [
        text["encoder_hidden_states"].tolist() for text in before
    ]


def test_what_memory_drops_is_read_from_disk(tmp_path: Path) -> None:
    encoder = Encoder()
    cache = TextCache(encoder.encode, files=files(tmp_path), max_bytes=2 * 16)
    for _ in range(3):
        for number in range(10):
            [text] = cache.get(prompts(number))
            assert text["encoder_hidden_states"].tolist() == [number] * 4
            assert cache.size_bytes <= 2 * 16
    assert encoder.calls == [[number] for number in range(10)]


def test_resident_encoders_encode_only_what_is_wanted() -> None:
    encoder = Encoder()
    cache = encoder.cache("resident")
    cache.get(prompts(1), following=prompts(2, 3))
    assert encoder.calls == [[1]]


def test_moved_encoders_encode_what_follows_too_once_and_are_on_the_device_only_meanwhile() -> None:
    encoder = Encoder()
    cache = encoder.cache("offload")
    cache.get(prompts(1, 2), following=prompts(2, 3, 4, 3))
    assert encoder.calls == [[1, 2, 3, 4]]
    assert encoder.devices == ["meta"]
    assert encoder.weight.weight.device.type == "cpu"
    cache.get(prompts(3), following=prompts(5))
    assert encoder.calls == [[1, 2, 3, 4]], "nothing is missing, so nothing is moved"
    cache.get(prompts(6), following=prompts(4, 7))
    assert encoder.calls[1:] == [[6, 7]]


def test_encoders_on_the_host_compute_there_and_their_embeddings_are_sent() -> None:
    encoder = Encoder()
    placed = EncoderPlacement([encoder.weight], META, "cpu")
    assert (placed.device.type, placed.model_device) == ("cpu", META)
    assert encoder.weight.weight.device.type == "cpu"
    assert not placed.is_resident


def test_what_follows_is_encoded_in_groups_with_a_sign_of_life_until_there_is_no_room() -> None:
    encoder = Encoder()
    signs: list[int] = []
    placed = EncoderPlacement([encoder.weight], META, "offload")
    cache = TextCache(
        encoder.encode, placement=placed, max_bytes=10 * 16, on_forward=lambda: signs.append(len(encoder.calls))
    )
    cache.get(prompts(1, 2), following=prompts(*range(3, 30)))
    assert encoder.calls == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    assert signs == [1, 2]
    assert cache.size_bytes <= 10 * 16
    cache.get(prompts(*range(100, 120)))
    assert [number for call in encoder.calls[3:] for number in call] == [*range(100, 120)], "what is wanted always is"


def test_encoders_come_back_to_the_host_when_their_call_breaks() -> None:
    encoder = Encoder()

    def breaks(prompts: Sequence[Prompt]) -> list[Tensors]:
        encoder.encode(prompts)
        raise torch.OutOfMemoryError("CUDA out of memory")

    cache = TextCache(breaks, placement=EncoderPlacement([encoder.weight], META, "offload"))
    with pytest.raises(torch.OutOfMemoryError):
        cache.get(prompts(1))
    assert encoder.devices == ["meta"]
    assert encoder.weight.weight.device.type == "cpu"
    assert len(cache) == 0
    assert cache.encoded == 0
