"""Engram: from token ids to memory row ids to rows on the device."""
