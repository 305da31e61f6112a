"""What a process that stays says: lines for people on a terminal, JSON lines for whatever collects them.

It imports nothing but the standard library, for supervisors use it too. ``latentfarm up`` asks for text: its logs are
files that people read.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Literal

Format = Literal["auto", "text", "json"]
#: the variable of the setting ``log_format``, for those that have no settings
VARIABLE = "LATENTFARM_LOG_FORMAT"
#: what a record may carry beside its message, by ``extra``
_FIELDS = ("worker", "batch", "job", "images")


class JsonFormatter(logging.Formatter):
    """One JSON object a record: time (UTC), level, logger, message; worker, batch, job and traceback where known."""

    def __init__(self, worker: str = "") -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._worker:
            line["worker"] = self._worker
        line |= {name: record.__dict__[name] for name in _FIELDS if name in record.__dict__}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        # ASCII: no character of it ends a line in anybody's eyes, or cannot be written
        return json.dumps(line, default=str)


def log_fields(job: str) -> dict[str, str]:
    """Return what a log call's ``extra`` says of a job named ``<batch>/<index>``."""
    return {"batch": job.rpartition("/")[0], "job": job}


def use_json(wanted: str) -> bool:
    """Return whether lines are JSON: if so asked, or if nobody sits before standard error."""
    return wanted == "json" or (wanted != "text" and not sys.stderr.isatty())


def configure(wanted: str | None = None, *, worker: str = "", process: str = "") -> None:
    """Have everything logged to standard error, from INFO on; the last call counts.

    Args:
        wanted: auto, text or json; what ``LATENTFARM_LOG_FORMAT`` says if left out.
        worker: the name that every JSON line carries.
        process: what a text line calls this process.
    """
    chosen = os.environ.get(VARIABLE, "auto") if wanted is None else wanted
    formatter: logging.Formatter = JsonFormatter(worker)
    if not use_json(chosen):
        formatter = logging.Formatter(f"[%(asctime)s: %(levelname)s/{process or 'latentfarm'}] %(message)s")
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # what libraries say on every request is for whoever debugs them
    for name in ("botocore", "boto3", "urllib3", "httpx", "kombu", "amqp"):
        logging.getLogger(name).setLevel(logging.WARNING)
