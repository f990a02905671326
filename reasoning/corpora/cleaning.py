"""Which files are worth training on; every file that is not has a reason, and reasons are counted."""

from __future__ import annotations

import re
from dataclasses import dataclass

from reasoning.corpora.sources.entry import Entry

VENDORED = frozenset(
    {"vendor", "vendored", "_vendor", "_vendored", "third_party", "third-party", "thirdparty", "3rdparty"}
    | {"extern", "external", "externals", "node_modules", "bower_components", "site-packages", "dist-packages"}
    | {"venv", "__pycache__"}
)
"""Names of folders that hold copies of other projects, or no source."""
LOCK_FILES = frozenset(
    {"package-lock.json", "npm-shrinkwrap.json", "yarn.lock", "pnpm-lock.yaml", "poetry.lock", "pdm.lock", "uv.lock"}
    | {"Pipfile.lock", "Cargo.lock", "Gemfile.lock", "composer.lock", "go.sum", "flake.lock"}
)
"""Files that package managers write."""
_GENERATED_NAME = re.compile(r".*(_pb2(_grpc)?\.pyi?|\.pb\.(go|cc|h)|\.min\.(js|css)|_generated\.\w+)")
_GENERATED_MARK = re.compile(
    r"@generated\b|\bdo not (edit|modify)\b|\bgenerated (automatically )?(by|from|with|using)\b"
    r"|\b(auto-?|automatically |machine[- ])generated\b",
    re.IGNORECASE,
)
_MARKED_LINES = 10  # a generator says so at the top
# The limits of Codex (arXiv 2107.03374) and StarCoder (arXiv 2305.06161).
_MEAN_LINE, _LONGEST_LINE = 100, 1000


@dataclass(frozen=True)
class Cleaner:
    """Judges files one by one: by name, then by size, then by content."""

    suffixes: tuple[str, ...]
    """Ends of the names to take."""
    max_bytes: int
    """Largest file to take."""

    def text_of(self, entry: Entry) -> tuple[str, str]:
        """Return the text of a file and "", or "" and the reason why it is left out.

        The text is the file's content byte for byte: line ends and a byte order mark stay as they are.
        """
        if reason := self._by_name(entry):
            return "", reason
        try:
            content = entry.read()
        except OSError:
            return "", "unreadable"
        if len(content) > self.max_bytes:  # the size that was stated is no promise
            return "", "too large"
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            return "", "not UTF-8"
        reason = _reason_in(text)
        return ("", reason) if reason else (text, "")

    def _by_name(self, entry: Entry) -> str:
        parts = entry.path.split("/")
        if not parts[-1].endswith(self.suffixes):
            return "other suffix"
        if not entry.regular:
            return "link or device"
        if parts[0] == "" or ".." in parts or "\\" in entry.path:
            return "unsafe path"
        if any(part in VENDORED or part.startswith(".") for part in parts[:-1]):
            return "vendored or hidden"
        if parts[-1] in LOCK_FILES or _GENERATED_NAME.fullmatch(parts[-1]):
            return "generated"
        return "too large" if entry.size > self.max_bytes else ""


def _reason_in(text: str) -> str:
    if not text.strip("\ufeff \t\r\n\f\v"):
        return "empty"
    if "\0" in text:
        return "binary"
    if is_minified(text):
        return "minified"
    return "generated" if is_generated(text) else ""


def is_minified(text: str) -> bool:
    """Tell whether the lines of a text are too long to have been written by hand."""
    lines = text.splitlines()
    return sum(map(len, lines)) > _MEAN_LINE * len(lines) or max(map(len, lines)) > _LONGEST_LINE


def is_generated(text: str) -> bool:
    """Tell whether the first lines of a text say that a program wrote it."""
    return bool(_GENERATED_MARK.search("\n".join(text.split("\n", _MARKED_LINES)[:_MARKED_LINES])))


def label(path: str) -> str:
    """Return a path as text that fits into a line: what cannot be encoded or printed becomes U+FFFD."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in path)
