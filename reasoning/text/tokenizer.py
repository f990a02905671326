"""Text to token ids and back, over a Hugging Face `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from reasoning.text.special_tokens import SpecialTokens

TOKENIZER_FILE = "tokenizer.json"


class Tokenizer:
    """A trained tokenizer. Truncation and padding settings of its file are switched off: they are for training."""

    def __init__(self, backend: tokenizers.Tokenizer, bos: str | None = None, eos: str | None = None) -> None:
        """Wrap a `tokenizers` object, which is changed.

        Args:
            backend: the tokenizer.
            bos: token to put before texts that are encoded with special tokens, in addition to the post-processor's.
            eos: token to put after them.

        Raises:
            ValueError: `bos` or `eos` is not in the vocabulary.
        """
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        """The `tokenizers` object, for what this class does not wrap."""
        self._vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        added = backend.get_added_tokens_decoder().items()
        self.special_tokens = {token.content: token_id for token_id, token in added if token.special}
        """Text -> id of the special tokens, which readers do not see, such as the end-of-text token."""
        self._special = frozenset(self.special_tokens.values())
        self._bos, self._eos = self._ids_of("bos_token", bos), self._ids_of("eos_token", eos)

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read `path`, a `tokenizer.json` or the directory that holds one, and the `tokenizer_config.json` beside it.

        Raises:
            ValueError: there is no tokenizer, or a file is damaged.
        """
        file = Path(path)
        if file.is_dir():
            file = file / TOKENIZER_FILE
        if not file.is_file():
            raise ValueError(f"tokenizer: no file {file}; give a tokenizer.json or a directory that holds one")
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for every defect of the file
            raise ValueError(f"tokenizer: {file} cannot be read ({error}); copy it again from its source") from error
        special = SpecialTokens.read(file.parent)
        marked = {token.content for token in backend.get_added_tokens_decoder().values()}
        known = [token for token in special.named if backend.token_to_id(token) is not None]  # no id is made up
        backend.add_special_tokens([token for token in known if token not in marked])
        return cls(backend, special.bos, special.eos)

    def _ids_of(self, name: str, token: str | None) -> list[int]:
        """Return [id of the token], or [] for None."""
        if token is None:
            return []
        found = self.backend.token_to_id(token)
        if found is None:
            raise ValueError(
                f"tokenizer: {name} {token!r} is to be added to every text but is not in the vocabulary; "
                f"copy the tokenizer.json that belongs to it"
            )
        return [found]

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id, added tokens included."""
        return self._vocab_size

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: text to encode; special tokens spelled out in it become their ids.
            add_special_tokens: put the special tokens around the text that the post-processor of tokenizer.json and
                tokenizer_config.json ask for. A text that already begins (ends) with them does not get them twice.

        Raises:
            ValueError: the text holds unpaired surrogates, which are not valid Unicode.
        """
        try:
            encoding = self.backend.encode(text, add_special_tokens=add_special_tokens)
        except TypeError as error:
            raise ValueError(
                f"text: cannot be tokenized ({error}); give a str without unpaired surrogates (\\ud800-\\udfff)"
            ) from error
        return self._framed(encoding.ids, encoding.special_tokens_mask) if add_special_tokens else encoding.ids

    def _framed(self, ids: list[int], added: list[int]) -> list[int]:
        """Complete the special tokens around a text, without repeating any.

        Args:
            ids: token ids of the text, with the tokens that the post-processor added before and after.
            added: 1 for each id that the post-processor added, else 0.
        """
        begin = added.index(0) if 0 in added else len(ids)
        end = len(ids) - added[::-1].index(0) if 0 in added else len(ids)
        front, text, back = ids[:begin], ids[begin:end], ids[end:]
        front = front if set(self._bos) <= set(front) else self._bos + front
        back = back if set(self._eos) <= set(back) else back + self._eos
        framed = text if text[: len(front)] == front else front + text
        return framed if framed[len(framed) - len(back) :] == back else framed + back

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`. Ids that the vocabulary lacks have no text."""
        with_text = [token_id for token_id in ids if self.text_token(token_id, skip_special_tokens) is not None]
        # Decoders that strip the end of a text panic on an empty list.
        return self.backend.decode(with_text, skip_special_tokens=False) if with_text else ""

    def text_token(self, token_id: int, skip_special_tokens: bool = True) -> str | None:
        """Return the vocabulary's string for an id; None if `decode` leaves the id out."""
        return None if skip_special_tokens and token_id in self._special else self.id_to_token(token_id)

    def decode_each(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each id by itself, special tokens included; part of a UTF-8 character becomes U+FFFD."""
        return self.backend.decode_batch([[token_id] for token_id in ids], skip_special_tokens=False)

    def id_to_token(self, token_id: int) -> str | None:
        """Return the vocabulary's string for an id; None if the vocabulary lacks the id."""
        return self.backend.id_to_token(token_id)

    def token_id(self, token: str) -> int | None:
        """Return the id of a vocabulary string such as `<eos>`; None if the vocabulary lacks it."""
        return self.backend.token_to_id(token)
