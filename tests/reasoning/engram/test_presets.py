from __future__ import annotations

import pytest

from reasoning.engram.presets import PRESETS


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_draw_each_prime_once_from_their_start(name: str) -> None:
    geometry = PRESETS[name]
    drawn = [prime for layer in geometry.primes for prime in layer]
    assert [len(layer) for layer in geometry.primes] == [geometry.columns] * len(geometry.layer_ids)
    assert len(set(drawn)) == len(drawn)
    assert min(drawn) >= min(geometry.vocab_sizes)
    assert all(pow(2, prime - 1, prime) == 1 for prime in drawn)


def test_demo_preset_starts_at_its_first_primes() -> None:
    demo = PRESETS["engram-demo"]
    assert demo.columns == 16
    assert demo.primes[0][:3] == (646403, 646411, 646421)  # none lies between 646400 - 1 and the first
    assert demo.primes[0][8] > demo.primes[0][7], "equal sizes: the second order goes on where the first ended"


def test_paper_model_has_its_memory_dimension() -> None:
    geometry = PRESETS["engram-27b"]
    assert geometry.columns * geometry.head_dim == 1280
    assert all(36_198_400 < sum(layer) < 36_210_000 for layer in geometry.primes)  # 16 x 2,262,400 and a little
