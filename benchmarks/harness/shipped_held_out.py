"""The files that were held out as the shipped model, models/tiny-code, was trained on the standard library.

The rule stays as it was then, whatever corpora are made of today: a model may only be scored on what it has not seen.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as BpeTokenizer

from reasoning.runs.evaluation import Documents

_SHARE = 20  # on average, a file in this many
# Generated character tables: near copies of each other, so a held-out one would flatter any model.
_SKIPPED_PARTS = {"site-packages", "__pycache__", "encodings", "idlelib"}
_END = "<|endoftext|>"


def held_out_files() -> list[Path]:
    """Return the .py files of the running interpreter's standard library that were held out, sorted.

    They are those whose path below the library has a SHA-256 of which the first eight bytes, as a little-endian number,
    are divisible by 20. Files in the skipped folders, empty files and files that are no UTF-8 took no part.
    """
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(path for path in root.rglob("*.py") if _is_held_out(path.relative_to(root)) and _is_usable(path))


def documents_of(tokenizer: BpeTokenizer, files: Sequence[Path]) -> Documents:
    """Return files as documents: the end-of-text token, then the tokens of the file as it is, byte for byte."""
    texts = [path.read_bytes() for path in files]
    encoded = tokenizer.encode_batch([text.decode("utf-8") for text in texts], add_special_tokens=False)
    end = tokenizer.token_to_id(_END)
    return Documents([np.array([end, *each.ids], np.int64) for each in encoded], sum(map(len, texts)))


def _is_held_out(path: Path) -> bool:
    digest = hashlib.sha256(path.as_posix().encode()).digest()
    return not _SKIPPED_PARTS.intersection(path.parts) and int.from_bytes(digest[:8], "little") % _SHARE == 0


def _is_usable(path: Path) -> bool:
    try:
        return path.is_file() and bool(path.read_bytes().decode("utf-8").strip())
    except UnicodeDecodeError:
        return False
