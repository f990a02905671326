"""A shard: the blocks it holds in memory, where it gets them, and the gather that answers a lookup."""
