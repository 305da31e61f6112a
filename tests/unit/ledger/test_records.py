from __future__ import annotations

import json

from latentfarm.job_state import JobState
from latentfarm.ledger.records import job_record, receipt_text


def test_a_stored_receipt_begins_with_its_worker_and_has_neither_prompts_nor_fields_of_the_jobs_record() -> None:
    request = {"prompt": "a cat", "negative_prompt": "", "seed": 7}
    forged = {"job": "b/9", "index": 9, "state": "failed", "attempts": 0, "error": {}}
    stored = receipt_text({"key": "ключ", "request": request, "timings": {"text": 0.1}, **forged})
    assert stored == '{"worker":null,"key":"ключ","request":{"seed":7},"timings":{"text":0.1}}'.encode()
    assert json.loads(receipt_text({"key": "k", "worker": "w"})) == {"worker": "w", "key": "k"}


def test_a_receipt_is_decoded_where_it_is_read() -> None:
    record = job_record("b", 1, JobState.DONE, None, None, b"not JSON", None)
    assert (record.receipt_json, record.attempts) == (b"not JSON", 1)
    assert job_record("b", 1, JobState.DONE, None, None, b'{"key":"k"}', None).receipt == {"key": "k"}
    assert job_record("b", 1, JobState.DONE, None, None, None, None).receipt is None
