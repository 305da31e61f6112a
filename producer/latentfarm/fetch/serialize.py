"""Flatten a job's result for ``results.jsonl``, ``latentfarm results`` and ``metadata.jsonl``."""

from __future__ import annotations

import json
from typing import Any

# created once: json.dumps creates an encoder at each call
_encode = json.JSONEncoder(ensure_ascii=False).encode

#: the columns of a CSV or Parquet table of results, and the Arrow type of each
TABLE_COLUMNS = {
    "job": "string",
    "index": "int64",
    "row": "int64",
    "id": "string",
    "state": "string",
    "attempts": "int64",
    "key": "string",
    "sha256": "string",
    "bytes": "int64",
    "prompt": "string",
    "negative_prompt": "string",
    "width": "int64",
    "height": "int64",
    "num_inference_steps": "int64",
    "guidance_scale": "float64",
    "guidance_interval": "string",
    "seed": "int64",
    "scheduler": "string",
    "scheduler_options": "string",
    "prompt_syntax": "string",
    "clip_skip": "int64",
    "intermediates": "string",
    "error_code": "string",
    "error_message": "string",
    "columns": "string",
}


def flatten_result(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result with the fields of its request, in diffusers' names, on the same level.

    ``intermediates`` is the key of the strip of intermediate images. ``columns`` are other columns of the row, if kept.
    ``error`` has a failed job's ``code`` and ``message``. An invalid row has no prompt.
    """
    line = {
        "job": result["job"],
        "index": result["index"],
        "row": result.get("row"),
        "id": result.get("id"),
        "state": result["state"],
        "attempts": result.get("attempts"),
        "key": result.get("key"),
        "sha256": result.get("sha256"),
        "bytes": result.get("bytes"),
        **result.get("request", {}),
    }
    if "intermediates" in result:
        line["intermediates"] = result["intermediates"]["key"]
    return line | {name: result[name] for name in ("columns", "error") if name in result}


def table_row(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result's cells of ``TABLE_COLUMNS``, None for missing ones.

    Lists and objects, such as ``scheduler_options``, are JSON text. An error takes two columns.
    """
    line = flatten_result(result)
    error = line.pop("error", None) or {}
    line |= {"error_code": error.get("code"), "error_message": error.get("message")}
    for name in ("columns", "guidance_interval", "scheduler_options"):
        line[name] = to_json(line[name]) if line.get(name) else None
    return {name: line.get(name) for name in TABLE_COLUMNS}


def metadata_entry(result: dict[str, Any], file_name: str) -> dict[str, Any]:
    """Return an image's line of ``metadata.jsonl`` for Hugging Face's ImageFolder.

    ``file_name`` is the path relative to the metadata file; every other key becomes a column. ImageFolder infers a
    column's type from the first 10 MB (datasets, folder_based_builder.py). So every line has all keys, each of one type
    and never null: a missing value is an empty text or 0.
    """
    request = result.get("request", {})
    texts = {name: request.get(name) or "" for name in ("negative_prompt", "scheduler")}
    numbers = {name: request.get(name) or 0 for name in ("seed", "width", "height", "num_inference_steps")}
    return {
        "file_name": file_name,
        "text": request.get("prompt", ""),
        "job": result["job"],
        "id": result.get("id") or "",
        **texts,
        **numbers,
        "guidance_scale": float(request.get("guidance_scale") or 0),
        "sha256": result["sha256"],
        "columns": to_json(result.get("columns", {})),
    }


def to_json(value: object) -> str:
    """Return a value as JSON on one line."""
    return _encode(value)
