"""Descriptor paths of the Arrow Flight streams of a shard."""

from __future__ import annotations

LOOKUP = b"lookup"
"""First part of a lookup stream's descriptor path; the second is the table's name."""
