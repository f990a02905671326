"""Fill-in-the-middle cuts texts as it should, and the same text in the same way."""

from __future__ import annotations

import pytest

from reasoning.corpora.fill_in_middle import draw_gap

TEXT = "héllo wörld\r\n" * 8


def gaps(rate, text=TEXT, count=2000):
    return [draw_gap(text, f"file {number}", rate) for number in range(count)]


def test_the_parts_of_a_text_are_the_text():
    assert all(gap.prefix + gap.middle + gap.suffix == TEXT for gap in gaps(1.0))
    assert all(gap.prefix + gap.middle + gap.suffix == "" for gap in gaps(1.0, "", 10))


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
def test_texts_are_cut_at_the_rate_half_of_them_in_each_order(rate):
    cut = [gap for gap in gaps(rate) if gap is not None]
    assert len(cut) == pytest.approx(2000 * rate, abs=75 if 0 < rate < 1 else 0)
    assert sum(gap.suffix_first for gap in cut) == pytest.approx(len(cut) / 2, abs=75)


def test_both_cuts_are_spread_evenly_over_the_characters():
    """The lengths of the parts of an evenly cut text have the same mean, a third of the text."""
    for part in ("prefix", "middle", "suffix"):
        mean = sum(len(getattr(gap, part)) for gap in gaps(1.0)) / 2000
        assert mean == pytest.approx(len(TEXT) / 3, rel=0.06)
    starts = {len(gap.prefix) for gap in gaps(1.0)}
    assert min(starts) == 0
    assert max(starts) > 0.9 * len(TEXT)


def test_each_part_may_be_empty_or_the_whole_text():
    cuts = {(gap.prefix, gap.middle, gap.suffix) for gap in gaps(1.0, "ab")}
    assert cuts == {("ab"[:i], "ab"[i:j], "ab"[j:]) for i in range(3) for j in range(i, 3)}


def test_a_draw_depends_on_its_key_alone():
    assert gaps(0.5) == gaps(0.5)
    assert draw_gap(TEXT, "seed 0", 1.0) != draw_gap(TEXT, "seed 1", 1.0)
    # Stated, because a corpus that is built again must be the same.
    assert draw_gap(TEXT, "stated", 1.0).prefix == "hél"
