"""Training: how a worker reaches tables that learn, in shards or in its own process."""
