"""Control: calling one shard or all of them, and changing a placement while it is served."""
