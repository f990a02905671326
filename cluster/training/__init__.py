"""Training on Ray: workers by Ray Train, tables that learn in memory shards."""
