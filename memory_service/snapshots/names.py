"""Names of the files of a snapshot, and the URI of one generation.

DIR/manifest-000003.json                    manifest of generation 3; that of generation 0 is DIR/manifest.json
DIR/<table>/000003-5f2c9a1e-NNNNN.arrow     block file of generation 3, by attempt 5f2c9a1e; later ones share it
DIR/000003-5f2c9a1e-manifest.tmp            manifest of generation 3 before it is sealed
"""

from __future__ import annotations

import re
from pathlib import Path

from memory_service.errors import InvalidRequest

BLOCK_FILE = r"([A-Za-z0-9][A-Za-z0-9._-]*)/[A-Za-z0-9][ -.0-\[\]-~]*\.arrow"
"""Pattern of a block file's path: the folder of its table (the group), then printable ASCII without / and \\."""
_MANIFEST = re.compile(r"manifest(?:-([0-9]{6,18}))?\.json")
_ATTEMPT = re.compile(r"([0-9]{6,18})-[0-9a-f]{8}-")
_PIN = re.compile(r"[?&]generation=([0-9]{1,18})$")


def manifest_name(generation: int) -> str:
    """File name of a generation's manifest."""
    return f"manifest-{generation:06d}.json" if generation else "manifest.json"


def generation_of_manifest(name: str) -> int | None:
    """Generation whose manifest has this file name; None for any other name."""
    match = _MANIFEST.fullmatch(name)
    generation = int(match[1] or 0) if match else -1
    return generation if generation >= 0 and manifest_name(generation) == name else None


def file_prefix(generation: int, attempt: str) -> str:
    """Prefix of the names of all files that one attempt writes.

    Args:
        generation: number of the generation being written.
        attempt: 8 random hex digits, so that two writers never write the same file.
    """
    return f"{generation:06d}-{attempt}-"


def block_path(table: str, prefix: str, number: int) -> str:
    """Path of a block file below the snapshot's directory.

    Args:
        table: name of the table.
        prefix: begins the file's name, see `file_prefix`.
        number: number of the file among those with this prefix, from 0.

    Raises:
        InvalidRequest: the prefix would lead out of the table's folder, or is no printable ASCII.
    """
    path = f"{table}/{prefix}{number:05d}.arrow"
    match = re.fullmatch(BLOCK_FILE, path)
    if match is None or match[1] != table:
        raise InvalidRequest(f"prefix={prefix!r} is no beginning of a file name: use printable ASCII without / and \\")
    return path


def unsealed_manifest(prefix: str) -> str:
    """File name under which a manifest is written before it is sealed under its final name."""
    return f"{prefix}manifest.tmp"


def prefix_of_file(path: str) -> str:
    """Prefix (see `file_prefix`) of a file's name; "" if it has none, as in the first release's snapshots."""
    match = _ATTEMPT.match(path.rpartition("/")[2])
    return match[0] if match else ""


def generation_of_file(path: str) -> int:
    """Generation for which a file was written; 0 for a name without a prefix."""
    return int(prefix_of_file(path).partition("-")[0] or 0)


def pin(uri: str | Path, generation: int) -> str:
    """URI of one generation: DIR?generation=3, or with & if the URI has options already."""
    return f"{uri}{'&' if '?' in str(uri) else '?'}generation={generation}"


def split_pin(uri: str | Path) -> tuple[str, int | None]:
    """Split a URI into its directory and the generation that it names, None if it names none."""
    text = str(uri)
    match = _PIN.search(text)
    return (text[: match.start()], int(match[1])) if match else (text, None)
