"""config.json of a model directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_config(model_dir: str | Path, remedy: str = "give a directory with config.json and *.safetensors") -> Any:
    """Return the JSON value in `config.json` of a model directory.

    Raises:
        ValueError: the file is missing, with `remedy` as advice, or not JSON.
    """
    path = Path(model_dir) / "config.json"
    if not path.is_file():
        raise ValueError(f"model: {path} does not exist; {remedy}")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"model: {path} is not valid JSON ({error}); copy the checkpoint again") from error
