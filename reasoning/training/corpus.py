"""Source code to train on: its files, the share of them held out, and their tokens laid end to end."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as BpeTokenizer

END = "<|endoftext|>"
PAD = "<|pad|>"
HELD_OUT_SHARE = 20
"""On average, a file in this many is held out."""
# Generated character tables: near copies of each other, so a held-out one would flatter any model.
_SKIPPED_PARTS = {"site-packages", "__pycache__", "encodings", "idlelib"}
# A line break includes its indentation; words, numbers and punctuation may include a leading blank.
_PIECES = r"\r?\n[ \t]*| ?[A-Za-z_]+| ?[0-9]{1,3}| ?[^\sA-Za-z_0-9]+|[ \t]+"


@dataclass(frozen=True)
class Corpus:
    """Python files under one folder, split by a hash of their path so that the split never changes."""

    root: Path
    train: tuple[Path, ...]
    held_out: tuple[Path, ...]

    @classmethod
    def find(cls, root: Path | None = None) -> Corpus:
        """List the .py files below `root`; None stands for the running interpreter's standard library.

        Raises:
            ValueError: `root` is no folder, or has too few files to hold any out.
        """
        root = root or Path(sysconfig.get_path("stdlib"))
        if not root.is_dir():
            raise ValueError(f"data: {root} is not a folder; give one that holds .py files")
        found = sorted(path for path in root.rglob("*.py") if _usable(path, root))
        held = {path for path in found if _hash(path.relative_to(root)) % HELD_OUT_SHARE == 0}
        if not held or len(held) == len(found):
            raise ValueError(f"data: {root} has {len(found)} usable .py files; too few to hold any out")
        return cls(root, tuple(path for path in found if path not in held), tuple(sorted(held)))


def _usable(path: Path, root: Path) -> bool:
    if _SKIPPED_PARTS.intersection(path.relative_to(root).parts) or not path.is_file():
        return False
    try:
        return bool(path.read_bytes().decode("utf-8").strip())
    except UnicodeDecodeError:
        return False


def _hash(path: Path) -> int:
    return int.from_bytes(hashlib.sha256(path.as_posix().encode()).digest()[:8], "little")


def read(path: Path) -> str:
    """Return a file's text byte for byte: no newline translation."""
    return path.read_bytes().decode("utf-8")


def train_tokenizer(files: Sequence[Path], vocab_size: int) -> BpeTokenizer:
    """Train a byte-level BPE tokenizer whose first two tokens mark the end of a text and padding."""
    tokenizer = BpeTokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((read(path) for path in files), trainer)
    return tokenizer


@dataclass(frozen=True)
class Stream:
    """Documents laid end to end, each after an end-of-text token."""

    tokens: np.ndarray  # [n] int32
    documents: np.ndarray  # [n] int32, number of the document that each token belongs to
    sizes: np.ndarray  # [documents] UTF-8 bytes

    @classmethod
    def encode(cls, tokenizer: BpeTokenizer, files: Sequence[Path]) -> Stream:
        """Tokenise whole files."""
        end = tokenizer.token_to_id(END)
        texts = [read(path) for path in files]
        encoded = [[end, *item.ids] for item in tokenizer.encode_batch(texts, add_special_tokens=False)]
        tokens = np.concatenate([np.asarray(ids, np.int32) for ids in encoded])
        documents = np.repeat(np.arange(len(encoded), dtype=np.int32), [len(ids) for ids in encoded])
        return cls(tokens, documents, np.array([len(text.encode()) for text in texts]))

    def document(self, number: int) -> np.ndarray:
        """Return one document's tokens, its end-of-text mark first."""
        begin, end = np.searchsorted(self.documents, [number, number + 1])
        return self.tokens[begin:end]

    def windows(self, length: int, batch: int, seed: int) -> Iterator[np.ndarray]:
        """Yield starts of windows, [batch] int64 each, without end; every epoch covers the stream once, shuffled.

        A window at s needs tokens s to s + length inclusive.

        Raises:
            ValueError: the stream has too few tokens for a window.
        """
        if len(self.tokens) < length + 2:
            raise ValueError(
                f"window: {length} tokens do not fit into {len(self.tokens)} tokens of data; use a shorter window "
                "or give more files"
            )
        rng = np.random.default_rng(seed)
        rest = np.empty(0, np.int64)
        while True:
            while len(rest) < batch:
                phase = int(rng.integers(0, length))
                starts = np.arange(phase, len(self.tokens) - length - 1, length)
                rest = np.concatenate([rest, rng.permutation(starts)])
            yield rest[:batch]
            rest = rest[batch:]
