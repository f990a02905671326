"""The memory tier: tables of packed rows, the shards that serve them and the client that asks. No Ray, no torch."""
