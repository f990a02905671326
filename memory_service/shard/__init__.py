"""A shard: the blocks in its memory, the sources it loads them from, and the gather that answers a lookup."""
