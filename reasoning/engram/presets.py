"""Published Engram geometries, by the name that `--preset` takes.

deepseek-v4.1-flash: the released checkpoint's `engram_*` configuration: layers 1 and 14, 2- to 4-grams, 8 heads of
  256 values, vocabulary 16,000,000 for every order, DeepSeek's `<｜▁pad▁｜>` (id 2).
engram-demo: `engram_demo_v1.py` of deepseek-ai/Engram: layers 1 and 15, 2- and 3-grams, 512 values per order over
  8 heads (64 each), vocabulary 5 x 129,280 = 646,400 for every order, pad id 2 (it uses DeepSeek's tokenizer too).
engram-27b: the 27B model of arXiv 2601.07372: layers 2 and 15 counted from 1 (so ids 1 and 14), 2- and 3-grams,
  8 heads, memory dimension 1,280 split evenly over the 16 columns (80 each), vocabulary 2,262,400. The paper
  names no pad token; 2 is that of the DeepSeek tokenizer it uses.
"""

from __future__ import annotations

from reasoning.engram.hashing import HashGeometry

PRESETS: dict[str, HashGeometry] = {
    "deepseek-v4.1-flash": HashGeometry(
        layer_ids=(1, 14),
        max_ngram=4,
        heads=8,
        head_dim=256,
        vocab_sizes=(16_000_000, 16_000_000, 16_000_000),
        pad_token_id=2,
    ),
    "engram-demo": HashGeometry(
        layer_ids=(1, 15), max_ngram=3, heads=8, head_dim=64, vocab_sizes=(646_400, 646_400), pad_token_id=2
    ),
    "engram-27b": HashGeometry(
        layer_ids=(1, 14), max_ngram=3, heads=8, head_dim=80, vocab_sizes=(2_262_400, 2_262_400), pad_token_id=2
    ),
}
