"""Logs of services: text on a terminal, JSON lines for a log collector.

Imports the standard library only, because supervisors use it too. ``latentfarm up`` uses text: people read its files.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Literal

Format = Literal["auto", "text", "json"]
#: environment variable of the setting ``log_format``, for processes that load no settings
VARIABLE = "LATENTFARM_LOG_FORMAT"
#: fields that a log call may add by ``extra``
_FIELDS = ("worker", "batch", "job", "images", "request", "key", "status", "seconds")


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time (UTC), level, logger, message; ``extra`` and the traceback if known."""

    def __init__(self, worker: str = "") -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
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
        # ASCII only: other line separators are escaped, and any encoding can write it
        return json.dumps(line, default=str)


def log_fields(job: str) -> dict[str, str]:
    """Return the ``extra`` of a log call about the job ``<batch>/<index>``."""
    return {"batch": job.rpartition("/")[0], "job": job}


def use_json(wanted: str) -> bool:
    """Return whether to log JSON: on request, and for ``auto`` if standard error is not a terminal."""
    return wanted == "json" or (wanted != "text" and not sys.stderr.isatty())


def configure(wanted: str | None = None, *, worker: str = "", process: str = "") -> None:
    """Log to standard error from INFO on. A later call replaces an earlier one.

    Args:
        wanted: ``auto``, ``text`` or ``json``. Default: ``LATENTFARM_LOG_FORMAT``.
        worker: the worker's name in every JSON line.
        process: the process's name in every text line.
    """
    chosen = os.environ.get(VARIABLE, "auto") if wanted is None else wanted
    formatter: logging.Formatter = JsonFormatter(worker)
    if not use_json(chosen):
        formatter = logging.Formatter(f"[%(asctime)s: %(levelname)s/{process or 'latentfarm'}] %(message)s")
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # at INFO, these log every request
    for name in ("botocore", "boto3", "urllib3", "httpx", "kombu", "amqp"):
        logging.getLogger(name).setLevel(logging.WARNING)
