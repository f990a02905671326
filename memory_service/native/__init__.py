"""The native implementation of the service Rows, in C++ on gRPC C++: optional, and equal to the one in Python.

`make native` builds it. ENGRAM_MEMORY_NATIVE=0 turns it off; =1 makes its absence an error.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

_NAME = f"{__name__}._rows"
_SWITCH = "ENGRAM_MEMORY_NATIVE"


def extension() -> Any:
    """Return the module of the native implementation, or None if it is not built or turned off.

    Raises:
        ImportError: it cannot be loaded, or ENGRAM_MEMORY_NATIVE=1 and it is not built.
        ValueError: ENGRAM_MEMORY_NATIVE is neither 0 nor 1.
    """
    wanted = os.environ.get(_SWITCH, "")
    if wanted not in ("", "0", "1"):
        raise ValueError(f"{_SWITCH}: {wanted!r} is not possible; give 0 or 1, or leave it out")
    if wanted == "0":
        return None
    if importlib.util.find_spec(_NAME) is None:
        if wanted:
            raise ImportError(f"{_SWITCH}=1, but the native implementation is not built: run `make native`")
        return None
    return importlib.import_module(_NAME)
