"""Vectors in Parquet: a row is the bytes of its numbers, which are read ten times as fast as a list of them.

Parquet decodes a list number by number, float16 above all. Of other tools, pandas and Polars give such a row as
``bytes``; ``numpy.frombuffer(row, "float16")`` is the vector.
"""

import numpy as np
import pyarrow as pa


def vector_column(values_ND: np.ndarray) -> pa.FixedSizeBinaryArray:
    """Each row as its bytes; ``vectors`` with the same dtype gives the rows back."""
    values_ND = np.ascontiguousarray(values_ND)
    kind = pa.binary(values_ND.itemsize * values_ND.shape[1])
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(values_ND), [None, pa.py_buffer(values_ND)])


def vectors(column: pa.FixedSizeBinaryArray | pa.ChunkedArray, dtype: type[np.floating]) -> np.ndarray:
    """The rows of a ``vector_column``, (N, D) and read-only."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    width = column.type.byte_width // np.dtype(dtype).itemsize
    if not len(column):  # which may have no buffer
        return np.empty((0, width), dtype)
    values_ND = np.frombuffer(column.buffers()[1], dtype).reshape(-1, width)
    return values_ND[column.offset : column.offset + len(column)]
