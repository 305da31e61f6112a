"""One job's result as one flat line: of ``results.jsonl``, of ``latentfarm results``, of ``metadata.jsonl``."""

from __future__ import annotations

import json
from typing import Any

# made once: json.dumps makes a new encoder at each call
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


def flat_line(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result with its request, in diffusers' names, flat beside what became of it.

    ``trace`` is the key of the strip from noise to result; ``columns`` the row's own columns, if they were kept;
    ``error`` a failed job's ``code`` and ``message``. A row that was wrong when it was submitted has no prompt.
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


def table_line(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result's cells of ``TABLE_COLUMNS``, None where there is nothing.

    What is no number and no text, such as ``columns`` and ``scheduler_options``, is JSON; an error is two columns.
    """
    line = flat_line(result)
    error = line.pop("error", None) or {}
    line |= {"error_code": error.get("code"), "error_message": error.get("message")}
    for name in ("columns", "guidance_interval", "scheduler_options"):
        line[name] = to_json(line[name]) if line.get(name) else None
    return {name: line.get(name) for name in TABLE_COLUMNS}


def metadata_line(result: dict[str, Any], file_name: str) -> dict[str, Any]:
    """Return a picture's line of ``metadata.jsonl``, which Hugging Face's ImageFolder reads.

    Relied on (datasets' folder_based_builder.py): ``file_name`` is the picture's path relative to the metadata file and
    every other key becomes a column; the column's type is guessed from the first 10 MB and must hold for the rest.
    So every line has all keys, each of one type and never null: nothing said is an empty text or 0.
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
