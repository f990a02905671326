"""The wire of a memory shard: memory.proto and its generated stubs."""
