"""Flatten a job's result for ``results.jsonl``, ``latentfarm results`` and the files that data loaders read."""

from __future__ import annotations

import json
from typing import Any

from latentfarm.edit_fields import EDIT_FIELDS
from latentfarm.job import Job

# created once: json.dumps creates an encoder at each call
_encode = json.JSONEncoder(ensure_ascii=False).encode

#: the columns of every table of results and images, and the Arrow type of each
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
    "image_format": "string",
    "edits": "string",
    "safety": "string",
    "scores": "string",
    "intermediates": "string",
    "pick": "string",
    "rating": "int64",
    "error_code": "string",
    "error_message": "string",
    "columns": "string",
}


#: columns of objects and lists: JSON text in a table, and the text for a missing one
_JSON_COLUMNS = {
    **dict.fromkeys(("columns", "edits", "safety", "scheduler_options", "scores"), "{}"),
    "guidance_interval": "[]",
}
_EMPTY = {"string": "", "int64": 0, "float64": 0.0}
#: what is decided about an image changes after it is fetched: a shard, which is costly to write again, has it not
DECISION_COLUMNS = {name: TABLE_COLUMNS[name] for name in ("pick", "rating")}
#: the columns of an image: those of a job, less its outcome
IMAGE_COLUMNS = {
    name: kind
    for name, kind in TABLE_COLUMNS.items()
    if name not in {"state", "attempts", "error_code", "error_message", *DECISION_COLUMNS}
}
#: a request lists these only if they differ from their defaults; a result always has them
_DEFAULTS = {name: Job.model_fields[name].default for name in ("prompt_syntax", "clip_skip", "image_format")}


def flatten_result(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result with the fields of its request, in diffusers' names, on the same level.

    ``intermediates`` is the key of the strip of intermediate images. ``columns`` are other columns of the row, if kept.
    ``safety`` has the scores of unsafe concepts, if they were wanted, ``scores`` those of scorers, and ``adapters`` the
    digests of those that were used. ``draft`` has how many evaluations of the model a draft has had. ``pick`` and
    ``rating`` are there if they are decided. ``error`` has a failed job's ``code`` and ``message``. An invalid row has
    no prompt.
    """
    request = result.get("request", {})
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
        **request,
    }
    if request:
        line |= {name: value for name, value in _DEFAULTS.items() if name not in request}
    if "intermediates" in result:
        line["intermediates"] = result["intermediates"]["key"]
    more = (*DECISION_COLUMNS, "adapters", "safety", "scores", "draft", "columns", "error")
    return line | {name: result[name] for name in more if name in result}


def table_row(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result's cells of ``TABLE_COLUMNS``, None for missing ones.

    Lists and objects, such as ``scheduler_options``, are JSON text. An error takes two columns. ``edits`` has the
    fields of input images, adapters and a second stage: most rows have none.
    """
    line = flatten_result(result)
    line["edits"] = {name: line[name] for name in EDIT_FIELDS if name in line and name != "safety"}
    error = line.pop("error", None) or {}
    line |= {"error_code": error.get("code"), "error_message": error.get("message")}
    for name in _JSON_COLUMNS:
        line[name] = to_json(line[name]) if line.get(name) else None
    return {name: line.get(name) for name in TABLE_COLUMNS}


def image_entry(result: dict[str, Any]) -> dict[str, Any]:
    """Return an image's values of ``IMAGE_COLUMNS``: all of them, each of one type and none null.

    Loaders infer a column's type from their first rows: ``datasets`` from five samples of a webdataset, and from the
    first 10 MB of an ImageFolder's metadata. A later row with another key or type is an error to them. So a missing
    value is an empty text or 0.
    """
    row = {name: value for name, value in table_row(result).items() if value is not None}
    entry = {name: row.get(name, _JSON_COLUMNS.get(name, _EMPTY[kind])) for name, kind in IMAGE_COLUMNS.items()}
    return {**entry, "guidance_scale": float(entry["guidance_scale"])}


def decision_entry(result: dict[str, Any]) -> dict[str, Any]:
    """Return the values of ``DECISION_COLUMNS``: an empty text and 0 for what is not decided."""
    return {name: result.get(name) or _EMPTY[kind] for name, kind in DECISION_COLUMNS.items()}


def metadata_entry(result: dict[str, Any], file_name: str) -> dict[str, Any]:
    """Return an image's line of ``metadata.jsonl`` for Hugging Face's ImageFolder.

    ``file_name`` is the path relative to the metadata file, ``text`` the prompt.
    """
    entry = {**image_entry(result), **decision_entry(result)}
    return {"file_name": file_name, "text": entry.pop("prompt"), **entry}


def to_json(value: object) -> str:
    """Return a value as JSON on one line."""
    return _encode(value)
