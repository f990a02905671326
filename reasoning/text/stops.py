"""Stop conditions of a request: the token ids that end a sample, and validation of stop texts."""

from __future__ import annotations

from collections.abc import Iterable

from reasoning.request import RequestError, SamplingParams
from reasoning.text.tokenizer import Tokenizer


def end_tokens(sampling: SamplingParams, tokenizer: Tokenizer | None, eos_token_ids: Iterable[int]) -> frozenset[int]:
    """Return the token ids that end a sample: stop tokens, special tokens among the stop texts, end-of-text tokens.

    A special token's text may be left out of the output, where no search would find it; so its id is a stop token. The
    text remains a stop text too, because the model may spell it out in ordinary tokens.

    Args:
        sampling: parameters of the request.
        tokenizer: the model's tokenizer; None if it has none.
        eos_token_ids: the model's end-of-text tokens; not used if the request ignores them.
    """
    special = {} if tokenizer is None else tokenizer.special_tokens
    named = (special[text] for text in sampling.stop if text in special)
    return frozenset([*sampling.stop_token_ids, *named, *(() if sampling.ignore_eos else eos_token_ids)])


def check_stops(sampling: SamplingParams, tokenizer: Tokenizer | None) -> None:
    """Refuse stop texts that could never be found in the output.

    Raises:
        RequestError: there is no tokenizer, or a stop text contains a special token and other text while the text of
            special tokens is left out of the output.
    """
    if not sampling.stop:
        return
    if tokenizer is None:
        raise RequestError("stop", "this model has no tokenizer.json to make text; use stop_token_ids instead")
    if not sampling.skip_special_tokens:
        return
    special = {token_id: text for text, token_id in tokenizer.special_tokens.items()}
    for text in sampling.stop:
        inside = [special[token_id] for token_id in tokenizer.encode(text) if token_id in special]
        if inside and text not in tokenizer.special_tokens:
            message = (
                f"{text!r} contains the special token {inside[0]!r}, whose text is left out of the output; "
                f"use {inside[0]!r} alone, or set skip_special_tokens to false"
            )
            raise RequestError("stop", message)
