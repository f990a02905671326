"""The client: looks rows up in shards or in this process, with retries, hedging and a hot-row cache."""
