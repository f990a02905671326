from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_service.tables.rows import RowFormat
from reasoning.engram.hashing import HashGeometry, NgramHasher
from reasoning.engram.presets import PRESETS
from reasoning.engram.token_map import TokenMap

V41 = PRESETS["deepseek-v4.1-flash"]
reproducible = settings(derandomize=True, deadline=None, max_examples=150)


@pytest.fixture(scope="module")
def v41(deepseek_map: TokenMap) -> NgramHasher:
    return V41.for_token_map(deepseek_map)


def test_v41_geometry_is_the_released_one(v41: NgramHasher, golden: dict) -> None:
    assert v41.layer_ids == tuple(golden["config"]["engram_layer_ids"])
    assert [list(layer) for layer in v41.primes] == golden["primes"]
    assert [list(layer) for layer in v41.offsets] == golden["offsets"]
    assert [list(layer) for layer in v41.multipliers] == golden["multipliers"]
    assert [sum(layer) for layer in v41.primes] == golden["config"]["engram_num_embeddings"]
    assert v41.pad_id == golden["compressed_pad_id"]


@pytest.mark.parametrize(
    "name",
    ["python", "case", "chinese", "accents", "repeat", "empty-ish", "masked", "packed_documents"],
)
def test_v41_rows_are_the_released_ones(v41: NgramHasher, golden: dict, name: str) -> None:
    case = golden["cases"][name]
    blocked = np.isin(np.arange(len(case["token_ids"])), case.get("blocked_positions", []))
    rows = v41.hash(case["token_ids"], blocked=blocked, documents=case.get("document_ids"))
    assert {str(layer): ids.tolist() for layer, ids in rows.items()} == case["row_ids"]


def test_every_golden_case_is_tested(golden: dict) -> None:
    marks = test_v41_rows_are_the_released_ones.pytestmark  # type: ignore[attr-defined]
    assert set(golden["cases"]) == set(marks[0].args[1])


@dataclass(frozen=True)
class Text:
    geometry: HashGeometry
    token_map: TokenMap
    ids: list[int]
    blocked: list[bool]
    documents: list[int]

    @property
    def hasher(self) -> NgramHasher:
        return self.geometry.for_token_map(self.token_map)

    def rows(self, start: int, stop: int, past: int) -> dict[int, np.ndarray]:
        """Rows of one chunk, with `past` tokens of history."""
        chunk, before = slice(start, stop), slice(start - past, start)
        return self.hasher.hash(
            self.ids[chunk],
            self.ids[before],
            blocked=self.blocked[chunk],
            history_blocked=self.blocked[before],
            documents=self.documents[chunk],
            history_documents=self.documents[before],
        )


@st.composite
def texts(draw: st.DrawFn) -> Text:
    raw_map = draw(st.lists(st.integers(0, 12), min_size=1, max_size=20))
    token_map = TokenMap(np.unique(raw_map, return_inverse=True)[1])
    max_ngram = draw(st.integers(2, 5))
    geometry = HashGeometry(
        layer_ids=tuple(sorted(draw(st.sets(st.integers(0, 60), min_size=1, max_size=3)))),
        max_ngram=max_ngram,
        heads=draw(st.integers(1, 3)),
        head_dim=32,
        vocab_sizes=tuple(draw(st.integers(2, 300)) for _ in range(max_ngram - 1)),
        pad_token_id=draw(st.integers(0, len(raw_map) - 1)),
    )
    length = draw(st.integers(0, 12))

    def each(values: st.SearchStrategy) -> list:
        return draw(st.lists(values, min_size=length, max_size=length))

    return Text(
        geometry,
        token_map,
        ids=each(st.integers(0, len(raw_map) - 1)),
        blocked=each(st.sampled_from([False, False, False, True])),
        documents=each(st.sampled_from([1, 1, 1, 7])),
    )


def reference_primes(geometry: HashGeometry) -> list[list[int]]:
    taken: list[int] = []
    for _ in geometry.layer_ids:
        for size in geometry.vocab_sizes:
            candidate = size - 1
            for _ in range(geometry.heads):
                candidate += 1
                while candidate in taken or any(candidate % d == 0 for d in range(2, candidate)):
                    candidate += 1
                taken.append(candidate)
    columns = geometry.heads * len(geometry.vocab_sizes)
    return [taken[i : i + columns] for i in range(0, len(taken), columns)]


