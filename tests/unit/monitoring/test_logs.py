from __future__ import annotations

import io
import json
import logging
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfarm.monitoring.logs import JsonFormatter, log_fields, use_json

pytestmark = pytest.mark.unit


def record_of(message: str, *arguments: object, failed: bool, extra: dict[str, str]) -> logging.LogRecord:
    try:
        raise ValueError("deep down")
    except ValueError:
        error = sys.exc_info() if failed else None
    logger = logging.getLogger("tests")
    return logger.makeRecord("tests", logging.WARNING, __file__, 1, message, arguments, error, extra=extra)


def line_of(
    message: str, *arguments: object, worker: str = "", failed: bool = False, extra: dict[str, str] | None = None
) -> dict[str, object]:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonFormatter(worker))
    handler.emit(record_of(message, *arguments, failed=failed, extra=extra or {}))
    [written] = out.getvalue().splitlines()
    line: dict[str, object] = json.loads(written)
    return line


def test_a_json_line_has_the_worker_the_job_and_its_batch() -> None:
    line = line_of("%s failed", "cats/7", worker="host-1", extra=log_fields("cats/7"))
    assert str(line.pop("time")).endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "tests",
        "message": "cats/7 failed",
        "worker": "host-1",
        "batch": "cats",
        "job": "cats/7",
    }


def test_a_traceback_is_part_of_its_line() -> None:
    line = line_of("broke", failed=True)
    assert "ValueError: deep down" in str(line["traceback"])
    assert "worker" not in line


@given(st.text())
def test_any_message_is_one_json_line(message: str) -> None:
    assert line_of("%s", message)["message"] == message


def test_auto_is_json_unless_standard_error_is_a_terminal() -> None:
    assert use_json("json")
    assert not use_json("text")
    script = "from latentfarm.monitoring.logs import use_json; print(use_json('auto'))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "True\n"
