"""Configuration that architectures share: reading config.json, the rotary embedding, Engram layers, checks."""
