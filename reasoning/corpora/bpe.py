"""Byte-level BPE for source code, and the special tokens that mark documents, files and gaps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as BpeTokenizer

END = "<|endoftext|>"
PAD = "<|pad|>"
FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
FILE_SEPARATOR = "<|file_sep|>"
SPECIAL_TOKENS = (END, PAD, FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE, FILE_SEPARATOR)
"""Special tokens of a tokenizer that is trained, by their ids."""
# A line break includes its indentation; words, numbers and punctuation may include a leading blank.
_PIECES = r"\r?\n[ \t]*| ?[A-Za-z_]+| ?[0-9]{1,3}| ?[^\sA-Za-z_0-9]+|[ \t]+"
# Names of the same marks in StarCoder2, Qwen2.5-Coder, DeepSeek-Coder and Llama tokenizers.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "end": (END, "<｜end▁of▁sentence｜>", "<|end_of_text|>", "</s>"),
    "pad": (PAD, "<｜▁pad▁｜>", "<|fim_pad|>", "<fim_pad>"),
    "prefix": (FIM_PREFIX, "<fim_prefix>", "<｜fim▁begin｜>"),
    "suffix": (FIM_SUFFIX, "<fim_suffix>", "<｜fim▁hole｜>"),
    "middle": (FIM_MIDDLE, "<fim_middle>", "<｜fim▁end｜>"),
    "file": (FILE_SEPARATOR, "<file_sep>"),
}


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """Train a byte-level BPE tokenizer with SPECIAL_TOKENS as its first tokens.

    Args:
        texts: texts to learn merges from.
        vocab_size: number of tokens, special ones and the 256 bytes included; fewer if the texts have too few pairs.
    """
    tokenizer = BpeTokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclass(frozen=True)
class Marks:
    """Ids of the special tokens in a vocabulary; None for those that it lacks."""

    end: int
    """Begins each document."""
    pad: int
    """Fills the last sequence; `end` where there is no token for it."""
    prefix: int | None
    suffix: int | None
    middle: int | None
    """The three of fill-in-the-middle."""
    file: int | None
    """Begins the path of a file."""

    @classmethod
    def find(cls, tokenizer: BpeTokenizer) -> Marks:
        """Find the special tokens by the names that well-known tokenizers give them.

        Raises:
            ValueError: there is no token that ends a text.
        """
        ids = {mark: _first_id(tokenizer, names) for mark, names in _NAMES.items()}
        end = ids["end"]
        if end is None:
            raise ValueError(
                f"tokenizer: it has none of {', '.join(_NAMES['end'])} to begin documents; add one of them"
            )
        pad = end if ids["pad"] is None else ids["pad"]
        return cls(end, pad, ids["prefix"], ids["suffix"], ids["middle"], ids["file"])

    @property
    def fill_in_the_middle(self) -> bool:
        """Whether the vocabulary has the three tokens of fill-in-the-middle."""
        return None not in (self.prefix, self.suffix, self.middle)


def _first_id(tokenizer: BpeTokenizer, names: Iterable[str]) -> int | None:
    return next((found for name in names if (found := tokenizer.token_to_id(name)) is not None), None)
