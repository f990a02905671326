"""Exact and near duplicates."""

from __future__ import annotations

import random

import pytest

from reasoning.corpora.duplicates import HASHES, TextFingerprint, find_duplicates

from .material import code


def duplicates(texts, similarity=0.7, order=None):
    return find_duplicates([TextFingerprint.of(text) for text in texts], order or range(len(texts)), similarity)


def changed(text: str, share: float) -> str:
    """A text with a share of its lines replaced, those at the end."""
    lines = text.splitlines(keepends=True)
    kept = round(len(lines) * (1 - share))
    return "".join(lines[:kept]) + code("other", (len(lines) - kept) // 2)


def test_texts_that_differ_in_blanks_alone_are_exact_duplicates():
    text = code("a")
    assert duplicates([text, text.replace("    ", "\t").replace("\n", "\r\n") + "\n\n"]) == {1: (0, "exact duplicate")}


def test_short_texts_are_duplicates_only_if_they_are_equal():
    assert duplicates(["x = 1\n", "x = 2\n", "x  =  1"]) == {2: (0, "exact duplicate")}
    assert duplicates(["naïve = 1", "naive = 1"]) == {}


def test_a_text_with_few_changes_is_a_near_duplicate_and_one_with_many_is_not():
    text = code("a", 100)
    assert duplicates([text, changed(text, 0.05)]) == {1: (0, "near duplicate")}
    assert duplicates([text, changed(text, 0.5)]) == {}
    assert duplicates([text, changed(text, 0.05)], similarity=0.99) == {}


def test_texts_of_one_style_are_no_duplicates():
    assert duplicates([code(str(number)) for number in range(200)]) == {}


def test_the_order_of_words_counts_and_not_only_which_there_are():
    words = code("a", 100).split()
    random.Random(0).shuffle(words)
    assert duplicates([code("a", 100), " ".join(words)]) == {}


def test_the_first_in_the_order_stays_and_is_named():
    text = code("a", 50)
    texts = [changed(text, 0.02), code("b"), text, text]
    assert duplicates(texts, order=[3, 1, 0, 2]) == {0: (3, "near duplicate"), 2: (3, "exact duplicate")}


def test_a_text_is_compared_with_those_that_stay_and_not_with_those_that_go():
    first = code("a", 200)
    second = changed(first, 0.08)
    third = code("b", 16) + "".join(second.splitlines(keepends=True)[32:])
    assert duplicates([second, third], 0.75) == {1: (0, "near duplicate")}
    assert duplicates([first, second, third], 0.78) == {1: (0, "near duplicate")}


@pytest.mark.parametrize("overlap", [0.2, 0.5, 0.7, 0.9])
def test_the_estimate_is_close_to_the_jaccard_index_of_the_5_grams(overlap):
    """Standard error of the estimate: sqrt(J (1 - J) / 128), at most 0.044; three of them are allowed."""
    rng = random.Random(1)
    words = [f"w{rng.getrandbits(40)}" for _ in range(3000)]
    shared = round(3000 * 2 * overlap / (1 + overlap))
    other = words[:shared] + [f"v{rng.getrandbits(40)}" for _ in range(3000 - shared)]
    grams = [{tuple(text[at : at + 5]) for at in range(len(text) - 4)} for text in (words, other)]
    exact = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
    first, second = (TextFingerprint.of(" ".join(text)).signature for text in (words, other))
    assert abs((first == second).sum() / HASHES - exact) < 0.13
    assert exact == pytest.approx(overlap, abs=0.01)


def test_near_duplicates_well_above_the_threshold_are_found_nearly_always():
    texts = [code(str(number), 60) for number in range(100)]
    copies = [changed(text, 0.05) for text in texts]
    found = duplicates([*texts, *copies])
    assert {index: earlier for index, (earlier, _) in found.items()} == {100 + n: n for n in range(100)}
