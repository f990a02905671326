"""Conversion between packed rows and Arrow record batches without copying, for snapshots and the wire."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memory_service.errors import InvalidRequest

ID_SCHEMA = pa.schema([pa.field("row", pa.int64(), nullable=False)])
"""Schema of the row ids in a lookup request."""


def row_schema(row_bytes: int) -> pa.Schema:
    """Schema of packed rows: one column, `row`, of fixed-size binary."""
    return pa.schema([pa.field("row", pa.binary(row_bytes), nullable=False)])


def wrap_rows(rows: NDArray[np.uint8], schema: pa.Schema) -> pa.RecordBatch:
    """A record batch that shares the memory of a contiguous uint8 array [n, row_bytes]."""
    column = pa.FixedSizeBinaryArray.from_buffers(schema.field(0).type, len(rows), [None, pa.py_buffer(rows)])
    return pa.RecordBatch.from_arrays([column], schema=schema)


def view_rows(batch: pa.RecordBatch, row_bytes: int) -> NDArray[np.uint8]:
    """A read-only uint8 view [n, row_bytes] of a record batch.

    Raises:
        InvalidRequest: the batch is malformed, or is not one column of rows of that size.
    """
    column = _only_column(batch)
    if column.type != pa.binary(row_bytes):
        raise InvalidRequest(f"expected one column of fixed_size_binary[{row_bytes}], got {column.type}")
    values = _data(column, np.dtype(np.uint8), row_bytes)
    return values.reshape(len(column), row_bytes)


def check_id_schema(schema: pa.Schema) -> None:
    """Check the schema of a stream of row ids before a batch of it is decoded.

    Raises:
        InvalidRequest: the schema is not one column of int64, `row`.
    """
    try:
        names = schema.names
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"a column's name is no text: {error}") from error
    columns = ", ".join(f"{name}: {kind}" for name, kind in zip(names, schema.types, strict=True))
    if names != ["row"] or schema.types != [pa.int64()]:
        raise InvalidRequest(f"a lookup has one column, 'row', of int64, got {columns:.200}")


def view_ids(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """A read-only int64 view [n] of a record batch of row ids.

    Raises:
        InvalidRequest: the batch is malformed, or is not one column of int64.
    """
    column = _only_column(batch)
    if column.type != pa.int64():
        raise InvalidRequest(f"row ids must be int64, got {column.type}")
    return _data(column, np.dtype(np.int64), 1)


def _only_column(batch: pa.RecordBatch) -> pa.Array:
    if batch.num_columns != 1:
        raise InvalidRequest(f"expected one column, 'row', got {batch.num_columns}")
    column = batch.column(0)
    try:
        column.validate()  # the sender states the lengths: they must fit the bytes received before any is read
    except pa.ArrowInvalid as error:
        raise InvalidRequest(f"column 'row' is malformed: {error}") from error
    if column.null_count:
        raise InvalidRequest(f"column 'row' holds {column.null_count} nulls: every row must be given")
    return column


def _data(column: pa.Array, dtype: np.dtype, width: int) -> np.ndarray:
    count = len(column) * width
    if not count:
        return np.empty(0, dtype)
    return np.frombuffer(column.buffers()[1], dtype, count, column.offset * width * dtype.itemsize)
