"""Certificates that tests and benchmarks make as they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trustme


class Certificates:
    """An authority, and the certificates that it issues, as files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca)

    def issue(self, name: str, **options: Any) -> dict[str, Path]:
        """Files of a certificate for a host or client of that name, and of its key."""
        issued = self._authority.issue_cert(name, **options)
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return {"cert_file": cert, "key_file": key}
