"""Tables of results: JSON lines, CSV and Parquet, written line by line with bounded memory."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Iterable
from typing import IO, Any, Self

from latentfarm.errors import InputError
from latentfarm.fetch.serialize import TABLE_COLUMNS, flat_line, table_line, to_json

#: rows of a Parquet table held and written at once
_ROW_GROUP = 10_000


def require_parquet(what: str) -> None:
    """Raise InputError, naming the extra, where pyarrow is missing."""
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{what}, which needs pyarrow: pip install 'latentfarm[parquet]'")


class ParquetTable:
    """A Parquet file that is written in row groups of 10,000; ``columns`` gives the Arrow type of each."""

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
        """Append a row; keys that are no column are left out, missing ones are null."""
        self._rows.append(row)
        if len(self._rows) == _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch(self._batch_of(self._rows, schema=self._schema))
            self._rows = []


def write_jsonl(opened: IO[bytes], results: Iterable[dict[str, Any]]) -> None:
    """Write a flat JSON object a job."""
    for result in results:
        opened.write(f"{to_json(flat_line(result))}\n".encode())


def write_csv(opened: IO[bytes], results: Iterable[dict[str, Any]]) -> None:
    """Write a header and a row a job in UTF-8, as RFC 4180 has it.

    Cells are written as they are: this is data. One that begins with ``=``, ``+``, ``-`` or ``@`` is a formula to a
    spreadsheet program that opens the file; import it as text there.
    """
    text = io.TextIOWrapper(opened, encoding="utf-8", newline="", write_through=True)
    try:
        # rows end in CR LF, the default, or a CR inside a cell would not be quoted
        writer = csv.DictWriter(text, TABLE_COLUMNS)
        writer.writeheader()
        writer.writerows(map(table_line, results))
    finally:
        # the file stays open: it is the caller's
        text.detach()


def write_parquet(opened: IO[bytes], results: Iterable[dict[str, Any]]) -> None:
    """Write a Parquet file of ``TABLE_COLUMNS``."""
    with ParquetTable(opened, TABLE_COLUMNS) as table:
        for result in results:
            table.add(table_line(result))
