"""Packed rows as Arrow record batches without copying, for snapshots."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def row_schema(row_bytes: int) -> pa.Schema:
    """Schema of packed rows: one column, `row`, of fixed-size binary."""
    return pa.schema([pa.field("row", pa.binary(row_bytes), nullable=False)])


def wrap_rows(rows: NDArray[np.uint8], schema: pa.Schema) -> pa.RecordBatch:
    """A record batch that shares the memory of a contiguous uint8 array [n, row_bytes]."""
    column = pa.FixedSizeBinaryArray.from_buffers(schema.field(0).type, len(rows), [None, pa.py_buffer(rows)])
    return pa.RecordBatch.from_arrays([column], schema=schema)
