"""Write results as JSON lines, CSV or Parquet, with bounded memory."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Iterable
from typing import IO, Any, Self

from latentfarm.errors import InputError
from latentfarm.fetch.serialize import TABLE_COLUMNS, flatten_result, table_row, to_json

#: rows per row group of a Parquet file
_ROW_GROUP = 10_000


def require_parquet(purpose: str) -> None:
    """Raise InputError, with the extra to install, if pyarrow is missing."""
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{purpose}, which needs pyarrow: pip install 'latentfarm[parquet]'")


class ParquetTable:
    """Writes a Parquet file in row groups of 10,000. ``columns`` maps names to Arrow types."""

    def __init__(self, opened: IO[bytes], columns: dict[str, str]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self._batch_of = pa.RecordBatch.from_pylist
        self._schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in columns.items()])
        self._writer = parquet.ParquetWriter(opened, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def add(self, row: dict[str, Any]) -> None:
        """Append a row. Keys without a column are ignored; missing keys are null."""
        self._rows.append(row)
        if len(self._rows) == _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch(self._batch_of(self._rows, schema=self._schema))
            self._rows = []


def write_jsonl(opened: IO[bytes], results: Iterable[dict[str, Any]]) -> None:
    """Write one flat JSON object per job."""
    for result in results:
        opened.write(f"{to_json(flatten_result(result))}\n".encode())


def write_csv(opened: IO[bytes], results: Iterable[dict[str, Any]]) -> None:
    """Write a header and one row per job in UTF-8 (RFC 4180).

    Cells are not escaped for spreadsheets: one that begins with ``=``, ``+``, ``-`` or ``@`` is read as a formula there
    unless it is imported as text.
    """
    text = io.TextIOWrapper(opened, encoding="utf-8", newline="", write_through=True)
    try:
        # rows end in CR LF, the default: with LF alone, csv would not quote a CR inside a cell
        writer = csv.DictWriter(text, TABLE_COLUMNS)
        writer.writeheader()
        writer.writerows(map(table_row, results))
    finally:
        # without this, the wrapper would close the caller's file
        text.detach()


def write_parquet(opened: IO[bytes], results: Iterable[dict[str, Any]]) -> None:
    """Write a Parquet file of ``TABLE_COLUMNS``."""
    with ParquetTable(opened, TABLE_COLUMNS) as table:
        for result in results:
            table.add(table_row(result))
