"""Text to token ids and back, over a Hugging Face `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers

TOKENIZER_FILE = "tokenizer.json"


class Tokenizer:
    """A trained tokenizer. Adds no special tokens unless asked to."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend = backend
        """The `tokenizers` object, for what this class does not wrap."""
        self._vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._special = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read `path`, a `tokenizer.json` or the directory that holds one. ValueError if there is none to read."""
        file = Path(path)
        if file.is_dir():
            file = file / TOKENIZER_FILE
        if not file.is_file():
            raise ValueError(f"tokenizer: no file {file}; give a tokenizer.json or a directory that holds one")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(file)))
        except Exception as error:  # the library raises bare Exception for every defect of the file
            raise ValueError(f"tokenizer: {file} cannot be read ({error}); copy it again from its source") from error

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id, added tokens included."""
        return self._vocab_size

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of `text`. ValueError if it holds unpaired surrogates, which are no Unicode text."""
        try:
            return self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:
            raise ValueError(
                f"text: cannot be tokenized ({error}); give a str without unpaired surrogates (\\ud800-\\udfff)"
            ) from error

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`."""
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def has_text(self, token_id: int) -> bool:
        """Whether `decode` makes text of an id: it leaves out special tokens and gaps of the vocabulary."""
        return token_id not in self._special and self.id_to_token(token_id) is not None

    def decode_each(self, ids: Sequence[int]) -> list[str]:
        """Text of each id by itself, special tokens kept; a part of a UTF-8 character reads as U+FFFD."""
        return self.backend.decode_batch([[token_id] for token_id in ids], skip_special_tokens=False)

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's own string for an id; None where the vocabulary has a gap."""
        return self.backend.id_to_token(token_id)

    def token_id(self, token: str) -> int | None:
        """The id of a vocabulary string such as `<eos>`; None if the vocabulary lacks it."""
        return self.backend.token_to_id(token)
