"""Ids of files and batches, and how many uploads a server receives at once."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from latentfarm.server.http.request_error import RequestError
from latentfarm.server.openai.ids import created_at, is_batch_id, is_file_id, new_stem
from latentfarm.server.openai.output_files import output_ids, parse_output_id
from latentfarm.server.openai.uploads import UploadSlots

pytestmark = pytest.mark.unit


def stem_at(seconds: int) -> str:
    ledger: Any = SimpleNamespace(now_us=lambda: seconds * 1_000_000)
    return new_stem(ledger)


def test_newer_ids_come_first_and_have_their_time() -> None:
    times = [1, 1_700_000_000, 1_795_930_557, 4_000_000_000, 10_000_000_000]
    stems = [stem_at(seconds) for seconds in times]
    assert sorted(stems, reverse=True) == stems
    assert [created_at(stem) for stem in stems] == times
    assert stem_at(7) != stem_at(7)


def test_only_ids_that_this_server_makes_become_keys() -> None:
    stem = stem_at(7)
    assert is_file_id(f"file-{stem}")
    assert is_batch_id(f"batch_{stem}")
    for wrong in ("", "file-", f"file-{stem}/..", f"file-{stem}\n", f"file-{stem.upper()}x", "file-../../batches"):
        assert not is_file_id(wrong)
        assert not is_batch_id(wrong.replace("file-", "batch_"))
        assert parse_output_id(f"{wrong}-output") is None
    parsed = [parse_output_id(file) for file in output_ids(f"batch_{stem}")]
    assert [found and found[0] for found in parsed] == [f"batch_{stem}"] * 2


def test_uploads_beyond_the_limit_are_refused_for_now() -> None:
    slots = UploadSlots()
    with ExitStack() as taken:
        for _ in range(16):
            taken.enter_context(slots.take())
        with pytest.raises(RequestError) as caught, slots.take():
            pass
        assert (caught.value.status, caught.value.retry_after_s) == (503, 5)
    with slots.take():
        pass
