"""Embeddings on disk: the bytes that were stored, within a bound, through damage, kills and other processes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from tests.conftest import REPOSITORY

from latentfarm_worker.text_encoders.embedding_files import EmbeddingFiles, _decode
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors, TokenizedPrompt

pytestmark = pytest.mark.unit

CONDITIONS = {"digest": "ab" * 32, "dtype": "bfloat16"}


def prompt(number: int) -> Prompt:
    return Prompt(TokenizedPrompt(((number,),), count=3))


def embedding(number: int = 0, *, size: int = 24) -> Tensors:
    values = torch.randn(size, generator=torch.Generator().manual_seed(number))
    special = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    return {
        "encoder_hidden_states": values.view(-1, 4).bfloat16(),
        "text_embeds": torch.cat([values[:4], special]),
        "length": torch.tensor(number),
    }


def opened(folder: Path, conditions: Mapping[str, Any] = CONDITIONS, *, max_bytes: int = 2**20) -> EmbeddingFiles:
    files = EmbeddingFiles(folder, conditions=conditions, max_bytes=max_bytes)
    files.flush()
    return files


def stored(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*"))


def same_bits(one: Tensors | None, other: Tensors) -> bool:
    def bits(tensor: torch.Tensor) -> tuple[Any, ...]:
        return tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).tolist()

    return one is not None and {k: bits(v) for k, v in one.items()} == {k: bits(v) for k, v in other.items()}


def test_what_is_read_has_the_bits_that_were_stored_also_in_another_process(tmp_path: Path) -> None:
    files = opened(tmp_path / "e")
    assert files.get(prompt(1)) is None
    files.put(prompt(1), embedding(1))
    # before it is written, too
    assert same_bits(files.get(prompt(1)), embedding(1))
    files.flush()
    assert same_bits(files.get(prompt(1)), embedding(1))
    assert same_bits(opened(tmp_path / "e").get(prompt(1)), embedding(1))
    assert opened(tmp_path / "e").get(prompt(2)) is None


def test_no_file_name_or_content_shows_a_prompt_and_no_other_user_may_read_the_folder(tmp_path: Path) -> None:
    files = opened(tmp_path / "e")
    secret = Prompt(TokenizedPrompt(((49_407, 1_125),), count=4))
    files.put(secret, embedding())
    files.flush()
    [path] = stored(tmp_path / "e")
    assert path.stem == files.key(secret)
    assert len(path.stem) == 64
    assert b"49407" not in path.read_bytes()
    assert (tmp_path / "e").stat().st_mode & 0o077 == 0


def test_a_view_is_stored_without_the_tensors_beside_it(tmp_path: Path) -> None:
    files = opened(tmp_path / "e")
    rows = torch.randn(1000, 64)
    files.put(prompt(1), {"text_embeds": rows[3]})
    files.flush()
    [path] = stored(tmp_path / "e")
    assert path.stat().st_size < 1000
    assert same_bits(files.get(prompt(1)), {"text_embeds": rows[3]})


tokens = st.integers(0, 300)
texts = st.builds(
    TokenizedPrompt,
    chunks=st.lists(st.lists(tokens, max_size=3).map(tuple), min_size=1, max_size=3).map(tuple),
    count=st.integers(2, 9),
    truncated=st.booleans(),
    weights=st.lists(st.lists(st.sampled_from([0.5, 1.0, 1.1, 1.1000000001]), max_size=3).map(tuple), max_size=2).map(
        tuple
    ),
    ids=st.lists(tokens, max_size=3).map(tuple),
    ids_length=st.sampled_from([0, 32, 64, 512]),
)
prompts = st.builds(Prompt, texts, negative=st.booleans(), clip_skip=st.integers(0, 12))
condition_values = st.sampled_from(["", "1", "a", "float32"]) | st.integers(0, 12) | st.lists(tokens, max_size=2)
conditions = st.dictionaries(st.sampled_from(["digest", "dtype", "rows", "device"]), condition_values, max_size=3)


@given(st.lists(st.tuples(conditions, prompts), min_size=2, max_size=4))
def test_keys_are_equal_exactly_where_the_prompts_and_the_conditions_are(
    inputs: list[tuple[dict[str, Any], Prompt]],
) -> None:
    keys = [EmbeddingFiles(Path("unused"), conditions=given, max_bytes=1).key(each) for given, each in inputs]
    for (one, key), (other, other_key) in zip(
        [*zip(inputs, keys, strict=True)][:-1], [*zip(inputs, keys, strict=True)][1:], strict=True
    ):
        assert (key == other_key) == (one == other), (one, other)


@pytest.mark.parametrize(
    "change",
    [
        {"chunks": ((1, 2),)},
        {"chunks": ((1,), (2,))},
        {"weights": ((1.1,),)},
        {"ids": (1,)},
        {"ids_length": 64},
    ],
)
def test_each_field_of_a_prompt_changes_its_key(change: dict[str, Any], tmp_path: Path) -> None:
    files = opened(tmp_path)
    base = Prompt(TokenizedPrompt(((1,),), count=3))
    keys = {
        files.key(base),
        files.key(Prompt(replace(base.tokens, **change))),
        files.key(Prompt(base.tokens, negative=True)),
        files.key(Prompt(base.tokens, clip_skip=1)),
        opened(tmp_path, {**CONDITIONS, "rows": 8}).key(base),
    }
    assert len(keys) == 5


@pytest.mark.parametrize("at", [0, 7, 20, -80, -1])
def test_a_damaged_file_is_dropped_and_logged_in_one_line(
    at: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = opened(tmp_path / "e")
    files.put(prompt(1), embedding(1))
    files.flush()
    [path] = stored(tmp_path / "e")
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)
    with caplog.at_level(logging.WARNING):
        assert files.get(prompt(1)) is None
    [record] = caplog.records
    assert str(path) in record.message
    assert "encoded again" in record.message
    assert stored(tmp_path / "e") == []
    files.put(prompt(1), embedding(1))
    files.flush()
    assert same_bits(files.get(prompt(1)), embedding(1))


@given(st.binary(max_size=200))
def test_any_bytes_in_the_place_of_a_file_are_no_embedding(content: bytes) -> None:
    with pytest.raises((SafetensorError, ValueError, KeyError, TypeError, RuntimeError)):
        _decode("key", content)


def test_a_cut_file_or_one_of_another_key_is_dropped(tmp_path: Path) -> None:
    files = opened(tmp_path / "e")
    files.put(prompt(1), embedding(1))
    files.flush()
    [path] = stored(tmp_path / "e")
    whole = path.read_bytes()
    for length in (0, 4, 60, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert files.get(prompt(1)) is None
        assert not path.exists()
    other = files._path(files.key(prompt(2)))
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(whole)
    assert files.get(prompt(2)) is None
    assert not other.exists()


def test_the_folder_stays_within_its_bound_and_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    one = {"text_embeds": torch.zeros(250)}
    files = opened(tmp_path / "e", max_bytes=20_000)
    for number in range(10):
        files.put(prompt(number), one)
        files.flush()
    for age, number in enumerate([3, 1, 4, 0, 5, 9, 2, 6, 8, 7]):
        os.utime(files._path(files.key(prompt(number))), ns=(0, 10**15 + age))
    assert files.get(prompt(3)) is not None, "it is now the one used last"
    for number in range(10, 40):
        files.put(prompt(number), one)
        files.flush()
        assert sum(path.stat().st_size for path in stored(tmp_path / "e")) <= 20_000
        if number == 17:
            # as many as fit beside the room for other processes, in the order of their last use
            kept = {old for old in range(18) if files._path(files.key(prompt(old))).exists()}
            by_use = [1, 4, 0, 5, 9, 2, 6, 8, 7, 3, *range(10, 18)]
            assert 10 < len(kept) < 18
            assert kept == {*by_use[-len(kept) :]}
    assert files.get(prompt(39)) is not None
    assert files.get(prompt(0)) is None


def test_what_is_larger_than_the_bound_is_not_stored(tmp_path: Path) -> None:
    files = opened(tmp_path / "e", max_bytes=1000)
    files.put(prompt(1), {"text_embeds": torch.zeros(250)})
    files.flush()
    assert stored(tmp_path) == []
    assert files.get(prompt(1)) is None


def test_a_smaller_bound_holds_from_the_start(tmp_path: Path) -> None:
    files = opened(tmp_path / "e")
    for number in range(10):
        files.put(prompt(number), {"text_embeds": torch.zeros(250)})
    files.flush()
    assert len(stored(tmp_path / "e")) == 10
    opened(tmp_path / "e", max_bytes=4000)
    assert 1 <= len(stored(tmp_path / "e")) <= 3


def test_a_folder_that_cannot_be_written_costs_one_warning_and_no_embedding(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    files = opened(tmp_path / "file" / "e")
    with caplog.at_level(logging.WARNING):
        files.put(prompt(1), embedding(1))
        files.flush()
    [record] = caplog.records
    assert "LATENTFARM_CACHE_DIR" in record.message
    assert files.get(prompt(1)) is None


def test_drafts_of_dead_processes_are_removed_and_those_of_running_ones_stay(tmp_path: Path) -> None:
    files = opened(tmp_path / "e")
    files.put(prompt(1), embedding(1))
    files.flush()
    [path] = stored(tmp_path / "e")
    now_ns = path.stat().st_mtime_ns
    for name, age_s in (("old.draft", 7200), ("young.draft", 10)):
        (path.parent / name).write_bytes(b"half")
        os.utime(path.parent / name, ns=(0, now_ns - age_s * 10**9))
    opened(tmp_path / "e")
    assert [found.name for found in stored(tmp_path / "e")] == sorted([path.name, "young.draft"])


WRITER = """
import sys, torch
from pathlib import Path
from tests.unit.text_encoders.test_embedding_files import embedding, opened, prompt
files = opened(Path(sys.argv[1]), max_bytes=20_000)
print("ready", flush=True)
number = int(sys.argv[2])
while True:
    number += 1
    files.put(prompt(number % 40), embedding(number % 40))
    files.flush()
    found = files.get(prompt(number % 7))
    print(number, flush=True)
"""


def test_processes_that_write_at_once_and_are_killed_leave_whole_files_only(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'worker'}", "OMP_NUM_THREADS": "1"}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path / "e", str(20 * at)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for at in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        # both have written more than the bound holds
        for _ in range(120):
            assert writer.stdout.readline(), writer.communicate()[1]
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    found = [path for path in stored(tmp_path / "e") if path.suffix == ".safetensors"]
    assert found
    assert sum(path.stat().st_size for path in found) <= 20_000
    files = opened(tmp_path / "e")
    for number in range(40):
        tensors = files.get(prompt(number))
        assert tensors is None or same_bits(tensors, embedding(number))
    assert {path for path in stored(tmp_path / "e") if path.suffix == ".safetensors"} == {*found}, "none was damaged"
