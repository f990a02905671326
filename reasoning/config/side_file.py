"""Optional JSON files of a model directory, such as generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_side_file(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty dict if the file does not exist.

    Raises:
        ValueError: the file does not hold a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: {path} is not valid JSON ({error}); copy it again from its source") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name}: {path} holds no JSON object but a {type(value).__name__}; copy it again")
    return value
