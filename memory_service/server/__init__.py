"""The server: a shard's network doors for control, rows and metrics, their limits, and the process around them."""
