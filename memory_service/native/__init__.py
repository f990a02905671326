"""The native implementation of the service Rows, in C++ on gRPC C++: optional, and equal to the one in Python.

`make native` builds it. ENGRAM_MEMORY_NATIVE=0 turns it off, =1 makes its absence an error, and the path of another
build of it, such as one with a sanitizer, is taken in its place.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

_NAME = f"{__name__}._rows"
SWITCH = "ENGRAM_MEMORY_NATIVE"
"""Environment variable that chooses the implementation of a process."""


def extension() -> Any:
    """Return the module of the native implementation, or None if it is not built or turned off.

    Raises:
        ImportError: it cannot be loaded, or ENGRAM_MEMORY_NATIVE=1 and it is not built.
        ValueError: ENGRAM_MEMORY_NATIVE is neither 0 nor 1 nor the path of a file.
    """
    wanted = os.environ.get(SWITCH, "")
    if wanted == "0":
        return None
    if wanted not in ("", "1"):
        return _load(Path(wanted))
    if importlib.util.find_spec(_NAME) is None:
        if wanted:
            raise ImportError(f"{SWITCH}=1, but the native implementation is not built: run `make native`")
        return None
    return importlib.import_module(_NAME)


def _load(path: Path) -> Any:
    """Load another build, once."""
    if not path.is_file():
        raise ValueError(f"{SWITCH}: {path} is no file; give 0, 1 or the path of a build, or leave it out")
    if _NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(_NAME, path)
        assert spec is not None, path
        assert spec.loader is not None, path
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[_NAME] = module
    return sys.modules[_NAME]
