"""Material of the tests: source text of any length no two pieces of which are alike, archives, and small corpora."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer as BpeTokenizer

from reasoning.corpora.bpe import train_bpe
from reasoning.corpora.sources.entry import Entry


@cache
def code(name: str, lines: int = 12) -> str:
    """Python text that depends on `name`, and looks like no other name's."""
    words = [hashlib.sha256(f"{name}{number}".encode()).hexdigest()[:7] for number in range(4 * lines)]
    return "".join(
        "def f_{}(a_{}):\n    return b_{} + c_{}\n".format(*words[at : at + 4]) for at in range(0, 4 * lines, 4)
    )


def write_project(root: Path, files: int, name: str | None = None) -> Path:
    """A project of as many files, in two folders."""
    for number in range(files):
        path = root / ("a" if number % 2 else "b") / f"m{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code(f"{name or root.name} {number}"))
    return root


def entry(path: str, content: bytes | str = b"x = 1\n", project: str = "p", **changes: object) -> Entry:
    """A file of a source."""
    data = content.encode() if isinstance(content, str) else content
    fields = {"project": project, "path": path, "size": len(data), "read": lambda: data, **changes}
    return Entry(**fields)  # type: ignore[arg-type]


Member = bytes | Callable[[tarfile.TarInfo], None]


def tar_of(path: Path, members: Mapping[str, Member], mode: str = "w:gz") -> Path:
    """An archive of files, given as content, and of other things, given as what makes a member into one."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                content(member)
                archive.addfile(member)
    return path


def link(kind: bytes, target: str) -> Callable[[tarfile.TarInfo], None]:
    """What makes a member of an archive a link or device."""

    def change(member: tarfile.TarInfo) -> None:
        member.type, member.linkname = kind, target

    return change


@cache
def small_bpe() -> BpeTokenizer:
    """A tokenizer with all special tokens; not to be changed."""
    return train_bpe([code(str(number)) for number in range(20)], 400)
