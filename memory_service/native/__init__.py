"""The native implementation of the service Rows, in C++ on gRPC C++: optional, and equal to the one in Python."""

from __future__ import annotations

import os
from typing import Any


def extension() -> Any:
    """The compiled module, or None where it is not built or ENGRAM_MEMORY_NATIVE=0."""
    if os.environ.get("ENGRAM_MEMORY_NATIVE") == "0":
        return None
    try:
        from memory_service.native import _rows
    except ImportError:
        return None
    return _rows
