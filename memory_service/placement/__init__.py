"""Placement: which shard holds which block, and the placement that follows when shards come, go or move."""
