"""Packed rows as Arrow batches."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from memory_service.tables.arrow_rows import row_schema, wrap_rows


def test_a_batch_shares_the_memory_of_the_rows() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (20, 12), np.uint8)
    batch = wrap_rows(rows, row_schema(12))
    assert batch.schema == pa.schema([pa.field("row", pa.binary(12), nullable=False)])
    assert batch["row"].to_pylist() == [row.tobytes() for row in rows]
    assert batch["row"].buffers()[1].address == rows.ctypes.data