def reference_rows(text: Text) -> dict[int, list[list[int]]]:
    geometry, compressed = text.geometry, text.token_map.ids.tolist()
    pad = compressed[geometry.pad_token_id]

    def seen_from(position: int, back: int) -> int:
        path = range(position - back, position + 1)
        in_sight = path[0] >= 0 and not any(
            text.blocked[p] or text.documents[p] != text.documents[position] for p in path
        )
        return compressed[text.ids[path[0]]] if in_sight else pad

    rows: dict[int, list[list[int]]] = {}
    for layer, primes in zip(geometry.layer_ids, reference_primes(geometry), strict=True):
        limit = max(1, (2**63 - 1) // (max(compressed) + 1) // 2)
        drawn = np.random.default_rng(10007 * layer).integers(0, limit, size=geometry.max_ngram, dtype=np.int64)
        multipliers = [2 * int(r) + 1 for r in drawn]
        rows[layer] = []
        for position in range(len(text.ids)):
            row = []
            for column, prime in enumerate(primes):
                mix = 0
                for back in range(2 + column // geometry.heads):
                    mix ^= seen_from(position, back) * multipliers[back]
                row.append(sum(primes[:column]) + mix % prime)
            rows[layer].append(row)
    return rows


def as_lists(rows: dict[int, np.ndarray]) -> dict[int, list[list[int]]]:
    return {layer: ids.tolist() for layer, ids in rows.items()}


def joined(parts: list[dict[int, np.ndarray]]) -> dict[int, list[list[int]]]:
    return {layer: np.concatenate([part[layer] for part in parts]).tolist() for layer in parts[0]}


@reproducible
@given(texts())
def test_row_ids_equal_those_of_the_reference(text: Text) -> None:
    rows = text.rows(0, len(text.ids), past=0)
    assert as_lists(rows) == reference_rows(text)
    for ids in rows.values():
        assert (ids.dtype, ids.shape) == (np.int64, (len(text.ids), text.geometry.columns))


@reproducible
@given(texts(), st.data())
def test_chunks_with_history_hash_as_the_whole(text: Text, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text.ids)), max_size=4)))
    bounds = list(zip([0, *cuts], [*cuts, len(text.ids)], strict=True))
    needed = text.hasher.history_length
    expected = as_lists(text.rows(0, len(text.ids), past=0))
    assert joined([text.rows(a, b, past=min(a, needed)) for a, b in bounds]) == expected
    assert joined([text.rows(a, b, past=a) for a, b in bounds]) == expected, "a longer history changes nothing"


@reproducible
@given(texts(), st.data())
def test_batch_equals_its_sequences_one_by_one(text: Text, data: st.DataObject) -> None:
    token = st.integers(0, text.token_map.vocab_size - 1)
    pairs = data.draw(st.lists(st.tuples(st.lists(token, max_size=6), st.lists(token, max_size=6)), max_size=4))
    chunks, histories = [chunk for chunk, _ in pairs], [history for _, history in pairs]
    hasher = text.hasher
    none = hasher.hash([])
    together = as_lists(hasher.hash_batch(chunks, histories))
    assert together == joined([none, *(hasher.hash(c, h) for c, h in pairs)])
    assert as_lists(hasher.hash_batch(chunks)) == joined([none, *(hasher.hash(c) for c in chunks)])


def test_long_text_equals_its_parts(v41: NgramHasher) -> None:
    ids = np.random.default_rng(3).integers(0, 129_280, 5000)
    parts = [v41.hash(ids[i : i + 700], ids[max(0, i - 3) : i]) for i in range(0, 5000, 700)]
    for layer, rows in v41.hash(ids).items():
        np.testing.assert_array_equal(rows, np.concatenate([part[layer] for part in parts]))


def test_without_history_the_sequence_starts_there(v41: NgramHasher, golden: dict) -> None:
    ids = golden["cases"]["python"]["token_ids"]
    assert v41.hash(ids[5:])[1][0].tolist() != v41.hash(ids)[1][5].tolist()


def test_a_vocabulary_size_that_is_prime_is_the_first_prime() -> None:
    assert HashGeometry((0,), 2, 2, 32, (97,), 0).primes == ((97, 101),)


@pytest.mark.parametrize("size", [1, 2, 3, 99_092, 129_280, 2**31, 2**62, 2**63 - 1])
def test_no_product_of_a_hash_overflows_int64(size: int) -> None:
    geometry = HashGeometry(tuple(range(40)), 5, 1, 32, (7, 7, 7, 7), 0)
    for layer in geometry.multipliers(size):
        assert all(m % 2 == 1 and 0 < m < 2**63 and m * (size - 1) < 2**63 for m in layer)


def test_largest_products_of_a_tiny_vocabulary_hash_exactly() -> None:
    # Two compressed ids allow multipliers close to 2**62; the reference has no word size.
    geometry = HashGeometry(tuple(range(30)), 3, 2, 32, (11, 11), 0)
    text = Text(geometry, TokenMap(np.arange(2)), ids=[1] * 4, blocked=[False] * 4, documents=[0] * 4)
    assert max(m for layer in text.hasher.multipliers for m in layer) > 2**61
    assert as_lists(text.rows(0, 4, past=0)) == reference_rows(text)


