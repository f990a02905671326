"""Row ids, bit for bit those of the released hash and of the hasher in numpy."""

import numpy as np
import pytest
import torch

from kernels.ngram_hash import HashTables, ngram_hash
from reasoning.hashing import HashGeometry
from reasoning.presets import PRESETS
from reasoning.token_map import TokenMap

pytestmark = pytest.mark.usefixtures("implementation")


def tables_of(hasher, device):
    ids = torch.tensor(hasher.token_map.ids, dtype=torch.int64, device=device)
    return HashTables.build(ids, hasher.multipliers, hasher.primes, hasher.pad_id)


def hash_one(tables, tokens, past=0, documents=None, blocked=None):
    """Rows of one sequence's tokens past the first `past`."""
    device = tables.token_map.device
    labels = torch.zeros(len(tokens), dtype=torch.int64) if documents is None else torch.tensor(documents)
    return ngram_hash(
        torch.tensor(tokens, dtype=torch.int64).to(device),
        labels.to(device),
        torch.arange(past, len(tokens), device=device),
        tables,
        None if blocked is None else torch.tensor(blocked).to(device),
    )


@pytest.mark.parametrize("name", ["python", "chinese", "masked", "packed_documents"])
def test_v41_rows_are_the_released_ones(device, deepseek_map, golden, name):
    case, ids = golden["cases"][name], torch.tensor(deepseek_map.ids, dtype=torch.int64, device=device)
    tables = HashTables.build(ids, golden["multipliers"], golden["primes"], golden["compressed_pad_id"])
    blocked = np.isin(np.arange(len(case["token_ids"])), case.get("blocked_positions", []))
    got = hash_one(tables, case["token_ids"], documents=case.get("document_ids"), blocked=blocked)
    wanted = [case["row_ids"][str(layer)] for layer in golden["config"]["engram_layer_ids"]]
    assert got.tolist() == wanted


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_v41_chunks_behind_their_histories_read_the_released_rows(device, deepseek_map, golden, chunk):
    """All released cases in one batch, masked and packed ones too, cut into chunks that come with their histories."""
    hasher = PRESETS["deepseek-v4.1-flash"].for_token_map(deepseek_map)
    ids, labels, blocked, wanted, rows = [], [], [], [], []
    for case in golden["cases"].values():
        tokens = case["token_ids"]
        documents, masked = case.get("document_ids", [0] * len(tokens)), case.get("blocked_positions", [])
        for start in range(0, len(tokens), chunk):
            seen = range(max(0, start - hasher.history_length), min(start + chunk, len(tokens)))
            label = 10 * len(ids)  # as many as no other piece has
            wanted += [len(ids) + i for i, position in enumerate(seen) if position >= start]
            for position in seen[start - seen.start :]:
                rows.append([case["row_ids"][str(layer)][position] for layer in hasher.layer_ids])
            labels += [label + documents[position] for position in seen]
            blocked += [position in masked for position in seen]
            ids += [tokens[position] for position in seen]
    columns = [torch.tensor(column).to(device) for column in (ids, labels, wanted, blocked)]
    got = ngram_hash(*columns[:3], tables_of(hasher, device), columns[3])
    assert got.transpose(0, 1).tolist() == rows


@pytest.fixture(params=[(3, 8), (2, 1), (5, 3)], ids=["N=3", "N=2", "N=5"])
def hasher(request):
    max_ngram, heads = request.param
    geometry = HashGeometry((1, 4), max_ngram, heads, 32, (5000,) * (max_ngram - 1), 7)
    return geometry.for_token_map(TokenMap(np.arange(1000) % 700))


@pytest.mark.parametrize("length", [0, 1, 5, 17, 123, 1025])
def test_rows_equal_the_hashers(device, hasher, length):
    rng = np.random.default_rng(length)
    tokens, blocked = rng.integers(0, 1000, length), rng.random(length) < 0.1
    documents = np.sort(rng.integers(0, 4, length))
    got = hash_one(tables_of(hasher, device), tokens, documents=documents, blocked=blocked)
    wanted = hasher.hash(tokens, blocked=blocked, documents=documents)
    assert np.array_equal(got.cpu().numpy(), np.stack(list(wanted.values())))


def test_a_batch_of_chunks_with_histories_hashes_as_the_whole_sequences(device, hasher):
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 1000, n) for n in (0, 1, 4, 2, 4)]
    chunks = [rng.integers(0, 1000, n) for n in (5, 1, 17, 0, 2)]
    parts = [part for pair in zip(histories, chunks, strict=True) for part in pair]
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    got = ngram_hash(
        torch.tensor(np.concatenate(parts)).to(device),
        torch.tensor(owner // 2).to(device),
        torch.tensor(np.flatnonzero(owner % 2)).to(device),
        tables_of(hasher, device),
    )
    assert np.array_equal(got.cpu().numpy(), np.stack(list(hasher.hash_batch(chunks, histories).values())))


def test_history_is_looked_back_to(device, hasher):
    tables, tokens = tables_of(hasher, device), np.arange(60, 90)
    past = hasher.history_length
    whole = hash_one(tables, tokens)
    assert torch.equal(hash_one(tables, tokens[10 - past :], past), whole[:, 10:])
    assert not torch.equal(hash_one(tables, tokens[10:])[:, 0], whole[:, 10])


def test_the_largest_products_and_the_smallest_primes_are_exact(device):
    """Two compressed ids allow multipliers close to 2**62; a column of two rows has the largest reciprocal."""
    geometry = HashGeometry(tuple(range(8)), 3, 2, 32, (2, 2), 0)
    hasher = geometry.for_token_map(TokenMap(np.arange(2)))
    assert max(m for layer in hasher.multipliers for m in layer) > 2**60
    assert min(min(layer) for layer in hasher.primes) == 2
    tokens = np.random.default_rng(0).integers(0, 2, 123)
    got = hash_one(tables_of(hasher, device), tokens)
    assert np.array_equal(got.cpu().numpy(), np.stack(list(hasher.hash(tokens).values())))
