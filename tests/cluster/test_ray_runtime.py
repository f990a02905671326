"""Addresses of Ray that cannot be joined."""

from __future__ import annotations

import pytest

from cluster.ray_runtime import ray_session


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("::1:6379", r"'::1:6379' has an IPv6 host without brackets; write \[::1\]:6379"),
        ("ray://::1:6379", r"write \[::1\]:6379"),
        ("head:port", "'head:port' has no port from 1 to 65535; write HOST:PORT"),
        ("head:70000", "'head:70000' has no port from 1 to 65535"),
        ("a head:6379", "no hostname"),
        ("127.0.0.1:1", r"nothing answers at 127\.0\.0\.1:1 "),
        ("[::1]:1", r"nothing answers at \[::1\]:1 "),
    ],
)
def test_an_address_of_ray_that_cannot_be_is_refused_at_once(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^address: .*{message}"), ray_session(address):
        pass
