"""The flags of an engine, a flag for each field of EngineConfig, of its draft policy and of its memory client."""

from __future__ import annotations

import argparse

from cluster.commands.flags import Custom, Flags
from reasoning.drafts.source import KINDS
from reasoning.engine.config import EngineConfig


def mebibytes(text: str) -> int:
    """Convert a number of MiB to bytes."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text} MiB is not possible; give 0 for none, or more")
    return int(text) << 20


ENGINE = Flags(
    EngineConfig(),
    {
        "drafts": Custom(choices=KINDS),
        "client.cache_bytes": Custom(
            "--memory-cache", "hot rows kept of each table, in front of the network, in MiB", "MIB", mebibytes
        ),
        "client.map_local": Custom(
            "--map-memory", "read rows straight from shards on the same machine that were started with --share-memory"
        ),
    },
    prefixes={"draft_policy": "draft_", "client": "memory_"},
    skip=["client.lookup_timeout_s"],  # the engine gives each lookup its own deadline
)