def test_tables_carry_everything_that_selects_a_row(v41: NgramHasher, golden: dict) -> None:
    specs = v41.table_specs(RowFormat.FP8_E4M3_UE8M0, block_rows=1024)
    assert [spec.name for spec in specs] == ["engram.1", "engram.14"]
    for i, spec in enumerate(specs):
        assert (spec.layer, spec.rows) == (v41.layer_ids[i], golden["config"]["engram_num_embeddings"][i])
        assert (list(spec.column_rows), list(spec.multipliers)) == (golden["primes"][i], golden["multipliers"][i])
        assert spec.column_offsets.tolist() == golden["offsets"][i]
        assert (spec.max_ngram, spec.heads, spec.pad_id, spec.dim) == (4, 8, 2, 256)
        assert (spec.token_map_sha256, spec.row_bytes, spec.block_rows) == (golden["token_map_sha256"], 264, 1024)
    assert v41.table_specs("bf16")[0].row_bytes == 512


GEOMETRY = {"layer_ids": (1, 2), "max_ngram": 3, "heads": 2, "head_dim": 32, "vocab_sizes": (50, 50), "pad_token_id": 1}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("layer_ids", (), "ascending"),
        ("layer_ids", (2, 1), "ascending"),
        ("layer_ids", (1, 1), "ascending"),
        ("layer_ids", (-1, 1), r"layer_ids\[0\] = -1 must be an integer of at least 0"),
        ("layer_ids", [1, 2], "tuple"),
        ("max_ngram", 1, "at least 2"),
        ("max_ngram", 4, "one entry for each order"),
        ("heads", 0, "at least 1"),
        ("heads", 2.0, "must be an integer"),
        ("head_dim", 0, "at least 1"),
        ("head_dim", True, "must be an integer"),
        ("vocab_sizes", (50,), "one entry for each order"),
        ("vocab_sizes", (50, 1), r"vocab_sizes\[1\] = 1 must be an integer of at least 2"),
        ("pad_token_id", -1, "at least 0"),
    ],
)
def test_a_geometry_that_is_impossible_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        HashGeometry(**{**GEOMETRY, field: value})  # type: ignore[arg-type]
    assert field in str(raised.value)


@pytest.fixture
def small() -> NgramHasher:
    return HashGeometry(**GEOMETRY).for_token_map(TokenMap(np.arange(10)))  # type: ignore[arg-type]


def test_pad_token_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pad_token_id = 1 is outside the vocabulary of 1 ids"):
        HashGeometry(**GEOMETRY).for_token_map(TokenMap(np.arange(1)))  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [10, -1, 2**62])
def test_id_beyond_the_vocabulary_is_named(small: NgramHasher, bad: int) -> None:
    tail = f"= {bad} is outside the vocabulary of 10 ids; tokenize"
    for call, name in [
        (lambda: small.hash([0, 9, bad, bad]), "token_ids[2]"),
        (lambda: small.hash([0], [3, bad]), "history[1]"),
        (lambda: small.hash_batch([[1, 2], [3, 4, bad]]), "chunks[1][2]"),
        (lambda: small.hash_batch([[1, 2], [3, 4]], [[bad, 1], []]), "histories[0][0]"),
    ]:
        with pytest.raises(ValueError, match=re.escape(f"{name} {tail}")):
            call()


def test_arrays_that_do_not_fit_are_named(small: NgramHasher) -> None:
    for call, message in [
        (lambda: small.hash([1.0, 2.0]), "token_ids must be a one-dimensional sequence of integers, not float64"),
        (lambda: small.hash([[1, 2]]), "token_ids must be a one-dimensional"),  # type: ignore[list-item]
        (lambda: small.hash([2**70]), "token_ids must be a one-dimensional sequence of integers, not object"),
        (lambda: small.hash_batch([[1], [True]]), "chunks[1] must be"),
        (lambda: small.hash_batch([[1]], [[1], [2]]), "histories holds 2 sequences, chunks 1"),
        (lambda: small.hash([1, 2], blocked=[True]), "blocked has shape (1,); give one value for each of the 2"),
        (lambda: small.hash([1, 2], documents=[1, 1, 1]), "documents has shape (3,)"),
        (lambda: small.hash([1], [2], history_blocked=[]), "history_blocked has shape (0,)"),
        (lambda: small.hash([1], [2], documents=[1]), "documents and history_documents must be given together"),
        (lambda: small.hash([1], [2], history_documents=[1]), "documents and history_documents must be given"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
