"""`engram hash`: which memory rows a text reads."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reasoning.engram.presets import PRESETS

if TYPE_CHECKING:
    from reasoning.engram.hashing import NgramHasher
    from reasoning.text.tokenizer import Tokenizer

_DESCRIPTION = """\
Print which memory rows a text reads, as JSON: {"token_ids": [...], "rows": {"LAYER": [[row ids], ...]}} with one
list of row ids for each token, column after column (2-gram heads first). The text is read from standard input, as it
is: a newline at its end counts.
"""
_EPILOG = """\
examples:
  printf 'def f(x):' | engram hash --model models/tiny-code
  printf 'one two'   | engram hash --preset deepseek-v4.1-flash --tokenizer tokenizer.json
  engram hash --preset engram-demo --tokenizer tokenizer.json --token-ids '[12, 7, 99]' --documents 1,1,2
"""


def add_parser(commands: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Add `hash` to the subparsers of `engram`."""
    parser = commands.add_parser(
        "hash",
        help="print which memory rows a text reads",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--preset", choices=sorted(PRESETS), help="hash with a published geometry")
    which.add_argument("--model", metavar="DIR", type=Path, help="hash as the model in this directory does")
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        type=Path,
        help="tokenizer.json, or a directory with one (default: the one beside --model)",
    )
    parser.add_argument("--token-ids", metavar="JSON", help="a JSON list of token ids instead of text on stdin")
    parser.add_argument(
        "--blocked", metavar="P,P,...", help="positions, from 0, that are no text (image, padding): nothing sees them"
    )
    parser.add_argument(
        "--documents", metavar="D,D,...", help="document number of every position; n-grams do not cross documents"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Hash standard input, or `--token-ids`, and print the rows."""
    tokenizer = _load_tokenizer(args)
    hasher = _load_hasher(args, tokenizer)
    token_ids = _token_ids(args, tokenizer)
    rows = hasher.hash(
        np.array(token_ids, dtype=np.int64),
        blocked=_blocked(args.blocked, len(token_ids)),
        documents=_documents(args.documents, len(token_ids)),
    )
    json.dump({"token_ids": token_ids, "rows": {str(layer): ids.tolist() for layer, ids in rows.items()}}, sys.stdout)
    print(flush=True)
    return 0


def _load_tokenizer(args: argparse.Namespace) -> Tokenizer:
    from reasoning.text.tokenizer import Tokenizer

    path = args.tokenizer or args.model
    if path is None:
        raise ValueError(f"tokenizer: required with `preset` {args.preset}; give the model's tokenizer.json")
    if args.tokenizer is None and not (path / "tokenizer.json").is_file():
        raise ValueError(f"tokenizer: no tokenizer.json in {path}; give one")
    return Tokenizer.from_file(path)


def _token_ids(args: argparse.Namespace, tokenizer: Tokenizer) -> list[int]:
    if args.token_ids is not None:
        return parse_token_ids(args.token_ids)
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input: not UTF-8 at byte {error.start}; convert the text first") from error
    return tokenizer.encode(text)


def parse_token_ids(text: str) -> list[int]:
    """Parse token ids: a JSON list of integers of at least 0."""
    try:
        ids = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"token_ids: not JSON ({error}); write it as '[12, 7, 99]'") from error
    if not isinstance(ids, list):
        raise ValueError(f"token_ids: {text!r} is not a list; write it as '[12, 7, 99]'")
    for position, value in enumerate(ids):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
            raise ValueError(f"token_ids: {value!r} at position {position} is no token id; use integers from 0 up")
    return ids


def _blocked(text: str | None, length: int) -> np.ndarray | None:
    if text is None:
        return None
    positions = _integers("blocked", text)
    for position in positions:
        if not 0 <= position < length:
            raise ValueError(
                f"blocked: position {position} is outside the text; it has {length} tokens, 0 is the first"
            )
    mask = np.zeros(length, dtype=bool)
    mask[positions] = True
    return mask


def _documents(text: str | None, length: int) -> np.ndarray | None:
    if text is None:
        return None
    documents = _integers("documents", text)
    if len(documents) != length:
        raise ValueError(f"documents: has {len(documents)} numbers for {length} tokens; give one for each token")
    return np.array(documents, dtype=np.int64)


def _integers(field: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    for part in parts:
        digits = part.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
            raise ValueError(f"{field}: {part!r} is not an integer; write numbers separated by commas, as in 3,4")
    return [int(part) for part in parts]


def _load_hasher(args: argparse.Namespace, tokenizer: Tokenizer) -> NgramHasher:
    from reasoning.architectures.registry import read_model_config
    from reasoning.engram.model_hasher import build_hasher
    from reasoning.engram.token_map import TokenMap

    if args.preset:
        return PRESETS[args.preset].for_token_map(TokenMap.build(tokenizer))
    engram = read_model_config(args.model).engram
    if engram is None:
        raise ValueError(f"model: {args.model} has no Engram layers, so nothing to hash; give another model")
    return build_hasher(engram, tokenizer)
