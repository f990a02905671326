"""What the files of a snapshot are called, and the URI of one generation.

DIR/manifest-000003.json                    generation 3; generation 0 is DIR/manifest.json
DIR/<table>/000003-5f2c9a1e-NNNNN.arrow     written for generation 3 by attempt 5f2c9a1e, read by later ones too
DIR/000003-5f2c9a1e-manifest.tmp            what becomes the manifest of generation 3
"""

from __future__ import annotations

import re
from pathlib import Path

from memory_service.errors import InvalidRequest

BLOCK_FILE = r"([A-Za-z0-9][A-Za-z0-9._-]*)/[A-Za-z0-9][ -.0-\[\]-~]*\.arrow"
"""Pattern of a block file's path: printable ASCII without / and \\, in the folder of its table (the group)."""
_MANIFEST = re.compile(r"manifest(?:-([0-9]{6,18}))?\.json")
_ATTEMPT = re.compile(r"([0-9]{6,18})-[0-9a-f]{8}-")
_PIN = re.compile(r"[?&]generation=([0-9]{1,18})$")


def manifest_name(generation: int) -> str:
    """The file name of a generation's manifest."""
    return f"manifest-{generation:06d}.json" if generation else "manifest.json"


def generation_of_manifest(name: str) -> int | None:
    """The generation whose manifest has this file name; None for any other name."""
    match = _MANIFEST.fullmatch(name)
    generation = int(match[1] or 0) if match else -1
    return generation if generation >= 0 and manifest_name(generation) == name else None


def file_prefix(generation: int, attempt: str) -> str:
    """How the names of block files begin; `attempt` is 8 hex digits, so that two writers never share a file."""
    return f"{generation:06d}-{attempt}-"


def block_path(table: str, prefix: str, number: int) -> str:
    """Path of a block file below the snapshot's directory.

    Raises:
        InvalidRequest: with this prefix the file would lie outside the table's folder.
    """
    path = f"{table}/{prefix}{number:05d}.arrow"
    match = re.fullmatch(BLOCK_FILE, path)
    if match is None or match[1] != table:
        raise InvalidRequest(f"prefix={prefix!r} makes no file name: use printable ASCII without / and \\")
    return path


def unsealed_manifest(prefix: str) -> str:
    """The file name under which a manifest is written before it appears under its own."""
    return f"{prefix}manifest.tmp"


def prefix_of_file(path: str) -> str:
    """The prefix of a file that an attempt wrote; empty for a name that has none, as earlier releases gave."""
    match = _ATTEMPT.match(path.rpartition("/")[2])
    return match[0] if match else ""


def generation_of_file(path: str) -> int:
    """The generation for which a file was written."""
    return int(prefix_of_file(path).partition("-")[0] or 0)


def pin(uri: str | Path, generation: int) -> str:
    """The URI of one generation: DIR?generation=3, or with & where the URI has options already."""
    return f"{uri}{'&' if '?' in str(uri) else '?'}generation={generation}"


def split_pin(uri: str | Path) -> tuple[str, int | None]:
    """The directory of a URI and the generation that it names, if any."""
    text = str(uri)
    match = _PIN.search(text)
    return (text[: match.start()], int(match[1])) if match else (text, None)
