"""The flags of sampling, a flag for each field of SamplingParams."""

from __future__ import annotations

from cluster.commands.flags import Custom, Flags
from reasoning.request import SamplingParams

SAMPLING = Flags(
    SamplingParams(seed=0),
    {
        "seed": Custom(help="makes sampling repeatable; every line of a file draws its own from it"),
        "stop": Custom(help="end before this text; may be given several times", metavar="TEXT"),
        "stop_token_ids": Custom(metavar="ID"),
    },
)
"""The default seed is 0, so that two runs sample alike."""
