"""A pool on Ray with TLS, client certificates and a token, which everybody takes from their environment."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import trustme

pytestmark = pytest.mark.slow


@pytest.fixture
def keys(tmp_path):
    """The variables for both sides; the certificate is for a name, as addresses of nodes are not known beforehand."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in ("shard", "worker"):
        certificate = authority.issue_cert(name)
        certificate.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    (tmp_path / "token").write_text("a-token-of-some-length\n")
    files = {
        "TLS_CERT": "shard.pem",
        "TLS_KEY": "shard.key",
        "CLIENT_CA": "ca.pem",
        "CA": "ca.pem",
        "CERT": "worker.pem",
        "KEY": "worker.key",
        "TOKEN_FILE": "token",
    }
    variables = {f"ENGRAM_MEMORY_{name}": str(tmp_path / file) for name, file in files.items()}
    return variables | {"ENGRAM_MEMORY_SERVER_NAME": "shard"}


def test_a_locked_pool_serves_and_heals_and_refuses_clients_without_a_key(keys, tiny_model):
    command = [sys.executable, "-m", "tests.cluster.pool.locked_pool", str(tiny_model / "memory")]
    done = subprocess.run(command, env=os.environ | keys, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("every row")] == ["every row"] * 2
    assert "without a key: " in done.stdout
    assert "ENGRAM_MEMORY_CA" in done.stdout
