"""Parquet files, read with pyarrow (the extra ``latentfarm[parquet]``)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date, time
from io import SEEK_END
from typing import Any, BinaryIO

from latentfarm.errors import InputError
from latentfarm.submission.prompts.rows import ParsedRow, RowCheck, abbreviate
from latentfarm.submission.prompts.table_header import CellError, check_header

#: rows unpacked at once, few because a text of a dictionary is copied for each row that refers to it
_BATCH_ROWS = 64
_BUFFER_BYTES = 2**20
#: a row group that unpacks to more bytes than this, and to more than this multiple of the file's size, is refused
_BOMB_BYTES, _BOMB_RATIO = 2**22, 200


def read_parquet(stream: BinaryIO, name: str, check: RowCheck) -> Iterator[ParsedRow]:
    """Yield the rows of a parquet file. Places count rows from 1.

    Raises:
        InputError: pyarrow is missing, the file is not parquet or is damaged, or its columns are invalid.
    """
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InputError(f"{name}: reading parquet needs pyarrow; pip install 'latentfarm[parquet]'") from None
    number = 0
    try:
        file = ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        header = check_header(file.schema_arrow.names, name, check, text=False)
        _refuse_bombs(file.metadata, name, stream.seek(0, SEEK_END))
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
            for cells in _rows(batch):
                number += 1
                yield header.row(f"{name} row {number}", cells, check, _value)
    except (pa.ArrowException, OSError, ValueError) as error:
        after = f" after row {number}" if number else ""
        reason = str(error).split("\n", 1)[0][:200].rstrip(".")
        raise InputError(f"{name} cannot be read as parquet{after} ({reason}); write it again") from None


def _refuse_bombs(metadata: Any, name: str, size_bytes: int) -> None:
    """Refuse a file with a row group that unpacks to far more bytes than the file has.

    Only sizes of whole row groups are read: pyarrow 26 aborts the process when it reads the size of a damaged column.

    Raises:
        InputError: there is such a row group.
    """
    for number in range(metadata.num_row_groups):
        unpacked = metadata.row_group(number).total_byte_size
        if unpacked > _BOMB_BYTES and unpacked > _BOMB_RATIO * size_bytes:
            what = f"row group {number} unpacks to {unpacked:,} bytes, the whole file has {size_bytes:,}"
            raise InputError(f"{name}: {what}; write smaller row groups, or with dictionaries")


def _rows(batch: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a batch as Python values. A value that cannot be converted is an exception in its place."""
    return zip(*(_values(column) for column in batch.columns), strict=True)


def _values(column: Any) -> list[Any]:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_temporal(kind) and getattr(kind, "unit", None) == "ns":
        # Python's times have no nanoseconds
        coarse = {"timestamp": pa.timestamp("us", getattr(kind, "tz", None)), "time64": pa.time64("us")}
        column = column.cast(coarse.get(str(kind).partition("[")[0], pa.duration("us")), safe=False)
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, LookupError, pa.ArrowException):
        values = [_python_value(scalar) for scalar in column]
    return values


def _python_value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, LookupError) as error:
        return error


def _value(column: str, field: str | None, value: Any) -> Any:
    """Return the value of a cell as a row has it.

    Raises:
        CellError: it could not be converted, or is no text.
    """
    if isinstance(value, UnicodeDecodeError):
        raise CellError(f"{column} is not UTF-8; write text as UTF-8", "not UTF-8")
    if isinstance(value, Exception):
        raise CellError(f"{column} cannot be read ({value}); write a number or a text", column)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            text = f"{column} {abbreviate(repr(value))} is not UTF-8; write text"
            raise CellError(text, "not UTF-8") from None
    return to_jsonable(value) if field is None else value


def to_jsonable(value: object) -> Any:
    """Return a value that JSON can represent. Dates become ISO 8601; NaN becomes null; other types become text."""
    converted: Any = value
    if isinstance(value, float) and math.isnan(value):
        # pandas writes missing numbers as NaN
        converted = None
    elif isinstance(value, date | time):
        converted = value.isoformat()
    elif isinstance(value, bytes):
        converted = value.decode(errors="replace")
    elif isinstance(value, dict):
        converted = {str(key): to_jsonable(entry) for key, entry in value.items()}
    elif isinstance(value, list | tuple):
        converted = [to_jsonable(entry) for entry in value]
    elif not isinstance(value, bool | int | float | str | None):
        converted = str(value)
    return converted
