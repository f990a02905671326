"""Control: calls to one shard or to all, and changes of the placement while it is served."""
