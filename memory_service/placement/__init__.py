"""Placement: which shard serves which block, and the next placement when shards join, leave or move."""
