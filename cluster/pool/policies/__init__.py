"""Pure policies of a memory pool: which shards and placement it should have. They know neither Ray nor the clock."""
