"""The server: a shard's two network doors, their limits and locks, and the process around them."""
