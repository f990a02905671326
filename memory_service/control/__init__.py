"""Control: calls to one shard or to all, their directory, changes of the placement, and snapshots of what they hold."""
